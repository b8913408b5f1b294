"""The retry policy of both clients."""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

from pixyproxy.client.calls import Call
from pixyproxy.client.errors import PixyProxyClientError, UnavailableError

# For these reasons, the server has done nothing.
_NOTHING_DONE = frozenset({"TOO_BUSY", "CONFLICT"})
# The server has retried already, and may name a delay.
_PROVIDER_BUSY = frozenset({"PROVIDER_RATE_LIMITED", "PROVIDER_UNAVAILABLE"})
_JITTER = 0.25

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how fast failed calls are retried, within their timeout.

    A delay that the server names replaces the backoff.

    Attributes:
        attempts: the most attempts of a call, at least 1; None for as many as the timeout allows.
        unanswered_attempts: the most attempts as long as the server has never answered: the address may be wrong.
        first_backoff: the pause after the first failure, in seconds, with random jitter.
        max_backoff: the longest pause, in seconds.
        multiplier: the factor between two pauses.
    """

    attempts: int | None = None
    unanswered_attempts: int = 5
    first_backoff: float = 0.5
    max_backoff: float = 5.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if self.unanswered_attempts < 1 or (self.attempts is not None and self.attempts < 1):
            raise ValueError("A call has at least one attempt.")
        if self.first_backoff < 0 or self.max_backoff < 0 or self.multiplier < 1:
            raise ValueError("A backoff is at least 0 seconds, and does not shrink.")


class Attempts:
    """The attempts of one call, within one deadline."""

    def __init__(self, call: Call[Any], policy: RetryPolicy, answered: threading.Event, timeout: float | None) -> None:
        """Start the timeout.

        Args:
            call: the call.
            policy: the retry policy.
            answered: set once the server has ever answered; if it then does not, it is probably being restarted.
            timeout: seconds for all attempts together; None for no limit.
        """
        self._call = call
        self._policy = policy
        self._answered = answered
        self._end = None if timeout is None else time.monotonic() + timeout
        self._failures = 0
        self._backoff = policy.first_backoff

    @property
    def remaining(self) -> float | None:
        """Seconds that are left, or None for no limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def succeeded(self) -> None:
        """Note that the server has answered."""
        self._answered.set()

    def pause_after(self, error: PixyProxyClientError) -> float:
        """Return the seconds until the next attempt.

        Raises:
            PixyProxyClientError: ``error``, if there is no further attempt.
        """
        error.creation_request_id = self._call.creation_request_id
        if error.request_id:
            self._answered.set()
        self._failures += 1
        pause = self._next_pause(error) if self._may_repeat(error) else None
        remaining = self.remaining
        if pause is None or (remaining is not None and pause >= remaining):
            raise error
        _logger.info("Trying again in %.1f s: %s", pause, error.message)
        return pause

    def _may_repeat(self, error: PixyProxyClientError) -> bool:
        if self._policy.attempts is not None and self._failures >= self._policy.attempts:
            return False
        if error.reason in _NOTHING_DONE:
            return True
        if not self._call.is_repeatable:
            return False
        if error.reason in _PROVIDER_BUSY:
            return error.retry_after is not None
        return isinstance(error, UnavailableError) and (
            self._answered.is_set() or self._failures < self._policy.unanswered_attempts
        )

    def _next_pause(self, error: PixyProxyClientError) -> float:
        if error.retry_after is not None:
            return error.retry_after * (1 + random.uniform(0, _JITTER))  # noqa: S311
        pause = min(self._backoff, self._policy.max_backoff)
        self._backoff = pause * self._policy.multiplier
        if self._answered.is_set():
            return random.uniform(0, pause)  # noqa: S311
        # The server may be starting: the pauses must not be too short.
        return pause * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
