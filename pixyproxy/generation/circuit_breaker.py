"""Stops submissions while the provider is down, and lets every process of the server know."""

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
    """Until when the circuit of each generation worker is open; to be made before the processes are forked."""

    def __init__(self, workers: int = 1) -> None:
        """Begin with all circuits closed."""
        # Times of the monotonic clock, which all processes of a machine share.
        self._open_until = memoryview(mmap.mmap(-1, workers * _TIME_BYTES)).cast("d")

    def publish(self, worker: int, open_until: float) -> None:
        """Say until when, by ``time.monotonic``, a worker submits nothing; 0 where it does."""
        self._open_until[worker] = open_until

    def require_closed(self) -> None:
        """Check that there is a worker that submits.

        Raises:
            ProviderCircuitOpenError: there is none; says when one may try again.
        """
        open_until = min(self._open_until)
        # The time is asked for only where it matters.
        if open_until and (wait := open_until - time.monotonic()) > 0:
            raise ProviderCircuitOpenError(
                "The image provider does not answer; it is tried again soon.", retry_after=wait
            )


@dataclass(frozen=True)
class Permit:
    """A permission to submit one request; ``is_trial`` where the circuit is open and this request tries to close it."""

    is_trial: bool


class CircuitBreaker:
    """Opens after some failures in a row; after a pause it permits one submission to find out whether to close again.

    Each trial that fails doubles the pause. An answer closes it, whatever the answer says: a provider that refuses or
    asks to slow down is there.
    """

    def __init__(
        self,
        publish: Callable[[float], object] = lambda _: None,
        on_change: Callable[[bool], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start closed.

        Args:
            publish: is told, at each change, until when nothing is submitted; 0 where it is closed.
            on_change: is told, when it opens or closes, whether it is open.
            clock: gives seconds.
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
        """Permit a submission, or return None where there may be none now. Every permit is withdrawn or recorded."""
        with self._lock:
            if self._open_until == _CLOSED:
                return Permit(is_trial=False)
            if self._is_trying or self._clock() < self._open_until:
                return None
            self._is_trying = True
            self._publish(self._clock() + self._pause)
            return Permit(is_trial=True)

    def withdraw(self, permit: Permit) -> None:
        """Take back a permit that says nothing of the provider."""
        with self._lock:
            self._end_trial(permit)
            self._publish(self._open_until)

    def record(self, permit: Permit, error: BaseException | None) -> None:
        """Note what came of a submission: an error, or None for an image."""
        with self._lock:
            self._end_trial(permit)
            if error is None or not _is_failure(error):
                self._close()
            else:
                self._note_failure(permit)
            self._publish(self._open_until)

    def wait(self) -> float:
        """Return the seconds until a submission may be permitted, 0 where it may be now."""
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
    """Whether an error says that the provider is not there."""
    if isinstance(error, ProviderTimeoutError):
        return error.may_have_billed
    is_answer = isinstance(error, ProviderError) and not isinstance(
        error, (ProviderUnavailableError, OutcomeUnknownError)
    )
    return not is_answer
