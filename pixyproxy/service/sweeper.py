"""Finishes, from time to time, what processes that died or a database that was away have left unfinished."""

from __future__ import annotations

import logging
import threading
import time

from pixyproxy.core.exceptions import PixyProxyException, for_log
from pixyproxy.service.entry import ImageEntry

_logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0

_EVERY_SECONDS = 5.0
# While this process itself has left something, because the database was away.
_SOON_SECONDS = 0.5
# What keeps it from succeeding is logged again after a minute.
_WARN_SECONDS = 60.0


class Sweeper:
    """Sweeps from a thread of its own: at the start, every few seconds, and soon after it was asked to."""

    def __init__(self, entry: ImageEntry) -> None:
        self._entry = entry
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._warned_of = ""
        self._warn_at = 0.0

    def start(self) -> None:
        """Begin to sweep."""
        self._thread.start()

    def close(self) -> None:
        """Sweep no more."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)

    def sweep_soon(self) -> None:
        """Ask for a sweep, which is tried again and again until it succeeds."""
        self._wake.set()

    def _run(self) -> None:
        is_clean = False
        while not self._closing.is_set():
            self._wake.wait(0 if not is_clean else _EVERY_SECONDS)
            self._wake.clear()
            is_clean = self._sweep()
            if not is_clean:
                self._closing.wait(_SOON_SECONDS)

    def _sweep(self) -> bool:
        try:
            self._entry.finish_abandoned()
        except PixyProxyException as error:
            self._warn(for_log(error))
            return False
        except Exception:
            _logger.exception("What was left unfinished could not be finished.")
            return True  # Not foreseen: to try at once again would help nobody.
        self._warned_of = ""
        return True

    def _warn(self, reason: str) -> None:
        if reason != self._warned_of or time.monotonic() >= self._warn_at:
            _logger.warning("What was left unfinished waits: %s", reason)
            self._warned_of, self._warn_at = reason, time.monotonic() + _WARN_SECONDS
