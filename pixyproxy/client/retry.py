"""When a failed call is made again. Nothing here waits or makes calls: both clients do that."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass

from pixyproxy.client.errors import PixyProxyClientError, UnavailableError

# The server says of these that nothing was done.
_NOTHING_DONE = frozenset({"TOO_BUSY", "CONFLICT"})
# The server has tried again by itself, and names a time where it knows one.
_PROVIDER_BUSY = frozenset({"PROVIDER_RATE_LIMITED", "PROVIDER_UNAVAILABLE"})
_JITTER = 0.25

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a failed call is made again, and after which pauses; always within the call's timeout.

    Where the server names a time to wait, that is waited for in place of the backoff.

    Attributes:
        attempts: the most attempts of one call, at least 1; None for as many as the timeout allows.
        unanswered_attempts: the most attempts while no server has ever answered: the address may be wrong.
        first_backoff: the pause after the first failure, in seconds; random jitter spreads callers.
        max_backoff: the longest pause, in seconds.
        multiplier: the factor by which the pause grows with each failure.
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


class Reach:
    """Whether there ever was a server at the address: one that was is waited for, because it is being restarted.

    Attributes:
        is_proven: whether it has answered.
    """

    def __init__(self) -> None:
        self.is_proven = False


class Attempts:
    """The attempts of one call, within one deadline."""

    def __init__(
        self,
        policy: RetryPolicy,
        reach: Reach,
        timeout: float | None,
        *,
        is_repeatable: bool,
        creation_request_id: str = "",
    ) -> None:
        """Begin.

        Args:
            policy: how often, and after which pauses.
            reach: what is known of the server; kept up to date.
            timeout: seconds for all attempts together; None for no limit.
            is_repeatable: whether the call does no more when it is made twice than when it is made once.
            creation_request_id: what its errors carry under that name.
        """
        self._policy = policy
        self._reach = reach
        self._end = None if timeout is None else time.monotonic() + timeout
        self._is_repeatable = is_repeatable
        self._creation_request_id = creation_request_id
        self._failures = 0
        self._backoff = policy.first_backoff

    @property
    def remaining(self) -> float | None:
        """Seconds that are left, or None for no limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def succeeded(self) -> None:
        """Note that the server has answered."""
        self._reach.is_proven = True

    def pause_after(self, error: PixyProxyClientError) -> float:
        """Return the seconds to wait before the call is made again.

        Raises:
            PixyProxyClientError: ``error``, where the call is not to be made again, or there is no time for it.
        """
        error.creation_request_id = self._creation_request_id
        self._reach.is_proven |= bool(error.request_id)
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
        if not self._is_repeatable:
            return False
        if error.reason in _PROVIDER_BUSY:
            return error.retry_after is not None
        return isinstance(error, UnavailableError) and (
            self._reach.is_proven or self._failures < self._policy.unanswered_attempts
        )

    def _next_pause(self, error: PixyProxyClientError) -> float:
        if error.retry_after is not None:
            return error.retry_after * (1 + random.uniform(0, _JITTER))  # noqa: S311
        pause = min(self._backoff, self._policy.max_backoff)
        self._backoff = pause * self._policy.multiplier
        if self._reach.is_proven:
            return random.uniform(0, pause)  # noqa: S311
        # It is perhaps being started: the attempts must last until it is there.
        return pause * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
