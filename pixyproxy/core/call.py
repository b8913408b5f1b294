"""The call that work is done for: how long its caller waits, and whether it still does.

Author: djjay
Date: 2026-11-20
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class CallScope:
    """How long a caller waits, and whether it has gone.

    Work that must outlive its caller, such as a generation that was sent, asks it only before taking a new step.
    """

    def __init__(self, timeout: float | None = None) -> None:
        """Start a scope that ends after ``timeout`` seconds; None means that the caller waits for ever."""
        self._ends_at = None if timeout is None else time.monotonic() + timeout
        self._left = threading.Event()
        self._on_leaving: list[Callable[[], object]] = []

    def remaining(self) -> float | None:
        """Return the seconds that the caller will still wait, at least 0, or None where it waits for ever."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())

    def leave(self) -> None:
        """Note that the caller has gone."""
        self._left.set()
        for callback in self._on_leaving:
            callback()

    def on_leaving(self, callback: Callable[[], object]) -> None:
        """Call ``callback``, which must be quick and may be called twice, when the caller goes."""
        self._on_leaving.append(callback)
        if self._left.is_set():
            callback()

    @property
    def is_over(self) -> bool:
        """Whether the caller has gone or its time has passed."""
        return self._left.is_set() or self.remaining() == 0.0

    def wait(self, seconds: float) -> bool:
        """Sleep for ``seconds``, or less where the scope ends before. Return whether it is still open."""
        remaining = self.remaining()
        self._left.wait(seconds if remaining is None else min(seconds, remaining))
        return not self.is_over
