"""Tasks that run periodically in the background.

Author: djjay
Date: 2026-11-21
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from pixyproxy.core.exceptions import PixyProxyException, for_log

_logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 2.0
# The same failure is logged at most once in a minute.
_WARN_SECONDS = 60.0


class PeriodicTask:
    """Runs a function periodically in a thread of its own."""

    def __init__(self, name: str, work: Callable[[], float], *, retry_interval: float) -> None:
        """Initialize without running anything.

        Args:
            name: the name of the thread, and of the task in the log.
            work: the function; returns the seconds until the next run.
            retry_interval: seconds until the next run after one that failed.
        """
        self._name = name
        self._work = work
        self._retry_interval = retry_interval
        self._wake = threading.Event()
        self._is_closing = False
        self._warned_of = ""
        self._warn_at = 0.0
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread, which runs the task at once."""
        self._thread.start()

    def wake(self) -> None:
        """Run at once, or again after the current run."""
        self._wake.set()

    def close(self) -> None:
        """Stop after the current run."""
        self._is_closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)

    def _loop(self) -> None:
        while not self._is_closing:
            pause = self._run()
            self._wake.wait(pause)
            self._wake.clear()

    def _run(self) -> float:
        try:
            pause = self._work()
        except PixyProxyException as error:
            self._warn(for_log(error))
            return self._retry_interval
        except Exception:  # One failure must not end the task.
            _logger.exception("The task %s failed.", self._name)
            return self._retry_interval
        self._warned_of = ""
        return pause

    def _warn(self, reason: str) -> None:
        if reason != self._warned_of or time.monotonic() >= self._warn_at:
            _logger.warning("The task %s failed and will be retried: %s", self._name, reason)
            self._warned_of, self._warn_at = reason, time.monotonic() + _WARN_SECONDS
