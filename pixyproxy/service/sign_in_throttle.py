"""Refuses sign-ins for a while after too many have failed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable

from cachetools import TTLCache

from pixyproxy.core.exceptions import TooManySignInsError

# A peer alone is counted more generously, because a balancer or a shared host makes many callers look like one.
_PEER_FACTOR = 10
_MAX_REMEMBERED = 100_000


class SignInThrottle:
    """Counts failed sign-ins of one name from one peer, and of one peer whatever the name.

    A name alone is not counted: anybody could then lock anybody else out.
    """

    def __init__(self, max_failures: int, window: float) -> None:
        """Refuse after ``max_failures`` (ten times as many for a peer with many names) within ``window`` seconds."""
        self._max_failures = max_failures
        self._window = window
        self._failures: TTLCache[Hashable, deque[float]] = TTLCache(_MAX_REMEMBERED, ttl=window)
        self._lock = threading.Lock()

    def require_allowed(self, username: str, peer: str) -> None:
        """Check that a sign-in may be looked at.

        Raises:
            TooManySignInsError: too many have failed; says when the next one will be looked at.
        """
        with self._lock:
            waits = [self._wait_for(key, limit) for key, limit in self._counters(username, peer)]
        if max(waits) > 0:
            raise TooManySignInsError("Too many sign-ins have failed; wait before the next.", retry_after=max(waits))

    def note_failure(self, username: str, peer: str) -> None:
        """Count a failed sign-in."""
        now = time.monotonic()
        with self._lock:
            for key, limit in self._counters(username, peer):
                times = self._failures.get(key) or deque(maxlen=limit)
                times.append(now)
                self._failures[key] = times

    def note_success(self, username: str, peer: str) -> None:
        """Forget the failures of one name from one peer."""
        with self._lock:
            self._failures.pop((username, peer), None)

    def _counters(self, username: str, peer: str) -> tuple[tuple[Hashable, int], tuple[Hashable, int]]:
        return ((username, peer), self._max_failures), (peer, self._max_failures * _PEER_FACTOR)

    def _wait_for(self, key: Hashable, limit: int) -> float:
        """Return the seconds until one more failure would be within the limit, or 0."""
        times = self._failures.get(key)
        if times is None or len(times) < limit:
            return 0.0
        return max(0.0, times[0] + self._window - time.monotonic())
