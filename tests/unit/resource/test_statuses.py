"""Which status each exception becomes, and what goes with it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2

from pixyproxy.core import exceptions as exc
from pixyproxy.resource.statuses import INTERNAL_MESSAGE, is_foreseen, status_of

# These never reach the one handler: the bases, and what only keeps the server from starting.
NOT_FOR_CALLERS = {exc.PixyProxyException, exc.ProviderError, exc.ConfigurationError}
# And these only where a layer forgot to translate them, which is our fault, not the caller's.
OUR_FAULT = {exc.RecordNotFoundError, exc.ConstraintViolationError, exc.InputUnreadableError}


def details_of(error: BaseException) -> dict[str, Any]:
    """Return the details of an error's status by the names of their types."""
    unpacked: dict[str, Message] = {}
    for detail in status_of(error, "the-id").details:
        name = detail.TypeName().rpartition(".")[2]
        unpacked[name] = getattr(error_details_pb2, name)()
        detail.Unpack(unpacked[name])
    return unpacked


def test_every_exception_has_a_status_of_its_own() -> None:
    kinds = {
        kind
        for _, kind in inspect.getmembers(exc, inspect.isclass)
        if issubclass(kind, exc.PixyProxyException) and kind not in NOT_FOR_CALLERS
    }

    foreseen = {kind for kind in kinds if is_foreseen(kind.__new__(kind))}

    assert kinds - foreseen == OUR_FAULT


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (exc.InvalidFieldError.of("guid", "is wrong"), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (exc.MalformedRequestError("m"), "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
        (exc.UnknownMethodError("m"), "UNIMPLEMENTED", "METHOD_UNKNOWN"),
        (exc.CredentialsMissingError(), "UNAUTHENTICATED", "CREDENTIALS_MISSING"),
        (exc.CredentialsInvalidError("m"), "UNAUTHENTICATED", "CREDENTIALS_INVALID"),
        (exc.TooManySignInsError("m"), "RESOURCE_EXHAUSTED", "TOO_MANY_SIGN_INS"),
        (exc.NotYoursError("m"), "PERMISSION_DENIED", "NOT_YOURS"),
        (exc.ImageNotFoundError("g"), "NOT_FOUND", "IMAGE_NOT_FOUND"),
        (exc.PromptRefusedError("m"), "FAILED_PRECONDITION", "PROMPT_REFUSED"),
        (exc.ProviderRequestInvalidError("options.size", "m"), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (exc.ProviderRateLimitedError("m"), "RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED"),
        (exc.TooBusyError("m"), "RESOURCE_EXHAUSTED", "TOO_BUSY"),
        (
            exc.QuotaExhaustedError("m", quota="images_per_day", author="ann", retry_after=60.0),
            "RESOURCE_EXHAUSTED",
            "QUOTA_EXHAUSTED",
        ),
        (exc.PriceUnknownError("m"), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (exc.ProviderQuotaError("m"), "RESOURCE_EXHAUSTED", "PROVIDER_QUOTA"),
        (exc.ProviderMisconfiguredError("m"), "FAILED_PRECONDITION", "PROVIDER_MISCONFIGURED"),
        (exc.ProviderModelUnknownError("m"), "FAILED_PRECONDITION", "PROVIDER_MISCONFIGURED"),
        (exc.ProviderUnavailableError("m"), "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
        (exc.ProviderTimeoutError("m"), "DEADLINE_EXCEEDED", "PROVIDER_TIMEOUT"),
        (exc.RequestIdReusedError(), "ALREADY_EXISTS", "REQUEST_ID_REUSED"),
        (exc.OutcomeUnknownError("m"), "FAILED_PRECONDITION", "OUTCOME_UNKNOWN"),
        (exc.OffsetOutOfRangeError(9, 5), "OUT_OF_RANGE", "OFFSET_OUT_OF_RANGE"),
        (exc.DBConnectionError("m"), "UNAVAILABLE", "DATABASE_UNAVAILABLE"),
        (exc.ConflictError("m"), "ABORTED", "CONFLICT"),
        (exc.StorageFullError("m"), "RESOURCE_EXHAUSTED", "STORAGE_FULL"),
        (exc.StorageUnavailableError("m"), "UNAVAILABLE", "STORAGE_UNAVAILABLE"),
        (exc.ServerStoppingError("m"), "UNAVAILABLE", "SERVER_STOPPING"),
        (exc.StorageMisconfiguredError("m"), "FAILED_PRECONDITION", "STORAGE_MISCONFIGURED"),
        (exc.ContentDamagedError("m"), "DATA_LOSS", "CONTENT_DAMAGED"),
        (exc.ContentUnreadableError("m"), "DATA_LOSS", "CONTENT_DAMAGED"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_code_reason_and_the_details_that_are_always_there(
    error: exc.PixyProxyException, code: str, reason: str
) -> None:
    status = status_of(error, "the-id")
    details = details_of(error)

    assert status.code == code_pb2.Code.Value(code)
    assert status.message == error.message
    assert (details["ErrorInfo"].reason, details["ErrorInfo"].domain) == (reason, "pixyproxy")
    assert details["RequestInfo"].request_id == "the-id"


@pytest.mark.parametrize("error", [ValueError("secret"), exc.PixyProxyException("secret"), KeyError("secret")])
def test_what_is_not_foreseen_says_nothing_of_itself(error: Exception) -> None:
    status = status_of(error, "the-id")

    assert status.code == code_pb2.INTERNAL
    assert status.message == INTERNAL_MESSAGE
    assert b"secret" not in status.SerializeToString()
    assert details_of(error)["ErrorInfo"].reason == "INTERNAL"


def test_bad_request_names_every_field() -> None:
    error = exc.InvalidFieldError([exc.FieldViolation("a", "one"), exc.FieldViolation("b[2]", "two")])

    violations = details_of(error)["BadRequest"].field_violations

    assert [(violation.field, violation.description) for violation in violations] == [("a", "one"), ("b[2]", "two")]
    assert status_of(error, "").message == "a: one; b[2]: two"


def test_a_field_that_the_provider_refuses_is_named() -> None:
    (violation,) = details_of(exc.ProviderRequestInvalidError("options.size", "too big"))["BadRequest"].field_violations

    assert (violation.field, violation.description) == ("options.size", "too big")


def test_a_missing_image_is_named() -> None:
    resource = details_of(exc.ImageNotFoundError("the-guid"))["ResourceInfo"]

    assert (resource.resource_type, resource.resource_name) == ("pixyproxy.v1.Image", "the-guid")


def test_a_refused_prompt_says_where_and_why() -> None:
    info = details_of(exc.PromptRefusedError("m", stage="input", categories=("violence", "hate")))["ErrorInfo"]

    assert dict(info.metadata) == {"stage": "input", "categories": "violence,hate"}


def test_quota() -> None:
    (violation,) = details_of(exc.ProviderQuotaError("no money"))["QuotaFailure"].violations

    assert violation.description == "no money"


@pytest.mark.parametrize(
    "kind", [exc.TooBusyError, exc.TooManySignInsError, exc.ProviderRateLimitedError, exc.DBConnectionError]
)
def test_who_should_come_back_is_always_told_when(kind: type[exc.PixyProxyException]) -> None:
    assert details_of(kind("m"))["RetryInfo"].retry_delay.ToMilliseconds() > 0
    assert details_of(kind("m", retry_after=2.5))["RetryInfo"].retry_delay.ToMilliseconds() == 2500


def test_others_are_told_only_where_it_is_known() -> None:
    assert "RetryInfo" not in details_of(exc.ProviderUnavailableError("m"))
    assert details_of(exc.ProviderUnavailableError("m", retry_after=3))["RetryInfo"].retry_delay.seconds == 3
