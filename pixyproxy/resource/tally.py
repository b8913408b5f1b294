"""Counts events that strangers can cause thousands of times a second, and logs them in few lines."""

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
        """Count nothing yet.

        Args:
            text: the beginning of the line, what is counted.
            count: is told the reason of each event, for metrics.
            level: the line's level.
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
        """Log what was counted since the last line, unless that was less than ten seconds ago.

        Only one thread may call it.

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
