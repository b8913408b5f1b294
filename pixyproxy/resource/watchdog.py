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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from itertools import accumulate
from math import ceil

import grpc

from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.resource.call_threads import CallThreads
from pixyproxy.resource.tally import Tally
from pixyproxy.service.content import CHUNK_SIZE

_logger = logging.getLogger(__name__)

_NEVER = float("inf")
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
        self._max_untaken = max_untaken
        self._max_watches = max_watches
        self._interval = min(stall_timeout, _GRACE_SECONDS) / _CHECKS
        self._pending: dict[Wait, None] = {}  # in the order of their beginning
        self._untaken: dict[Wait, None] = {}  # in the order of their beginning
        self._watches: dict[Wait, None] = {}  # in the order of their beginning
        self._frees_answers = False  # between this check and the next one
        self._reading: set[Wait] = set()
        self._lock = threading.Lock()
        self._task = PeriodicTask("watchdog", self._check, retry_interval=self._interval)

    def start(self) -> None:
        """Start watching."""
        self._task.start()

    def close(self) -> None:
        """Stop watching."""
        self._task.close()

    @contextmanager
    def pending(self, context: grpc.ServicerContext) -> Iterator[Wait]:
        """Watch a request that has not come yet, or a message that a client has not taken yet."""
        wait = Wait(context, time.monotonic())
        with self._lock:
            self._pending[wait] = None
        try:
            yield wait
        finally:
            with self._lock:
                del self._pending[wait]

    @contextmanager
    def reading(self, context: grpc.ServicerContext) -> Iterator[Wait]:
        """Watch a client that reads a stream, while the wait has begun."""
        wait = Wait(context, _NEVER)
        with self._lock:
            self._reading.add(wait)
        try:
            yield wait
        finally:
            with self._lock:
                self._reading.remove(wait)
            if wait.is_cut_off:
                _logger.info("The client read nothing for %g s and was cut off.", self.stall_timeout)

    def answered(self, context: grpc.ServicerContext, size: int) -> None:
        """Watch the answer of a unary call, in bytes, until its client has taken it."""
        wait = Wait(context, time.monotonic(), size)
        of_call = copy_context()  # with the call id, for the log
        with self._lock:
            self._untaken[wait] = None
        if not context.add_callback(lambda: of_call.run(self._taken, wait)):
            self._taken(wait)

    def watching(self, context: grpc.ServicerContext) -> None:
        """Count a call that lasts, without a thread, for as long as its client likes."""
        wait = Wait(context, time.monotonic())
        with self._lock:
            self._watches[wait] = None
        if not context.add_callback(lambda: self._ended(wait)):
            self._ended(wait)

    def _ended(self, wait: Wait) -> None:
        with self._lock:
            del self._watches[wait]

    def _taken(self, wait: Wait) -> None:
        with self._lock:
            del self._untaken[wait]
        if wait.is_cut_off:
            _logger.info("The client did not take the answer and was cut off.")

    def _check(self) -> float:
        for pool in self._pools:
            pool.refuse_overdue()
        with self._lock:
            pending, untaken, reading = list(self._pending), list(self._untaken), list(self._reading)
            watches = list(self._watches)
        now = time.monotonic()
        limited = ((pending, self._max_pending), (untaken, self._max_untaken), (watches, self._max_watches))
        for waits, limit in limited:
            for wait in _excess([wait for wait in waits if wait.since < now - _GRACE_SECONDS], limit):
                wait.cut_off()
        for wait in (*pending, *untaken, *reading):
            # A large answer may take as long as a stream of its size.
            if wait.since < now - self.stall_timeout * ceil(wait.size / CHUNK_SIZE):
                wait.cut_off()
        if self._unread.report() > self._max_pending or self._frees_answers:
            _release_free_memory()
        self._frees_answers = any(wait.is_cut_off for wait in untaken)
        return self._interval


def _excess(waits: list[Wait], limit: int) -> list[Wait]:
    """Return what is over the limit: the oldest, first those on the connections with the most."""
    excess = sum(wait.size for wait in waits) - limit
    if excess <= 0:
        return []
    peers = {wait: wait.context.peer() for wait in waits}
    sizes: Counter[str] = Counter()
    for wait in waits:
        sizes[peers[wait]] += wait.size
    ordered = sorted(waits, key=lambda wait: sizes[peers[wait]], reverse=True)
    before = accumulate((wait.size for wait in ordered), initial=0)
    return [wait for wait, size in zip(ordered, before, strict=False) if size < excess]


def _release_free_memory() -> None:
    """Return free memory to the system: after some thousand calls at a time, the C library would keep 100 MB of it."""
    if hasattr(_C_LIBRARY, "malloc_trim"):  # only glibc has it
        _C_LIBRARY.malloc_trim(0)
