"""Stops submissions while the provider is down, in all processes of a server."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pixyproxy.core.exceptions import (
    OutcomeUnknownError,
    ProviderCircuitOpenError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)

FAILURES_TO_OPEN = 5
FIRST_PAUSE = 5.0  # seconds
LONGEST_PAUSE = 60.0

_TIME_BYTES = 8
_CLOSED = 0.0


class SharedCircuits:
    """The state of each generation worker's circuit, in shared memory. Create it before forking."""

    def __init__(self, workers: int = 1) -> None:
        """Start with all circuits closed."""
        # Times by the monotonic clock, which is the same for all processes of a machine.
        self._open_until = memoryview(mmap.mmap(-1, workers * _TIME_BYTES)).cast("d")

    def publish(self, worker: int, open_until: float) -> None:
        """Set the time, by ``time.monotonic``, until which a worker submits nothing; 0 if its circuit is closed."""
        self._open_until[worker] = open_until

    def require_closed(self) -> None:
        """Check that the circuit of at least one worker is closed.

        Raises:
            ProviderCircuitOpenError: all are open; with the seconds until the first closes.
        """
        open_until = min(self._open_until)
        if open_until and (wait := open_until - time.monotonic()) > 0:
            raise ProviderCircuitOpenError("The image provider does not answer.", retry_after=wait)


@dataclass(frozen=True)
class Permit:
    """A permission to submit one request; ``is_trial`` if the circuit is open and the request may close it."""

    is_trial: bool


class CircuitBreaker:
    """Opens after ``FAILURES_TO_OPEN`` consecutive failures; after a pause, permits one submission as a trial.

    Each failed trial doubles the pause. Any answer closes the circuit, also a refusal or a rate limit.
    """

    def __init__(
        self,
        publish: Callable[[float], object] = lambda _: None,
        on_change: Callable[[bool], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start closed.

        Args:
            publish: called at each change with the time until which nothing is submitted; 0 if the circuit is closed.
            on_change: called when the circuit opens (True) or closes (False).
            clock: returns seconds.
        """
        self._publish = publish
        self._on_change = on_change
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._open_until = _CLOSED
        self._is_trying = False
        publish(_CLOSED)

    def admit(self) -> Permit | None:
        """Return a permit for a submission, to be recorded or withdrawn, or None if there is none now."""
        with self._lock:
            if self._open_until == _CLOSED:
                return Permit(is_trial=False)
            if self._is_trying or self._clock() < self._open_until:
                return None
            self._is_trying = True
            self._publish(self._clock() + self._pause)
            return Permit(is_trial=True)

    def withdraw(self, permit: Permit) -> None:
        """Return a permit without an outcome."""
        with self._lock:
            self._end_trial(permit)
            self._publish(self._open_until)

    def record(self, permit: Permit, error: BaseException | None) -> None:
        """Record the outcome of a submission: an error, or None for an image."""
        with self._lock:
            self._end_trial(permit)
            if error is None or not _is_failure(error):
                self._close()
            else:
                self._note_failure(permit)
            self._publish(self._open_until)

    def wait(self) -> float:
        """Return the seconds until the next permit, 0 if there may be one now."""
        with self._lock:
            return max(0.0, self._open_until - self._clock()) if self._open_until else 0.0

    def _end_trial(self, permit: Permit) -> None:
        self._is_trying = self._is_trying and not permit.is_trial

    def _close(self) -> None:
        if self._open_until != _CLOSED:
            self._on_change(False)
        self._failures, self._pause, self._open_until = 0, FIRST_PAUSE, _CLOSED

    def _note_failure(self, permit: Permit) -> None:
        self._failures += 1
        if self._failures < FAILURES_TO_OPEN:
            return
        if permit.is_trial:
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
        if self._open_until == _CLOSED:
            self._on_change(True)
        self._open_until = self._clock() + self._pause


def _is_failure(error: BaseException) -> bool:
    """Return whether an error means that the provider is down."""
    if isinstance(error, ProviderTimeoutError):
        return error.may_have_billed
    is_answer = isinstance(error, ProviderError) and not isinstance(
        error, (ProviderUnavailableError, OutcomeUnknownError)
    )
    return not is_answer
