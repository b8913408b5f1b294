from __future__ import annotations

import inspect
from typing import Any

import pytest

from pixyproxy.core import exceptions
from pixyproxy.core.exceptions import (
    ConflictError,
    FieldViolation,
    ImageNotFoundError,
    InvalidFieldError,
    OutcomeUnknownError,
    PixyProxyException,
    PromptRefusedError,
    ProviderError,
    ProviderMisconfiguredError,
    ProviderModelUnknownError,
    ProviderRequestInvalidError,
    ProviderTimeoutError,
    RecordNotFoundError,
    UnreadableAnswerError,
)

ALL: list[type[Any]] = [
    kind
    for _, kind in inspect.getmembers(exceptions, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__ == exceptions.__name__
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_exception_is_one_of_ours_and_says_what_happened(kind: type[Exception]) -> None:
    assert issubclass(kind, PixyProxyException)
    assert kind.__doc__


def test_an_exception_carries_its_message_and_when_to_try_again() -> None:
    error = ConflictError("Two changes met.", retry_after=0.5)

    assert (str(error), error.message, error.retry_after) == ("Two changes met.", "Two changes met.", 0.5)
    assert ConflictError("Two changes met.").retry_after is None


def test_wrong_fields_are_all_named() -> None:
    violations = [FieldViolation("prompt", "is missing"), FieldViolation("tags[3]", "is too long")]

    error = InvalidFieldError(violations)

    assert error.violations == tuple(violations)
    assert error.message == "prompt: is missing; tags[3]: is too long"
    assert InvalidFieldError.of("guid", "is none").violations == (FieldViolation("guid", "is none"),)


def test_a_missing_image_is_a_missing_record_and_its_message_names_nothing() -> None:
    error = ImageNotFoundError("123e4567-e89b-42d3-a456-426614174000")

    assert isinstance(error, RecordNotFoundError)
    assert error.guid == "123e4567-e89b-42d3-a456-426614174000"
    assert error.guid not in error.message


def test_provider_errors_say_whether_they_may_have_cost_something() -> None:
    assert not ProviderTimeoutError("slow").may_have_billed
    assert ProviderTimeoutError("slow", may_have_billed=True).may_have_billed
    assert ProviderError("slow", retry_after=2).retry_after == 2
    assert OutcomeUnknownError("cut off").may_have_billed
    assert UnreadableAnswerError("no image", body=b"{}").may_have_billed
    assert not PromptRefusedError("no").may_have_billed
    assert not ProviderRequestInvalidError("options.size", "no").may_have_billed
    assert issubclass(ProviderModelUnknownError, ProviderMisconfiguredError)


def test_a_refused_prompt_says_where_and_what_for() -> None:
    error = PromptRefusedError("no", stage="input", categories=["violence", "self-harm"])

    assert (error.stage, error.categories) == ("input", ("violence", "self-harm"))
    assert (PromptRefusedError("no").stage, PromptRefusedError("no").categories) == ("", ())


def test_a_refused_parameter_is_named() -> None:
    error = ProviderRequestInvalidError("options.size", "The provider takes no such size.")

    assert (error.field, error.message) == ("options.size", "The provider takes no such size.")
