"""Counts events that clients can cause thousands of times a second, and logs them in few lines."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

_logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 10.0

CountEvent = Callable[[str], None]


class Tally:
    """Logs counts by reason, in one line every ten seconds at most. Safe to use from many threads at once."""

    def __init__(self, text: str, count: CountEvent | None, *, level: int = logging.INFO) -> None:
        """Start at zero.

        Args:
            text: the beginning of the line: what is counted.
            count: is called with the reason of each event, for metrics.
            level: the level of the line.
        """
        self._text = text
        self._count = count
        self._level = level
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._reported_at = time.monotonic() - _INTERVAL_SECONDS

    def add(self, reason: str) -> None:
        """Count an event."""
        with self._lock:
            self._counts[reason] += 1
        if self._count is not None:
            self._count(reason)

    def report(self) -> int:
        """Log the counts since the last line, unless that was less than ten seconds ago. For one thread alone.

        Returns:
            How many events were logged.
        """
        now = time.monotonic()
        if not self._counts or now < self._reported_at + _INTERVAL_SECONDS:
            return 0
        self._reported_at = now
        with self._lock:
            counts, self._counts = self._counts, Counter()
        _logger.log(
            self._level, "%s: %s", self._text, ", ".join(f"{count} {reason}" for reason, count in counts.items())
        )
        return counts.total()
