"""Calls as tests make them: what came back, and what a refusal says in its google.rpc details."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from grpc_health.v1 import health_pb2_grpc
from grpc_status import rpc_status

from tests.support.servers import ANYBODY, Metadata

DOMAIN = "pixyproxy"
TIMEOUT = 60.0
"""Seconds that any call of a test may take, so that a hanging server fails a test and does not hang the run."""

AnyDetail = TypeVar("AnyDetail", bound=Message)


class UnexplainedError(AssertionError):
    """A call ended with a status without details: not by the server's will, or against its promise."""


@dataclass(frozen=True)
class Refusal:
    """An error as a client sees it.

    Attributes:
        code: the status code.
        message: the status message.
        reason: the reason in ErrorInfo.
        metadata: the metadata in ErrorInfo.
        call_id: the id in RequestInfo, which is that of the initial metadata.
        violations: the field violations of BadRequest: descriptions by field.
        retry_after: the seconds in RetryInfo, or None where there is none.
        resource: ResourceInfo, or None.
        quota: the subjects of QuotaFailure.
        details: all details, in their order.
    """

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    call_id: str
    violations: dict[str, str]
    retry_after: float | None
    resource: details.ResourceInfo | None
    quota: list[str]
    details: list[Any]

    @property
    def as_seen(self) -> tuple[Any, ...]:
        """Everything in it except the call id, for comparing two refusals."""
        others = [detail for detail in self.details if not detail.Is(details.RequestInfo.DESCRIPTOR)]
        return self.code, self.message, [(detail.type_url, detail.value) for detail in others]


def refusal(method: Any, request: Any, metadata: Metadata = ANYBODY, *, timeout: float | None = TIMEOUT) -> Refusal:
    """Make a call that must fail, and return how it did. A stream is read to its end."""
    try:
        answer = method(request, metadata=metadata, timeout=timeout)
        if hasattr(answer, "__iter__"):
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return refusal_of(error)
    raise AssertionError(f"the call was answered: {answer}")


def refusal_of(error: Any) -> Refusal:
    """Read a failed call, and check what every error must carry: ErrorInfo and RequestInfo, once each."""
    status = rpc_status.from_call(error)
    if status is None:
        raise UnexplainedError(f"the error has no details: {error}")
    info = _only(status.details, details.ErrorInfo)
    request_info = _only(status.details, details.RequestInfo)
    assert info is not None
    assert request_info is not None
    assert info.domain == DOMAIN
    assert request_info.request_id == call_id_of(error)
    bad_request = _only(status.details, details.BadRequest) or details.BadRequest()
    retry = _only(status.details, details.RetryInfo)
    quota = _only(status.details, details.QuotaFailure) or details.QuotaFailure()
    return Refusal(
        code=error.code(),
        message=error.details(),
        reason=info.reason,
        metadata=dict(info.metadata),
        call_id=request_info.request_id,
        violations={violation.field: violation.description for violation in bad_request.field_violations},
        retry_after=None if retry is None else retry.retry_delay.ToMilliseconds() / 1000,
        resource=_only(status.details, details.ResourceInfo),
        quota=[violation.subject for violation in quota.violations],
        details=list(status.details),
    )


def call_id_of(call: Any) -> str:
    """The call id in the initial metadata of a call."""
    ids = [value for key, value in call.initial_metadata() if key == "x-request-id"]
    assert len(ids) == 1, f"x-request-id in the initial metadata: {ids}"
    assert isinstance(ids[0], str)
    return ids[0]


def health_stub(channel: grpc.Channel) -> Any:
    """The standard health service over a channel."""
    return health_pb2_grpc.HealthStub(channel)


def raw_unary(channel: grpc.Channel, method: str) -> Callable[..., Any]:
    """A unary method that sends and gives bytes as they are."""
    return channel.unary_unary(method, request_serializer=None, response_deserializer=None)


def raw_stream(channel: grpc.Channel, method: str) -> Callable[..., Any]:
    """A method with a stream of answers that sends and gives bytes as they are."""
    return channel.unary_stream(method, request_serializer=None, response_deserializer=None)


def _only(packed: Iterable[Any], kind: type[AnyDetail]) -> AnyDetail | None:
    """The one detail of a kind, or None; two are a mistake."""
    found = []
    for detail in packed:
        if detail.Is(kind.DESCRIPTOR):
            unpacked = kind()
            assert detail.Unpack(unpacked)
            found.append(unpacked)
    assert len(found) <= 1, f"{kind.__name__} comes {len(found)} times"
    return found[0] if found else None
