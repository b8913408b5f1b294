"""All exceptions.

A message is for the caller: it contains no driver text, path, prompt or credential. The cause, which may contain them,
is chained with ``raise … from`` and reaches only the log. The resource layer maps exceptions to gRPC statuses.

Author: djjay
Date: 2026-11-20
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PixyProxyException(Exception):
    """The base of all exceptions that PixyProxy raises on purpose.

    Attributes:
        message: one or two sentences for people, without secrets or internals.
        retry_after: seconds after which a retry may succeed, or None if that is unknown.
        diagnosis: for the operator: what is wrong, and which settings to check; empty if the message says everything.
            Callers never see it.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, diagnosis: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.diagnosis = diagnosis


def for_log(error: Exception) -> str:
    """Return the text of an error, with that of the system error that caused it."""
    return f"{error} ({error.__cause__})" if isinstance(error.__cause__, OSError) else str(error)


class ConfigurationError(PixyProxyException):
    """A setting is missing or wrong; the message names it. The server cannot start."""


# --- The request -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FieldViolation:
    """One field of a request that breaks a rule.

    Attributes:
        field: the field's path in the API, such as ``tags[3]`` or ``options.size``.
        description: the rule, with its limit.
    """

    field: str
    description: str


class InvalidFieldError(PixyProxyException):
    """At least one field of the request is missing or wrong."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        super().__init__("; ".join(f"{violation.field}: {violation.description}" for violation in violations))
        self.violations = tuple(violations)

    @classmethod
    def of(cls, field: str, description: str) -> InvalidFieldError:
        """Make the exception for a single field."""
        return cls([FieldViolation(field, description)])


class MalformedRequestError(PixyProxyException):
    """The bytes of the request are not a message of the method's request type."""


class ServerStoppingError(PixyProxyException):
    """The server is stopping; another server continues what the call waits for."""


class UnknownMethodError(PixyProxyException):
    """The server has no such method."""


class OffsetOutOfRangeError(PixyProxyException):
    """The offset of a read is beyond the last byte.

    Attributes:
        size: the number of bytes that there are.
    """

    def __init__(self, offset: int, size: int) -> None:
        super().__init__(f"read_offset is {offset:,}, beyond the image's {size:,} bytes.")
        self.size = size


class RequestIdReusedError(PixyProxyException):
    """The author has used the request id for a different request."""

    def __init__(self) -> None:
        super().__init__("This request_id was used for another request; use a new one for a new request.")


class TooBusyError(PixyProxyException):
    """A limit of the server is reached; nothing was done for the call."""


class QuotaExhaustedError(PixyProxyException):
    """A quota of the author is used up, or less than the request may cost; nothing was submitted.

    Attributes:
        quota: the name of the quota.
        author: the username of the author.
    """

    def __init__(self, message: str, *, quota: str, author: str, retry_after: float | None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.quota = quota
        self.author = author


class PriceUnknownError(PixyProxyException):
    """The costs of the author are limited, and the model of the request has no price.

    Attributes:
        field: the field of the request that names the model.
    """

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model {model} cannot be used: your costs are limited, and the server's price list has no price for "
            "it. Choose another model."
        )
        self.field = "options.model"


# --- Credentials -----------------------------------------------------------------------------------------------------


class CredentialsMissingError(PixyProxyException):
    """The call needs credentials and has none."""

    def __init__(self) -> None:
        super().__init__("Sign in with HTTP Basic credentials in the metadata key authorization.")


class CredentialsInvalidError(PixyProxyException):
    """The credentials are malformed, or no user has them."""


class TooManySignInsError(PixyProxyException):
    """Too many sign-ins have failed; further ones are refused for a while."""


class NotYoursError(PixyProxyException):
    """The caller may see the image but not change it."""


# --- Database and image store ----------------------------------------------------------------------------------------


class RecordNotFoundError(PixyProxyException):
    """There is no such record, or the caller may not see it."""


class ImageNotFoundError(RecordNotFoundError):
    """There is no such image, or the caller may not see it.

    Attributes:
        guid: the image's guid.
        field: the field of the request that has the guid, such as ``inputs[2]``; empty if the call is about the image.
    """

    def __init__(
        self, guid: str, field: str = "", problem: str = "There is no such image, or you may not see it."
    ) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.guid = guid
        self.field = field


class GenerationNotFoundError(RecordNotFoundError):
    """There is no such generation, or the caller may not see it."""

    def __init__(self, name: str) -> None:
        super().__init__("There is no such generation, or you may not see it.")
        self.name = name


