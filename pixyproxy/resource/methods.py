"""The policy of every method that is served. A method that has no row here is refused as unknown.

A new method needs a row. Authentication, bulkheads, metrics and traces read the table; tests compare it with the
descriptors of the served services, with the service config that is published for gRPC's clients, and with our client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Credentials(Enum):
    """Whether a call needs credentials. Where they are sent and looked at, they must be right."""

    IGNORED = "ignored"
    OPTIONAL = "optional"
    REQUIRED = "required"


class Bulkhead(Enum):
    """Which limit a call counts against."""

    GENERATION = "generation"
    """Calls that wait for a generation."""
    STREAM = "stream"
    """Streams, which last until the client has read them, and other calls that read image bytes."""
    IMPORT = "import"
    """Imports, which hold temporary files."""
    UNARY = "unary"
    """All other calls."""


class Repeat(Enum):
    """Whether a client may send a call again that failed without an answer."""

    NEVER = "never"
    WITH_REQUEST_ID = "with request id"
    """Only where the request has a ``request_id``, which a service config cannot see."""
    ALWAYS = "always"


@dataclass(frozen=True)
class MethodPolicy:
    """How calls of a method are treated.

    Attributes:
        credentials: whether they need credentials.
        bulkhead: which limit they count against, or None for no limit.
        repeat: whether clients may send them again.
    """

    credentials: Credentials
    bulkhead: Bulkhead | None
    repeat: Repeat


_IMAGES = "/pixyproxy.v1.ImageService/"
_DOWNLOADS = "/pixyproxy.v1.ImageDownloadService/"
_GENERATIONS = "/pixyproxy.v1.GenerationService/"
_USAGE = "/pixyproxy.v1.UsageService/"
_HEALTH = "/grpc.health.v1.Health/"
_CHANNELZ = "/grpc.channelz.v1.Channelz/"

# Health and channelz have no limit: calls are quick, and refusals would make a busy server look like a broken one.
_HEALTH_CALL = MethodPolicy(Credentials.IGNORED, None, Repeat.ALWAYS)
_REFLECTION_CALL = MethodPolicy(Credentials.IGNORED, Bulkhead.STREAM, Repeat.ALWAYS)

POLICIES: Mapping[str, MethodPolicy] = {
    _IMAGES + "CreateImage": MethodPolicy(Credentials.REQUIRED, Bulkhead.GENERATION, Repeat.WITH_REQUEST_ID),
    _IMAGES + "ImportImage": MethodPolicy(Credentials.REQUIRED, Bulkhead.IMPORT, Repeat.WITH_REQUEST_ID),
    _IMAGES + "GetImage": MethodPolicy(Credentials.OPTIONAL, Bulkhead.UNARY, Repeat.ALWAYS),
    _IMAGES + "ListImages": MethodPolicy(Credentials.OPTIONAL, Bulkhead.UNARY, Repeat.ALWAYS),
    _IMAGES + "GetImageContent": MethodPolicy(Credentials.OPTIONAL, Bulkhead.STREAM, Repeat.ALWAYS),
    # It reads image bytes and may wait for them, which must not take the slots of GetImage.
    _IMAGES + "BatchGetThumbnails": MethodPolicy(Credentials.OPTIONAL, Bulkhead.STREAM, Repeat.ALWAYS),
    _IMAGES + "UpdateImage": MethodPolicy(Credentials.REQUIRED, Bulkhead.UNARY, Repeat.ALWAYS),
    # A second answer would be NOT_FOUND.
    _IMAGES + "DeleteImage": MethodPolicy(Credentials.REQUIRED, Bulkhead.UNARY, Repeat.NEVER),
    _DOWNLOADS + "DownloadImage": MethodPolicy(Credentials.OPTIONAL, Bulkhead.STREAM, Repeat.ALWAYS),
    _GENERATIONS + "CreateGeneration": MethodPolicy(Credentials.REQUIRED, Bulkhead.UNARY, Repeat.WITH_REQUEST_ID),
    _GENERATIONS + "GetGeneration": MethodPolicy(Credentials.REQUIRED, Bulkhead.UNARY, Repeat.ALWAYS),
    _GENERATIONS + "ListGenerations": MethodPolicy(Credentials.REQUIRED, Bulkhead.UNARY, Repeat.ALWAYS),
    _GENERATIONS + "WatchGeneration": MethodPolicy(Credentials.REQUIRED, Bulkhead.STREAM, Repeat.ALWAYS),
    _GENERATIONS + "CancelGeneration": MethodPolicy(Credentials.REQUIRED, Bulkhead.UNARY, Repeat.ALWAYS),
    _USAGE + "SummarizeUsage": MethodPolicy(Credentials.REQUIRED, Bulkhead.UNARY, Repeat.ALWAYS),
    _USAGE + "GetQuota": MethodPolicy(Credentials.REQUIRED, Bulkhead.UNARY, Repeat.ALWAYS),
    _HEALTH + "Check": _HEALTH_CALL,
    _HEALTH + "List": _HEALTH_CALL,
    _HEALTH + "Watch": _HEALTH_CALL,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _REFLECTION_CALL,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _REFLECTION_CALL,
    **{
        f"{_CHANNELZ}Get{what}": _HEALTH_CALL
        for what in ("TopChannels", "Servers", "Server", "ServerSockets", "Channel", "Subchannel", "Socket")
    },
}
"""By the full name of the method, as gRPC gives it."""

OWN_SERVICES = tuple(dict.fromkeys(method.split("/")[1] for method in POLICIES if method.startswith("/pixyproxy.")))
"""The full names of PixyProxy's own services."""

_REFUSED = MethodPolicy(Credentials.IGNORED, None, Repeat.NEVER)


def policy_of(method: str) -> MethodPolicy:
    """Return the policy of a method by its full name; one that is not in the table is about to be refused."""
    return POLICIES.get(method, _REFUSED)
