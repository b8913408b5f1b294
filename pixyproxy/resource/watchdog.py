"""Ends calls that wait for too long: for their clients, for longer than the stall timeout, or for a thread.

gRPC has no time limit for the request of a call that has begun, nor for a client that reads no more. Cancelling the
call frees the thread.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from itertools import accumulate
from math import ceil

import grpc

from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.resource.call_threads import CallThreads
from pixyproxy.resource.tally import Tally
from pixyproxy.service.content import CHUNK_SIZE

_logger = logging.getLogger(__name__)

_NEVER = _UNLIMITED = float("inf")
# Above the limit, calls that have waited for this long are cancelled. Busy servers get requests later than calls, too.
_GRACE_SECONDS = 0.25
# Checks within the grace period, or within the stall timeout if that is shorter.
_CHECKS = 2
_C_LIBRARY = ctypes.CDLL(None)


class Wait:
    """A thread, or an answer, that waits for the client of a call.

    Attributes:
        since: since when, by ``time.monotonic``; infinite while it does not wait.
        size: the bytes of the answer, or 1 for a thread.
        is_cut_off: whether the call was cancelled for it.
    """

    __slots__ = ("context", "is_cut_off", "since", "size")

    def __init__(self, context: grpc.ServicerContext, since: float, size: int = 1) -> None:
        self.context = context
        self.since = since
        self.size = size
        self.is_cut_off = False

    def begin(self) -> None:
        """Note that the thread waits from now on."""
        self.since = time.monotonic()

    def end(self) -> None:
        """Note that the thread does not wait any more."""
        self.since = _NEVER

    def cut_off(self) -> None:
        """Cancel the call."""
        self.is_cut_off = True
        self.context.cancel()


class _Waits:
    """Waits in the order in which they began, with a limit on their number, or on their size."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._waits: dict[Wait, None] = {}
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Wait]:
        with self._lock:
            return iter(tuple(self._waits))

    @contextmanager
    def during(self, wait: Wait) -> Iterator[Wait]:
        """Include a wait for the duration of a context."""
        with self._lock:
            self._waits[wait] = None
        try:
            yield wait
        finally:
            with self._lock:
                del self._waits[wait]

    def until_end(self, wait: Wait, on_end: Callable[[], object] = lambda: None) -> None:
        """Include a wait until its call has ended; then call ``on_end``."""

        def end() -> None:
            with self._lock:
                del self._waits[wait]
            on_end()

        with self._lock:
            self._waits[wait] = None
        if not wait.context.add_callback(end):
            end()

    def excess(self, before: float) -> list[Wait]:
        """Return the excess of waits that began before a time: of the connections with the most, the oldest first."""
        waits = [wait for wait in self if wait.since < before]
        excess = sum(wait.size for wait in waits) - self._limit
        if excess <= 0:
            return []
        peers = {wait: wait.context.peer() for wait in waits}
        sizes: Counter[str] = Counter()
        for wait in waits:
            sizes[peers[wait]] += wait.size
        ordered = sorted(waits, key=lambda wait: sizes[peers[wait]], reverse=True)
        sums = accumulate((wait.size for wait in ordered), initial=0)
        return [wait for wait, size_before in zip(ordered, sums, strict=False) if size_before < excess]


class Watchdog:
    """Watches the calls whose threads or answers wait for a client, and the calls that wait for a thread.

    Attributes:
        stall_timeout: seconds.
    """

    def __init__(
        self,
        stall_timeout: float,
        unread: Tally,
        pools: Sequence[CallThreads] = (),
        *,
        max_pending: int = 128,
        max_untaken: int = 128 * 1024 * 1024,
        max_watches: int = 10_000,
    ) -> None:
        """Watch from ``start`` on.

        Args:
            stall_timeout: seconds after which a waiting call is cancelled, for an answer for each 64 KiB.
            unread: is reported: calls that ended without a request.
            pools: where calls wait for a thread.
            max_pending: requests that may be pending at a time; above, some are cancelled before the stall timeout, or
                clients that begin calls and send no request would soon hold all threads.
            max_untaken: bytes of answers that clients may leave untaken at a time; above, some calls are cancelled
                before the stall timeout, or clients that read nothing would soon hold all memory.
            max_watches: watches of the health that may be open at a time, with 35 KiB of memory each; above, some are
                cancelled.
        """
        self.stall_timeout = stall_timeout
        self._unread = unread
        self._pools = pools
        self._max_pending = max_pending
        self._interval = min(stall_timeout, _GRACE_SECONDS) / _CHECKS
        self._pending = _Waits(max_pending)
        self._untaken = _Waits(max_untaken)
        self._watches = _Waits(max_watches)
        self._reading = _Waits(_UNLIMITED)
        self._frees_answers = False  # between this check and the next one
        self._task = PeriodicTask("watchdog", self._check, retry_interval=self._interval)

    def start(self) -> None:
        """Start watching."""
        self._task.start()

    def close(self) -> None:
        """Stop watching."""
        self._task.close()

    def pending(self, context: grpc.ServicerContext) -> AbstractContextManager[Wait]:
        """Watch a request that has not come yet, or a message that a client has not taken yet."""
        return self._pending.during(Wait(context, time.monotonic()))

    @contextmanager
    def reading(self, context: grpc.ServicerContext) -> Iterator[Wait]:
        """Watch a client that reads a stream, while the wait has begun."""
        wait = Wait(context, _NEVER)
        try:
            with self._reading.during(wait):
                yield wait
        finally:
            if wait.is_cut_off:
                _logger.info("The client read nothing for %g s and was cut off.", self.stall_timeout)

    def answered(self, context: grpc.ServicerContext, size: int) -> None:
        """Watch the answer of a unary call, in bytes, until its client has taken it."""
        wait = Wait(context, time.monotonic(), size)
        of_call = copy_context()  # with the call id, for the log

        def log() -> None:
            if wait.is_cut_off:
                of_call.run(_logger.info, "The client did not take the answer and was cut off.")

        self._untaken.until_end(wait, log)

    def watching(self, context: grpc.ServicerContext) -> None:
        """Count a call that lasts, without a thread, for as long as its client likes."""
        self._watches.until_end(Wait(context, time.monotonic()))

    def _check(self) -> float:
        for pool in self._pools:
            pool.refuse_overdue()
        now = time.monotonic()
        for limited in (self._pending, self._untaken, self._watches):
            for wait in limited.excess(now - _GRACE_SECONDS):
                wait.cut_off()
        untaken = tuple(self._untaken)
        for wait in (*self._pending, *untaken, *self._reading):
            # A large answer may take as long as a stream of its size.
            if wait.since < now - self.stall_timeout * ceil(wait.size / CHUNK_SIZE):
                wait.cut_off()
        if self._unread.report() > self._max_pending or self._frees_answers:
            _release_free_memory()
        self._frees_answers = any(wait.is_cut_off for wait in untaken)
        return self._interval


def _release_free_memory() -> None:
    """Return free memory to the system: after some thousand calls at a time, the C library would keep 100 MB of it."""
    if hasattr(_C_LIBRARY, "malloc_trim"):  # only glibc has it
        _C_LIBRARY.malloc_trim(0)
