"""What an answer may be, whatever was sent: the statuses that docs/api.md lists, and those of gRPC's own core."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.support.rpc import Refusal, refusal_of

_API = Path(__file__).parents[2] / "docs" / "api.md"
_ROW = re.compile(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \|[^|]*\|([^|]*)\|", re.MULTILINE)
_DETAIL = re.compile(r"`(BadRequest|RetryInfo|ResourceInfo|QuotaFailure)`(?! where)")


@dataclass(frozen=True)
class Documented:
    """What docs/api.md says of a reason: its code, and the details that always come with it."""

    code: grpc.StatusCode
    details: frozenset[str]


def _documented() -> Mapping[str, Documented]:
    return {
        reason: Documented(grpc.StatusCode[code], frozenset(_DETAIL.findall(details)))
        for code, reason, details in _ROW.findall(_API.read_text(encoding="utf-8"))
    }


DOCUMENTED = _documented()


@dataclass(frozen=True)
class CoreStatus:
    """A status that gRPC itself answers, without details, before or instead of our code."""

    code: grpc.StatusCode
    message: str
    why: str


# Found by fuzzing, and looked up: none of these comes from PixyProxy's code, which cannot change them.
CORE_STATUSES = (
    CoreStatus(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        r"(.*received metadata size exceeds (soft|hard) limit.*)?",
        "More metadata than the 8 KiB (from there on at random) or 16 KiB (always) that the core takes; the message "
        "names all headers, and is left out if it is too long.",
    ),
    CoreStatus(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        r"SERVER: Received message larger than max \(\d+ vs\. \d+\)",
        "A message over 4 MiB, by its length prefix.",
    ),
    CoreStatus(
        grpc.StatusCode.INTERNAL,
        r"Failed parsing HTTP/2 \(.*\)",
        "Frames or a header block that HTTP/2 does not allow; the calls of the connection end with it.",
    ),
    CoreStatus(
        grpc.StatusCode.UNAVAILABLE,
        r"Failed parsing HTTP/2 \(.*\)|Socket closed( \(GOAWAY received; .*\))?",
        "The same for further calls on that connection, or the caller closed it before its call had ended.",
    ),
    CoreStatus(
        grpc.StatusCode.INTERNAL,
        r"Error parsing '.*' metadata(: illegal base64 encoding)?",
        "A header that gRPC gives a meaning, such as grpc-timeout or te, with a value that has none; or no base64.",
    ),
    CoreStatus(
        grpc.StatusCode.INTERNAL,
        r"(Illegal header key: .*|Duplicate '.*' header received|Metadata keys cannot be zero length)?",
        "A header name that HTTP/2 does not allow (one that is too long is not said), or a pseudo header twice.",
    ),
    CoreStatus(
        grpc.StatusCode.INTERNAL,
        r"Compression bit set but no encoding configured|Decompression failed due to (zlib|data) error",
        "A message that says it is compressed and is not, or not as its headers say.",
    ),
    CoreStatus(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        r"Decompressed message larger than max",
        "A message that unpacks to more than 4 MiB.",
    ),
    CoreStatus(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        r"Deadline Exceeded",
        "The deadline in grpc-timeout passed before our code had an answer.",
    ),
    CoreStatus(
        grpc.StatusCode.CANCELLED,
        r"CANCELLED",
        "An empty :path, which gRPC for Python drops without a word.",
    ),
    CoreStatus(
        grpc.StatusCode.NOT_FOUND,
        r"",
        "What gRPC's health service, whose contract this is, says of a service that it does not know.",
    ),
)


class UnexpectedAnswerError(AssertionError):
    """An answer that must never come."""


def core_status_of(code: grpc.StatusCode, message: str) -> CoreStatus | None:
    """The entry of a status that gRPC's core gives, or None."""
    return next(
        (known for known in CORE_STATUSES if known.code is code and re.fullmatch(known.message, message, re.DOTALL)),
        None,
    )


def check_documented(code: grpc.StatusCode, reason: str, details: frozenset[str]) -> None:
    """Check that a refusal of ours is a documented one, with all its details, and no INTERNAL."""
    known = DOCUMENTED.get(reason)
    if known is None or known.code is not code or code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        raise UnexpectedAnswerError(f"not a documented status: {code.name} {reason}")
    if not known.details <= details:
        raise UnexpectedAnswerError(f"{reason} must come with {', '.join(known.details - details)}")


def read_refusal(error: Any) -> Refusal | CoreStatus:
    """Read a failed call, and check that it may fail so."""
    if rpc_status.from_call(error) is None:
        core_status = core_status_of(error.code(), error.details())
        if core_status is None:
            raise UnexpectedAnswerError(f"a status without details: {error.code()} {error.details()!r}")
        return core_status
    refused = refusal_of(error)
    present = frozenset(
        name
        for name in ("BadRequest", "RetryInfo", "ResourceInfo", "QuotaFailure")
        for detail in refused.details
        if detail.Is(getattr(error_details_pb2, name).DESCRIPTOR)
    )
    check_documented(refused.code, refused.reason, present)
    return refused
