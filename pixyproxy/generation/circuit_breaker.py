"""Tells callers within a millisecond that the provider is down, once that is known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pixyproxy.core.exceptions import (
    OutcomeUnknownError,
    ProviderCircuitOpenError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    TooBusyError,
)

FAILURES_TO_OPEN = 5
FIRST_PAUSE = 5.0  # seconds
LONGEST_PAUSE = 60.0


class CircuitBreaker:
    """Opens after some failures in a row; after a pause it lets one request through to see whether to close again.

    Each trial that fails doubles the pause. An answer closes it, whatever the answer says: a provider that refuses or
    asks to slow down is there.
    """

    def __init__(
        self,
        on_open: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[bool], object] = lambda _: None,
    ) -> None:
        """Start closed.

        Args:
            on_open: called each time that it opens, so that waiting requests can give up.
            clock: gives seconds.
            on_change: told of each change whether it is open now.
        """
        self._on_open = on_open
        self._on_change = on_change
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._opens_until: float | None = None
        self._is_trying = False

    def require_hope(self) -> None:
        """Check that it makes sense to go on waiting for a turn to send a request.

        Raises:
            ProviderCircuitOpenError: it does not; says when it may be worth trying.
        """
        with self._lock:
            # The one that tries may wait for its turn, too.
            wait = 0.0 if self._is_trying else self._wait()
        if wait > 0:
            raise _open(wait)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch how a request ends that is sent within.

        Raises:
            ProviderCircuitOpenError: it must not be sent.
        """
        is_trial = self._enter()
        try:
            yield
        except ProviderError as error:
            self._note(is_answer=not _is_failure(error), is_trial=is_trial)
            if isinstance(error, ProviderUnavailableError) and error.retry_after is None and not error.may_have_billed:
                # The request that has opened it, or was to try, knows as well as those that come after it.
                error.retry_after = self._told_wait()
            raise
        except TooBusyError:
            self._end_trial(is_trial)
            raise
        except BaseException:
            self._note(is_answer=False, is_trial=is_trial)
            raise
        self._note(is_answer=True, is_trial=is_trial)

    def _wait(self) -> float:
        """Return the seconds until a request may be sent, 0 where it may be now."""
        if self._opens_until is None:
            return 0.0
        if self._is_trying:
            return self._pause
        return max(0.0, self._opens_until - self._clock())

    def _told_wait(self) -> float | None:
        with self._lock:
            return self._wait() or None

    def _enter(self) -> bool:
        """Let a request in; return whether it is the one that tries."""
        with self._lock:
            wait = self._wait()
            is_trial = wait == 0 and self._opens_until is not None
            self._is_trying = self._is_trying or is_trial
        if wait > 0:
            raise _open(wait)
        return is_trial

    def _end_trial(self, is_trial: bool) -> None:
        """Note that a request has ended of which nothing was sent; if it was to try, the next one may."""
        with self._lock:
            self._is_trying = self._is_trying and not is_trial

    def _note(self, *, is_answer: bool, is_trial: bool) -> None:
        self._end_trial(is_trial)
        with self._lock:
            if is_answer:
                if self._opens_until is not None:
                    self._on_change(False)
                self._failures, self._pause, self._opens_until = 0, FIRST_PAUSE, None
                return
            self._failures += 1
            if self._failures < FAILURES_TO_OPEN:
                return
            if is_trial:
                self._pause = min(self._pause * 2, LONGEST_PAUSE)
            if self._opens_until is None:
                self._on_change(True)
            self._opens_until = self._clock() + self._pause
        self._on_open()


def _is_failure(error: ProviderError) -> bool:
    """Whether an error says that the provider is not there, and not only the caller's time is over."""
    if isinstance(error, ProviderTimeoutError):
        return error.may_have_billed
    return isinstance(error, (ProviderUnavailableError, OutcomeUnknownError))


def _open(wait: float) -> ProviderCircuitOpenError:
    return ProviderCircuitOpenError("The image provider is not answering; it is tried again soon.", retry_after=wait)
