"""Cuts off callers who keep a call's thread waiting: for the request that they began, or until they take an answer.

gRPC knows no time limit for either; cancelling a call is what frees its thread.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import grpc

from pixyproxy.resource.tally import Tally

_logger = logging.getLogger(__name__)

_NEVER = float("inf")
# Beyond as many requests on their way, some are cut off early, or somebody who begins calls and sends no request would
# soon hold all threads; but not those that have just begun, as nearly all have while a server is busy.
_MAX_ARRIVING = 128
_JUST_BEGUN_SECONDS = 0.25
# How often to look, within that time or within the callers' own if it is shorter.
_LOOKS = 2
_C_LIBRARY = ctypes.CDLL(None)


class Watchdog:
    """Looks after the calls whose threads wait for their callers."""

    def __init__(self, patience: float, unread: Tally) -> None:
        """Cut off who keeps a thread waiting for ``patience`` seconds, and report ``unread``; begin with ``start``."""
        self.patience = patience
        self._unread = unread
        self._arriving: dict[Arrival, None] = {}  # in the order of their beginning
        self._reading: dict[Reader, None] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        self._thread.join()

    def arrival(self, context: grpc.ServicerContext) -> Arrival:
        """Return what to stay in, by ``with``, until a request has come."""
        return Arrival(context, self)

    @contextmanager
    def reading(self, context: grpc.ServicerContext) -> Iterator[Reader]:
        """Watch meanwhile over a caller who reads a stream."""
        reader = Reader(context, _NEVER)
        with self._lock:
            self._reading[reader] = None
        try:
            yield reader
        finally:
            with self._lock:
                del self._reading[reader]
            if reader.is_cut_off:
                _logger.info("The caller took nothing for %g s and was cut off.", self.patience)

    def begin_arrival(self, arrival: Arrival) -> None:
        """Watch over a request on its way."""
        with self._lock:
            self._arriving[arrival] = None

    def end_arrival(self, arrival: Arrival) -> None:
        """Watch no more over a request."""
        with self._lock:
            del self._arriving[arrival]

    def _run(self) -> None:
        while not self._closing.wait(min(self.patience, _JUST_BEGUN_SECONDS) / _LOOKS):
            with self._lock:
                arriving, reading = list(self._arriving), list(self._reading)
            now = time.monotonic()
            slow = [arrival for arrival in arriving if arrival.since < now - _JUST_BEGUN_SECONDS]
            for arrival in _crowd(slow):
                arrival.cut_off()
            for wait in (*arriving, *reading):
                if wait.since < now - self.patience:
                    wait.cut_off()
            if self._unread.report() > _MAX_ARRIVING:
                _give_back_memory()


def _crowd(slow: list[Arrival]) -> list[Arrival]:
    """Return whom to cut off early: first those on the connections with the most requests on their way."""
    excess = len(slow) - _MAX_ARRIVING
    if excess <= 0:
        return []
    peers = {arrival: arrival.context.peer() for arrival in slow}
    numbers = Counter(peers.values())
    return sorted(slow, key=lambda arrival: numbers[peers[arrival]], reverse=True)[:excess]


def _give_back_memory() -> None:
    """Return free memory to the system: after some thousand calls at a time, the C library would keep 100 MB of it."""
    if hasattr(_C_LIBRARY, "malloc_trim"):  # glibc's own.
        _C_LIBRARY.malloc_trim(0)


class _Wait:
    """A thread that waits for its caller, or does not just now."""

    __slots__ = ("context", "is_cut_off", "since")

    def __init__(self, context: grpc.ServicerContext, since: float) -> None:
        self.context = context
        self.since = since
        self.is_cut_off = False

    def cut_off(self) -> None:
        """End the call, which frees the thread."""
        self.is_cut_off = True
        self.context.cancel()


class Arrival(_Wait):
    """A request on its way, until the end of a ``with``."""

    __slots__ = ("_watchdog",)

    def __init__(self, context: grpc.ServicerContext, watchdog: Watchdog) -> None:
        super().__init__(context, time.monotonic())
        self._watchdog = watchdog

    def __enter__(self) -> Self:
        self._watchdog.begin_arrival(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watchdog.end_arrival(self)


class Reader(_Wait):
    """A caller who reads a stream."""

    __slots__ = ()

    def is_handed_a_message(self) -> None:
        """Say that from now on the thread waits until the caller has taken a message."""
        self.since = time.monotonic()

    def has_taken_it(self) -> None:
        """Say that the thread does not wait any more."""
        self.since = _NEVER
