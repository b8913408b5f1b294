"""Everything that can go wrong, as types that say what happened.

A message is written for the caller: it never holds driver text, a path, a prompt or a credential. The cause, which
may hold them, is chained with ``raise … from`` and reaches only the log. Which gRPC status an exception becomes is
decided in one place of the resource layer; nothing here knows of it.

Author: djjay
Date: 2026-11-20
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PixyProxyException(Exception):
    """The base of all exceptions that PixyProxy raises on purpose.

    Attributes:
        message: one or two sentences for people, free of secrets and of internals.
        retry_after: seconds after which trying again makes sense, or None where it does not or is not known.
        diagnosis: for whoever runs the server: what is wrong, and which settings to check. Callers never see it. Empty
            where the message says everything.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, diagnosis: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.diagnosis = diagnosis


def for_log(error: Exception) -> str:
    """Return what an error says, and for the operator the file that the system named as its cause."""
    return f"{error} ({error.__cause__})" if isinstance(error.__cause__, OSError) else str(error)


class ConfigurationError(PixyProxyException):
    """A setting is missing or wrong, so that the server cannot start; the message names the setting."""


# --- The request -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FieldViolation:
    """One field of a request that breaks a rule.

    Attributes:
        field: the field's path as the API spells it, such as ``tags[3]`` or ``options.size``.
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
    """The bytes of the request are not a message of the type that the method takes."""


class UnknownMethodError(PixyProxyException):
    """The server has no such method."""


class OffsetOutOfRangeError(PixyProxyException):
    """A read was asked to start beyond the last byte."""


class RequestIdReusedError(PixyProxyException):
    """The author has used this request id for a different request before."""


class TooBusyError(PixyProxyException):
    """A limit of our own is reached; the call was refused before anything was done for it."""


# --- Who is calling --------------------------------------------------------------------------------------------------


class CredentialsMissingError(PixyProxyException):
    """The call needs credentials and brought none."""

    def __init__(self, message: str = "Sign in with HTTP Basic credentials in the metadata key authorization.") -> None:
        super().__init__(message)


class CredentialsInvalidError(PixyProxyException):
    """The credentials cannot be read, or no user has them."""


class TooManySignInsError(PixyProxyException):
    """Too many sign-ins failed; further ones are refused for a while."""


class NotYoursError(PixyProxyException):
    """The caller may see the image but not change it."""


# --- Stored things ---------------------------------------------------------------------------------------------------


class RecordNotFoundError(PixyProxyException):
    """There is no such record, or the caller may not know that there is."""


class ImageNotFoundError(RecordNotFoundError):
    """There is no such image, or the caller may not see it."""

    def __init__(self, guid: str) -> None:
        super().__init__("There is no such image, or you may not see it.")
        self.guid = guid


class GenerationNotFoundError(RecordNotFoundError):
    """There is no such generation, or the caller may not see it."""

    def __init__(self, name: str) -> None:
        super().__init__("There is no such generation, or you may not see it.")
        self.name = name


class AlreadySubmittedError(PixyProxyException):
    """The generation is not queued any more, and can no longer be cancelled."""


class GenerationCancelledError(PixyProxyException):
    """The generation was cancelled before it was submitted, and has cost nothing."""


class ConstraintViolationError(PixyProxyException):
    """A record would break a rule that the database keeps, such as a unique name."""


class ConflictError(PixyProxyException):
    """Two changes got in each other's way; nothing was changed, and the call may be made again."""


class DBConnectionError(PixyProxyException):
    """The database cannot be reached or did not answer in time."""


class StorageFullError(PixyProxyException):
    """There is no room left for image bytes."""


class StorageUnavailableError(PixyProxyException):
    """The store of image bytes cannot be reached, does not answer, or fails."""


class StorageMisconfiguredError(StorageUnavailableError):
    """The store of image bytes refuses our credentials, has no such bucket, or is addressed wrongly."""


class ContentDamagedError(PixyProxyException):
    """The stored bytes of an image are missing or are not the bytes that were stored."""


# --- The provider ----------------------------------------------------------------------------------------------------


class ProviderError(PixyProxyException):
    """The image provider did not deliver.

    Attributes:
        may_have_billed: True where the request may have reached the provider and been carried out; it must then
            never be sent again by us.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, may_have_billed: bool = False) -> None:
        super().__init__(message, retry_after=retry_after)
        self.may_have_billed = may_have_billed


class PromptRefusedError(ProviderError):
    """The provider's moderation refuses the prompt.

    Attributes:
        stage: where it was refused, such as ``input`` or ``output``; empty where the provider did not say.
        categories: what for, such as ``("violence",)``.
    """

    def __init__(self, message: str, *, stage: str = "", categories: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.stage = stage
        self.categories = tuple(categories)


class ProviderRequestInvalidError(ProviderError):
    """The provider refuses a parameter of the request.

    Attributes:
        field: the field's path as our API spells it, such as ``options.size``.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class ProviderRateLimitedError(ProviderError):
    """The provider asks us to slow down."""


class ProviderQuotaError(ProviderError):
    """The provider's account is out of money or over its spending limit."""


class ProviderMisconfiguredError(ProviderError):
    """The provider refuses our key, our organisation or the configured model."""


class ProviderModelUnknownError(ProviderMisconfiguredError):
    """The provider has no such model, or not for us."""


class ProviderUnavailableError(ProviderError):
    """The provider cannot be reached, or answers with an error of its own or with something unusable."""


class CallerGoneError(PixyProxyException):
    """Nobody waited any more for a generation that was not submitted yet; it was given up and cost nothing."""


class UnreadableAnswerError(ProviderUnavailableError):
    """The provider answered with a success from which no image can be read; it may have billed.

    Attributes:
        body: the answer as it came, for the operator alone.
    """

    def __init__(self, message: str, *, body: bytes) -> None:
        super().__init__(message, may_have_billed=True)
        self.body = body


class ProviderCircuitOpenError(ProviderUnavailableError):
    """The provider failed so often lately that it is not asked for a while."""


class ProviderTimeoutError(ProviderError):
    """The provider took longer than the caller or the server would wait."""


class OutcomeUnknownError(ProviderError):
    """The request was sent, and a cut or a crash left it unknown whether an image was made and billed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, may_have_billed=True)
