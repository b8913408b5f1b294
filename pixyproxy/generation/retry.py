"""When a failed generation is asked for again, and after how long."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    ProviderCircuitOpenError,
    ProviderError,
    ProviderRateLimitedError,
    ProviderUnavailableError,
)
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, ImageGenerator

MAX_RATE_LIMITED_ATTEMPTS = 4
MAX_UNAVAILABLE_ATTEMPTS = 3
MAX_DELAY = 60.0
BACKOFF_BASE = 0.5
BACKOFF_CAP = 8.0

_logger = logging.getLogger(__name__)


class RetryingGenerator:
    """Asks another generator again where that can neither bill twice nor keep the caller beyond its deadline.

    Only two errors are tried again: a rate limit, up to ``MAX_RATE_LIMITED_ATTEMPTS`` submissions in all, and a
    provider that is unavailable and has certainly not billed, up to ``MAX_UNAVAILABLE_ATTEMPTS``. The delay is the
    one that the provider names, and otherwise random up to a bound that doubles from ``BACKOFF_BASE`` seconds to
    ``BACKOFF_CAP``.
    """

    def __init__(
        self,
        generator: ImageGenerator,
        random_fraction: Callable[[], float] = random.random,
        on_retry: Callable[[ProviderError], object] = lambda _: None,
    ) -> None:
        """Wrap a generator.

        Args:
            generator: what makes the images; it is closed with this one.
            random_fraction: gives numbers from 0 to 1, of which the delays are made.
            on_retry: is told of the error before each further attempt.
        """
        self._generator = generator
        self._random_fraction = random_fraction
        self._on_retry = on_retry

    def generate(self, request: GenerationRequest, call: CallScope) -> GeneratedImage:
        """Make one image, in several attempts where that is safe.

        Raises:
            ProviderError: the last attempt's error, at once where waiting would outlast the caller.
        """
        attempt = 1
        while True:
            try:
                return self._generator.generate(request, call)
            except ProviderError as error:
                delay = self._delay(error, attempt)
                if delay is None or not _fits(delay, call):
                    raise
                _logger.info("attempt %d failed: %s; next one in %.1f s", attempt, type(error).__name__, delay)
                if not call.wait(delay):
                    raise
                self._on_retry(error)
            attempt += 1

    def close(self) -> None:
        """Close the wrapped generator."""
        self._generator.close()

    def _delay(self, error: ProviderError, attempt: int) -> float | None:
        """Return the seconds to wait after this attempt, or None where it must be the last one."""
        if attempt >= _max_attempts(error):
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= MAX_DELAY else None
        return self._random_fraction() * min(BACKOFF_CAP, BACKOFF_BASE * 2.0 ** (attempt - 1))


def _max_attempts(error: ProviderError) -> int:
    # An open circuit was not an attempt at all: its callers are told at once, not after its pause.
    if error.may_have_billed or isinstance(error, ProviderCircuitOpenError):
        return 1
    if isinstance(error, ProviderRateLimitedError):
        return MAX_RATE_LIMITED_ATTEMPTS
    return MAX_UNAVAILABLE_ATTEMPTS if isinstance(error, ProviderUnavailableError) else 1


def _fits(delay: float, call: CallScope) -> bool:
    remaining = call.remaining()
    return not call.is_over and (remaining is None or delay < remaining)
