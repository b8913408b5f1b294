"""Which gRPC status and which details each exception becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from google.protobuf import any as any_
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from pixyproxy.core import exceptions as exc

DOMAIN = "pixyproxy"
# An error travels in trailing metadata, of which clients take 8 KiB by default: the message percent-encoded, and once
# more, with the details, in base64. Of more violations than fit, the first ones are reported.
_MAX_MESSAGE_LENGTH = 1000
_MAX_VIOLATION_BYTES = 2500
INTERNAL_MESSAGE = "Something went wrong on our side. Quote the x-request-id when you report it."


@dataclass(frozen=True)
class Rule:
    """What one kind of exception becomes.

    Attributes:
        code: the number of the gRPC status code.
        reason: what ``ErrorInfo`` gives as the reason.
        metadata: makes what ``ErrorInfo`` gives beside it.
        details: makes further details.
    """

    code: int
    reason: str
    metadata: Callable[[Any], dict[str, str]] = field(default=lambda _: {})
    details: Callable[[Any], list[Message]] = field(default=lambda _: [])


def _bad_request(error: exc.InvalidFieldError) -> list[Message]:
    bad_request = error_details_pb2.BadRequest()
    for violation in error.violations:
        bad_request.field_violations.add(field=violation.field, description=violation.description)
        if bad_request.ByteSize() > _MAX_VIOLATION_BYTES:
            break
    return [bad_request]


def _bad_parameter(error: exc.ProviderRequestInvalidError | exc.PriceUnknownError) -> list[Message]:
    return _bad_request(exc.InvalidFieldError.of(error.field, error.message))


def _resource(error: exc.ImageNotFoundError | exc.GenerationNotFoundError) -> list[Message]:
    kind, name = ("Image", error.guid) if isinstance(error, exc.ImageNotFoundError) else ("Generation", error.name)
    return [
        error_details_pb2.ResourceInfo(
            resource_type=f"pixyproxy.v1.{kind}", resource_name=name, description=error.message
        )
    ]


def _input_field(error: exc.ImageNotFoundError | exc.ContentDamagedError) -> dict[str, str]:
    return {"field": error.field} if error.field else {}


def _quota(error: exc.ProviderQuotaError | exc.QuotaExhaustedError) -> list[Message]:
    subject = f"user:{error.author}" if isinstance(error, exc.QuotaExhaustedError) else "provider account"
    violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=error.message)
    return [error_details_pb2.QuotaFailure(violations=[violation])]


def _refusal(error: exc.PromptRefusedError) -> dict[str, str]:
    known = {"stage": error.stage, "categories": ",".join(error.categories)}
    return {name: value for name, value in known.items() if value}


# An exception takes the rule of the nearest of its classes that has one.
RULES: dict[type[BaseException], Rule] = {
    exc.InvalidFieldError: Rule(code_pb2.INVALID_ARGUMENT, "INVALID_FIELD", details=_bad_request),
    exc.MalformedRequestError: Rule(code_pb2.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
    exc.UnknownMethodError: Rule(code_pb2.UNIMPLEMENTED, "METHOD_UNKNOWN"),
    exc.ServerStoppingError: Rule(code_pb2.UNAVAILABLE, "SERVER_STOPPING"),
    exc.OffsetOutOfRangeError: Rule(code_pb2.OUT_OF_RANGE, "OFFSET_OUT_OF_RANGE"),
    exc.RequestIdReusedError: Rule(code_pb2.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
    exc.TooBusyError: Rule(code_pb2.RESOURCE_EXHAUSTED, "TOO_BUSY"),
    exc.QuotaExhaustedError: Rule(
        code_pb2.RESOURCE_EXHAUSTED, "QUOTA_EXHAUSTED", metadata=lambda error: {"quota": error.quota}, details=_quota
    ),
    exc.PriceUnknownError: Rule(code_pb2.INVALID_ARGUMENT, "INVALID_FIELD", details=_bad_parameter),
    exc.CredentialsMissingError: Rule(code_pb2.UNAUTHENTICATED, "CREDENTIALS_MISSING"),
    exc.CredentialsInvalidError: Rule(code_pb2.UNAUTHENTICATED, "CREDENTIALS_INVALID"),
    exc.TooManySignInsError: Rule(code_pb2.RESOURCE_EXHAUSTED, "TOO_MANY_SIGN_INS"),
    exc.NotYoursError: Rule(code_pb2.PERMISSION_DENIED, "NOT_YOURS"),
    exc.ImageNotFoundError: Rule(code_pb2.NOT_FOUND, "IMAGE_NOT_FOUND", metadata=_input_field, details=_resource),
    exc.GenerationNotFoundError: Rule(code_pb2.NOT_FOUND, "GENERATION_NOT_FOUND", details=_resource),
    exc.AlreadySubmittedError: Rule(code_pb2.FAILED_PRECONDITION, "ALREADY_SUBMITTED"),
    exc.GenerationCancelledError: Rule(code_pb2.CANCELLED, "GENERATION_CANCELLED"),
    exc.ConflictError: Rule(code_pb2.ABORTED, "CONFLICT"),
    exc.DBConnectionError: Rule(code_pb2.UNAVAILABLE, "DATABASE_UNAVAILABLE"),
    exc.StorageFullError: Rule(code_pb2.RESOURCE_EXHAUSTED, "STORAGE_FULL"),
    exc.StorageUnavailableError: Rule(code_pb2.UNAVAILABLE, "STORAGE_UNAVAILABLE"),
    exc.StorageMisconfiguredError: Rule(code_pb2.FAILED_PRECONDITION, "STORAGE_MISCONFIGURED"),
    exc.ContentUnreadableError: Rule(code_pb2.DATA_LOSS, "CONTENT_DAMAGED"),
    exc.ContentDamagedError: Rule(code_pb2.DATA_LOSS, "CONTENT_DAMAGED", metadata=_input_field),
    exc.PromptRefusedError: Rule(code_pb2.FAILED_PRECONDITION, "PROMPT_REFUSED", metadata=_refusal),
    exc.ProviderRequestInvalidError: Rule(code_pb2.INVALID_ARGUMENT, "INVALID_FIELD", details=_bad_parameter),
    exc.ProviderRateLimitedError: Rule(code_pb2.RESOURCE_EXHAUSTED, "PROVIDER_RATE_LIMITED"),
    exc.ProviderQuotaError: Rule(code_pb2.RESOURCE_EXHAUSTED, "PROVIDER_QUOTA", details=_quota),
    exc.ProviderMisconfiguredError: Rule(code_pb2.FAILED_PRECONDITION, "PROVIDER_MISCONFIGURED"),
    exc.ProviderUnavailableError: Rule(code_pb2.UNAVAILABLE, "PROVIDER_UNAVAILABLE"),
    exc.ProviderTimeoutError: Rule(code_pb2.DEADLINE_EXCEEDED, "PROVIDER_TIMEOUT"),
    exc.CallerGoneError: Rule(code_pb2.CANCELLED, "GENERATION_CANCELLED"),
    exc.OutcomeUnknownError: Rule(code_pb2.FAILED_PRECONDITION, "OUTCOME_UNKNOWN"),
    BaseException: Rule(code_pb2.INTERNAL, "INTERNAL"),
}
# These always carry RetryInfo.
_DEFAULT_RETRY_SECONDS: dict[type[BaseException], float] = {
    exc.TooBusyError: 1.0,
    exc.TooManySignInsError: 60.0,
    exc.ProviderRateLimitedError: 10.0,
    exc.DBConnectionError: 1.0,
    exc.StorageUnavailableError: 1.0,
    exc.ServerStoppingError: 1.0,
}


def is_foreseen(error: BaseException) -> bool:
    """Tell whether an exception has a status of its own. Then its message is for the caller."""
    return _rule_of(error).reason != "INTERNAL"


def code_of(error: BaseException) -> str:
    """Return the name of the status code for an exception."""
    return str(code_pb2.Code.Name(_rule_of(error).code))


def reason_of(error: BaseException) -> str:
    """Return the reason for an exception, one of those in ``RULES``."""
    return _rule_of(error).reason


def metadata_of(error: BaseException) -> dict[str, str]:
    """Return what ``ErrorInfo`` gives beside the reason of an exception."""
    return _rule_of(error).metadata(error)


def message_of(error: BaseException) -> str:
    """Return the message for callers, which says nothing of what was not foreseen."""
    message = error.message if isinstance(error, exc.PixyProxyException) and is_foreseen(error) else INTERNAL_MESSAGE
    return message if len(message) <= _MAX_MESSAGE_LENGTH else message[:_MAX_MESSAGE_LENGTH] + " ..."


def retry_delay_of(error: BaseException) -> timedelta | None:
    """Return after what time, in whole milliseconds, a new attempt makes sense, or None."""
    seconds = getattr(error, "retry_after", None) or _DEFAULT_RETRY_SECONDS.get(type(error))
    return None if seconds is None else timedelta(milliseconds=int(seconds * 1000))


def status_of(error: BaseException, call_id: str) -> status_pb2.Status:
    """Return the status for an exception, with all its details."""
    rule = _rule_of(error)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=rule.reason, domain=DOMAIN, metadata=rule.metadata(error)),
        error_details_pb2.RequestInfo(request_id=call_id),
        *rule.details(error),
        *_retry_info(error),
    ]
    return status_pb2.Status(code=rule.code, message=message_of(error), details=map(any_.pack, details))


def _rule_of(error: BaseException) -> Rule:
    return next(RULES[kind] for kind in type(error).__mro__ if kind in RULES)


def _retry_info(error: BaseException) -> list[Message]:
    delay = retry_delay_of(error)
    return [] if delay is None else [error_details_pb2.RetryInfo(retry_delay=delay)]
