"""The scope of a call: how long its caller waits, and whether the caller has gone.

Author: djjay
Date: 2026-11-20
"""

from __future__ import annotations

import time
from collections.abc import Callable


class CallScope:
    """How long a caller waits, and whether it has gone."""

    def __init__(self, timeout: float | None = None) -> None:
        """Start a scope that ends after ``timeout`` seconds; None sets no limit."""
        self._ends_at = None if timeout is None else time.monotonic() + timeout
        self._has_left = False
        self._on_leaving: list[Callable[[], object]] = []

    def remaining(self) -> float | None:
        """Return the seconds that are left, at least 0, or None without a limit."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())

    def leave(self) -> None:
        """Note that the caller has gone."""
        self._has_left = True
        for callback in self._on_leaving:
            callback()

    def on_leaving(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the caller goes. It must be quick, and may be called twice."""
        self._on_leaving.append(callback)
        if self._has_left:
            callback()

    @property
    def is_over(self) -> bool:
        """Whether the caller has gone or its time has passed."""
        return self._has_left or self.remaining() == 0.0
