"""Errors as text and back."""

from __future__ import annotations

import json

import pytest

from pixyproxy.core.error_records import from_record, to_record
from pixyproxy.core.exceptions import (
    OutcomeUnknownError,
    PixyProxyException,
    PromptRefusedError,
    ProviderRequestInvalidError,
    ProviderUnavailableError,
    StorageFullError,
)


@pytest.mark.parametrize(
    "error",
    [
        PixyProxyException("Plain ✓", retry_after=1.5),
        ProviderUnavailableError("down", retry_after=3, may_have_billed=True),
        PromptRefusedError("no", stage="input", categories=("violence", "self-harm")),
        ProviderRequestInvalidError("options.size", "too large"),
        OutcomeUnknownError("cut"),
        StorageFullError("full"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_back_as_it_was(error: PixyProxyException) -> None:
    copy = from_record(to_record(error))

    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in vars(error).items()} == vars(copy)
    assert to_record(error).isascii()


def test_an_error_that_only_a_later_release_knows_is_a_plain_one() -> None:
    record = json.dumps({"type": "LaterError", "message": "news", "retry_after": None, "detail": 1})

    error = from_record(record)

    assert type(error) is PixyProxyException
    assert error.message == "news"
