"""The retry policy for failed generations."""

from __future__ import annotations

import random
from collections.abc import Callable

from pixyproxy.core.exceptions import ProviderError, ProviderRateLimitedError, ProviderUnavailableError

MAX_RATE_LIMITED_ATTEMPTS = 4
MAX_UNAVAILABLE_ATTEMPTS = 3
MAX_DELAY = 60.0
BACKOFF_BASE = 0.5
BACKOFF_CAP = 8.0


def delay_before_retry(
    error: ProviderError, attempts: int, random_fraction: Callable[[], float] = random.random
) -> float | None:
    """Return the seconds to wait before a request is submitted again, or None if it must not be.

    Only requests that the provider has certainly not billed are retried, and only after two errors: a rate limit, up to
    ``MAX_RATE_LIMITED_ATTEMPTS`` submissions in all, and an unavailable provider, up to ``MAX_UNAVAILABLE_ATTEMPTS``.
    The delay is the one that the provider names; otherwise it is random, up to a bound that doubles from
    ``BACKOFF_BASE`` seconds to ``BACKOFF_CAP``.

    Args:
        error: why the last submission failed.
        attempts: how often the request was submitted.
        random_fraction: returns a random number from 0 to 1.
    """
    if attempts >= _max_attempts(error):
        return None
    if error.retry_after is not None:
        return error.retry_after if error.retry_after <= MAX_DELAY else None
    return random_fraction() * min(BACKOFF_CAP, BACKOFF_BASE * 2.0 ** (attempts - 1))


def _max_attempts(error: ProviderError) -> int:
    if error.may_have_billed:
        return 1
    if isinstance(error, ProviderRateLimitedError):
        return MAX_RATE_LIMITED_ATTEMPTS
    return MAX_UNAVAILABLE_ATTEMPTS if isinstance(error, ProviderUnavailableError) else 1