class AlreadySubmittedError(PixyProxyException):
    """The generation is not queued any more, and can no longer be cancelled."""


class GenerationCancelledError(PixyProxyException):
    """The generation was cancelled before it was submitted, and has cost nothing."""

    @classmethod
    def of_removed_user(cls) -> GenerationCancelledError:
        """Return the error for the generation of a user who was removed."""
        return cls("The user was removed before the request was submitted; nothing was generated.")


class ConstraintViolationError(PixyProxyException):
    """A record would violate a constraint of the database, such as a unique name."""


class ConflictError(PixyProxyException):
    """Two transactions conflicted; nothing was changed, and the call may be repeated."""


class DBConnectionError(PixyProxyException):
    """The database cannot be reached or did not answer in time."""


class StorageFullError(PixyProxyException):
    """There is no space left for image bytes."""


class StorageUnavailableError(PixyProxyException):
    """The image store cannot be reached, does not answer, or fails."""


class StorageMisconfiguredError(StorageUnavailableError):
    """The image store refuses the credentials, is read-only, has no such bucket, or its address is wrong."""


class ContentUnreadableError(PixyProxyException):
    """The stored bytes of an image cannot be read. They may be undamaged, so they must not count as missing."""


class ContentDamagedError(ContentUnreadableError):
    """The stored bytes of an image are missing or do not match their SHA-256.

    Attributes:
        field: the field of the request that has the image's guid, such as ``inputs[2]``; empty if the call is about it.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


# --- The provider ----------------------------------------------------------------------------------------------------


class ProviderError(PixyProxyException):
    """The image provider did not return an image.

    Attributes:
        may_have_billed: whether the provider may have executed the request. If so, it must never be submitted again.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, may_have_billed: bool = False) -> None:
        super().__init__(message, retry_after=retry_after)
        self.may_have_billed = may_have_billed


class PromptRefusedError(ProviderError):
    """The provider's moderation refuses the prompt.

    Attributes:
        stage: ``input``, ``output`` or the like; empty if unknown.
        categories: the reasons, such as ``("violence",)``.
    """

    def __init__(self, message: str, *, stage: str = "", categories: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.stage = stage
        self.categories = tuple(categories)


class ProviderRequestInvalidError(ProviderError):
    """The provider refuses a parameter of the request.

    Attributes:
        field: the field's path in PixyProxy's API, such as ``options.size``.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class ProviderRateLimitedError(ProviderError):
    """The provider's rate limit is reached."""


class ProviderQuotaError(ProviderError):
    """The provider's account is out of money or over its spending limit."""


class ProviderMisconfiguredError(ProviderError):
    """The provider refuses the server's key, organisation or configured model."""


class ProviderModelUnknownError(ProviderMisconfiguredError):
    """The provider has no such model for the server's account."""


class ProviderUnavailableError(ProviderError):
    """The provider cannot be reached, fails, or sends an unusable answer."""


class InputUnreadableError(PixyProxyException):
    """An input of a generation could not be read to its end, so that the provider has not received the whole request.

    Attributes:
        cause: why.
    """

    def __init__(self, cause: PixyProxyException) -> None:
        super().__init__(cause.message)
        self.cause = cause


class CallerGoneError(PixyProxyException):
    """The generation was given up before it was submitted, because no call waited for it; it cost nothing."""


class UnreadableAnswerError(ProviderUnavailableError):
    """The provider sent a successful answer without a readable image, and may have billed for it.

    Attributes:
        body: the answer, for the operator only.
    """

    def __init__(self, message: str, *, body: bytes) -> None:
        super().__init__(message, may_have_billed=True)
        self.body = body


class ProviderCircuitOpenError(ProviderUnavailableError):
    """The circuit breaker is open, because the provider has failed repeatedly."""


class ProviderTimeoutError(ProviderError):
    """The provider took longer than the timeout of the call or of the server."""


class OutcomeUnknownError(ProviderError):
    """The request was submitted, and it is unknown whether the provider generated and billed an image."""

    def __init__(self, message: str) -> None:
        super().__init__(message, may_have_billed=True)

    @classmethod
    def after(cls, what: str) -> OutcomeUnknownError:
        """Return the error after something that has happened, with what it means for the caller."""
        return cls(
            f"{what} Whether the provider generated and billed an image is unknown. To try again, and perhaps pay "
            "again, use a new request_id."
        )
