"""What can go wrong with a call, as types that say what a caller can do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2 as details
from grpc_status import rpc_status

_DOMAIN = "pixyproxy"
_REQUEST_ID_KEY = "x-request-id"

AnyDetail = TypeVar("AnyDetail", bound=Message)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that breaks a rule, and the rule."""

    field: str
    description: str


class PixyProxyClientError(Exception):
    """A call failed. Errors that only the server's operator can solve have this class itself.

    Attributes:
        message: one or two sentences for people.
        reason: the server's reason, such as ``STORAGE_FULL`` (docs/api.md lists all); empty if there is none.
        code: the name of the gRPC status code, such as ``NOT_FOUND``; empty if there was no call.
        violations: the invalid fields.
        retry_after: seconds after which to try again, or None.
        request_id: the id of the call in the server's log; empty if the server did not receive the call.
        metadata: details of the reason, such as the ``categories`` of a refusal.
        creation_request_id: for a failed ``create_image`` or ``import_image``, the ``request_id`` to repeat it with.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: str = "",
        violations: Iterable[FieldViolation] = (),
        retry_after: float | None = None,
        request_id: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = code
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.request_id = request_id
        self.metadata = dict(metadata or {})
        self.creation_request_id = ""


class InvalidRequestError(PixyProxyClientError):
    """A field of the request is invalid, or the provider refuses the prompt. Change the request."""


class CredentialsError(PixyProxyClientError):
    """The credentials are missing or wrong, or do not allow the call."""


class NotFoundError(PixyProxyClientError):
    """There is no such image or generation, or the caller may not see it."""


class GenerationCancelledError(PixyProxyClientError):
    """The generation ended before it was submitted and has cost nothing.

    To generate the image after all, repeat the call; if the generation was cancelled, with a new request id.
    """


class OutcomeUnknownError(PixyProxyClientError):
    """It is unknown whether the provider made, and billed, the image. A new request id may cost again."""


class ContentDamagedError(PixyProxyClientError):
    """The bytes are not those of the image."""


class TryLaterError(PixyProxyClientError):
    """The same call may succeed later; for ``create_image``, with the same request id."""


class UnavailableError(TryLaterError):
    """The server, its database or the provider cannot be reached."""


class DeadlineExceededError(TryLaterError):
    """The call took longer than its timeout. The image may still be generated."""


_KINDS_BY_REASON: dict[str, type[PixyProxyClientError]] = {
    "PROMPT_REFUSED": InvalidRequestError,
    "REQUEST_ID_REUSED": InvalidRequestError,
    "ALREADY_SUBMITTED": InvalidRequestError,
    "GENERATION_CANCELLED": GenerationCancelledError,
    "OUTCOME_UNKNOWN": OutcomeUnknownError,
    "TOO_BUSY": TryLaterError,
    "TOO_MANY_SIGN_INS": TryLaterError,
    "PROVIDER_RATE_LIMITED": TryLaterError,
    "QUOTA_EXHAUSTED": TryLaterError,
}
_KINDS_BY_CODE: dict[grpc.StatusCode, type[PixyProxyClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.UNAUTHENTICATED: CredentialsError,
    grpc.StatusCode.PERMISSION_DENIED: CredentialsError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.DATA_LOSS: ContentDamagedError,
    grpc.StatusCode.ABORTED: TryLaterError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
}

# The codes of a proxy that has lost the connection to the server. Unlike these, the server's errors have a reason.
_LOST_ON_THE_WAY = frozenset({grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL})


def kind_of(code: grpc.StatusCode, reason: str) -> type[PixyProxyClientError]:
    """Return the type of the error with this code and reason."""
    return _KINDS_BY_REASON.get(reason) or _KINDS_BY_CODE.get(code, PixyProxyClientError)


def error_of(call: Any) -> PixyProxyClientError:
    """Return the error of a failed call."""
    code: grpc.StatusCode = call.code()
    packed = _details_of(call)
    info = _first(packed, details.ErrorInfo)
    reason = info.reason if info is not None and info.domain == _DOMAIN else ""
    retry = _first(packed, details.RetryInfo)
    kind = kind_of(code, reason)
    if info is None and code in _LOST_ON_THE_WAY:
        kind = UnavailableError
    return kind(
        call.details() or code.name,
        reason=reason,
        code=code.name,
        violations=[
            FieldViolation(violation.field, violation.description)
            for violation in (_first(packed, details.BadRequest) or details.BadRequest()).field_violations
        ],
        retry_after=None if retry is None else retry.retry_delay.ToMilliseconds() / 1000,
        request_id=next((str(value) for key, value in call.initial_metadata() or () if key == _REQUEST_ID_KEY), ""),
        metadata=None if info is None else info.metadata,
    )


def _details_of(call: Any) -> Iterable[Any]:
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):  # A proxy has changed the status or the details.
        return ()
    return () if status is None else status.details


def _first(packed: Iterable[Any], kind: type[AnyDetail]) -> AnyDetail | None:
    for detail in packed:
        unpacked = kind()
        if detail.Unpack(unpacked):
            return unpacked
    return None
