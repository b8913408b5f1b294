"""Which failures are tried again, and after how long."""

from __future__ import annotations

from functools import partial

import pytest

from pixyproxy.core.exceptions import (
    OutcomeUnknownError,
    PromptRefusedError,
    ProviderError,
    ProviderMisconfiguredError,
    ProviderQuotaError,
    ProviderRateLimitedError,
    ProviderRequestInvalidError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from pixyproxy.generation.retry import delay_before_retry

delay = partial(delay_before_retry, random_fraction=lambda: 0.5)


def rate_limited(retry_after: float | None = None) -> ProviderRateLimitedError:
    return ProviderRateLimitedError("slow down", retry_after=retry_after)


def unavailable(retry_after: float | None = None) -> ProviderUnavailableError:
    return ProviderUnavailableError("down", retry_after=retry_after)


@pytest.mark.parametrize("seconds", [2.0, 7.5, 60.0])
def test_a_rate_limit_waits_as_long_as_the_provider_says(seconds: float) -> None:
    assert delay(rate_limited(seconds), 1) == seconds


def test_a_rate_limit_gives_up_after_four_submissions() -> None:
    delays = [delay(rate_limited(1), attempts) for attempts in range(1, 6)]
    assert delays == [1, 1, 1, None, None]


def test_a_delay_without_a_name_doubles_with_full_jitter() -> None:
    assert [delay(rate_limited(), attempts) for attempts in range(1, 4)] == [0.25, 0.5, 1.0]


def test_a_delay_without_a_name_has_an_upper_bound() -> None:
    longest = partial(delay_before_retry, random_fraction=lambda: 1.0)
    assert max(longest(rate_limited(), attempts) or 0.0 for attempts in range(1, 4)) <= 8.0


def test_a_provider_that_is_down_is_asked_three_times_in_all() -> None:
    assert [delay(unavailable(), attempts) for attempts in range(1, 5)] == [0.25, 0.5, None, None]
    assert delay(unavailable(3), 2) == 3


@pytest.mark.parametrize(
    "error",
    [
        ProviderUnavailableError("bad answer", may_have_billed=True),
        ProviderUnavailableError("bad answer", may_have_billed=True, retry_after=1),
        ProviderRateLimitedError("odd", may_have_billed=True, retry_after=1),
        ProviderTimeoutError("slow", may_have_billed=True),
        ProviderTimeoutError("slow"),
        OutcomeUnknownError("cut"),
        PromptRefusedError("no"),
        ProviderRequestInvalidError("options.size", "no"),
        ProviderQuotaError("poor", retry_after=1),
        ProviderMisconfiguredError("key"),
        ProviderError("other"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_cost_twice_or_cannot_help_is_never_tried_again(error: ProviderError) -> None:
    assert delay(error, 1) is None


def test_a_delay_beyond_a_minute_is_not_waited_for() -> None:
    assert delay(rate_limited(60.1), 1) is None
