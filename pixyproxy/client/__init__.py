"""A client of PixyProxy: ``with PixyProxyClient("127.0.0.1:50051") as client: client.create_image("A lighthouse")``.

It loads nothing of the server: no database driver, no provider, no pydantic.
"""

from pixyproxy.client.client import Filters, PixyProxyClient
from pixyproxy.client.connection import TLS
from pixyproxy.client.content import ContentStream
from pixyproxy.client.errors import (
    ContentDamagedError,
    CredentialsError,
    DeadlineExceededError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    OutcomeUnknownError,
    PixyProxyClientError,
    TryLaterError,
    UnavailableError,
)
from pixyproxy.client.models import ContentInfo, ImageDetail, ImagePage, Usage, Visibility

__all__ = [
    "TLS",
    "ContentDamagedError",
    "ContentInfo",
    "ContentStream",
    "CredentialsError",
    "DeadlineExceededError",
    "FieldViolation",
    "Filters",
    "ImageDetail",
    "ImagePage",
    "InvalidRequestError",
    "NotFoundError",
    "OutcomeUnknownError",
    "PixyProxyClient",
    "PixyProxyClientError",
    "TryLaterError",
    "UnavailableError",
    "Usage",
    "Visibility",
]
