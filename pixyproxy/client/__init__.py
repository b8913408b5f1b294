"""A client of PixyProxy: ``with PixyProxyClient("127.0.0.1:50051") as client: client.create_image("A lighthouse")``.

AsyncPixyProxyClient is the same for asyncio. Neither imports anything of the server, such as database drivers or
pydantic.
"""

from pixyproxy.client.aio import AsyncContentStream, AsyncPixyProxyClient
from pixyproxy.client.calls import Changes, CreateOptions, Filters, GenerationFilters, ImportOptions
from pixyproxy.client.client import ContentStream, PixyProxyClient
from pixyproxy.client.connection import TLS, Keepalive
from pixyproxy.client.errors import (
    ContentDamagedError,
    CredentialsError,
    DeadlineExceededError,
    FieldViolation,
    GenerationCancelledError,
    InvalidRequestError,
    NotFoundError,
    OutcomeUnknownError,
    PixyProxyClientError,
    TryLaterError,
    UnavailableError,
)
from pixyproxy.client.generations import Generation, GenerationError, GenerationState, ImageRequest, PartialImage
from pixyproxy.client.models import (
    ContentInfo,
    Cost,
    GenerationOptions,
    ImageDetail,
    ImagePage,
    Origin,
    Rendition,
    Thumbnail,
    Usage,
    Visibility,
)
from pixyproxy.client.retry import RetryPolicy
from pixyproxy.client.upload import Source
from pixyproxy.client.usage import Quota, UsageGrouping, UsageRow

__all__ = [
    "TLS",
    "AsyncContentStream",
    "AsyncPixyProxyClient",
    "Changes",
    "ContentDamagedError",
    "ContentInfo",
    "ContentStream",
    "Cost",
    "CreateOptions",
    "CredentialsError",
    "DeadlineExceededError",
    "FieldViolation",
    "Filters",
    "Generation",
    "GenerationCancelledError",
    "GenerationError",
    "GenerationFilters",
    "GenerationOptions",
    "GenerationState",
    "ImageDetail",
    "ImagePage",
    "ImageRequest",
    "ImportOptions",
    "InvalidRequestError",
    "Keepalive",
    "NotFoundError",
    "Origin",
    "OutcomeUnknownError",
    "PartialImage",
    "PixyProxyClient",
    "PixyProxyClientError",
    "Quota",
    "Rendition",
    "RetryPolicy",
    "Source",
    "Thumbnail",
    "TryLaterError",
    "UnavailableError",
    "Usage",
    "UsageGrouping",
    "UsageRow",
    "Visibility",
]
