"""The threads that run calls, and the queue of calls that wait for one.

A waiting call holds no thread, only 15 KiB of memory. gRPC submits a call to the thread pool before it creates the
call's context, so the queue reads what it needs from the arguments.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

THREAD_NAME = "call"

_logger = logging.getLogger(__name__)
_this_thread = threading.local()

ClientOf = Callable[[Any, str], Hashable]
"""Tells clients apart by the metadata and the peer of a call."""


def refuses_call() -> bool:
    """Tell whether this thread runs a call only to refuse it."""
    return getattr(_this_thread, "refuses", False)


class CallThreads(ThreadPoolExecutor):
    """A thread pool for calls. If all threads are in use, calls wait, in an order that is fair between clients.

    It survives a system without threads: gRPC's serving thread, which submits, would die of the error.
    """

    def __init__(
        self,
        threads: int,
        client_of: ClientOf,
        waited: Callable[[float], None] | None = None,
        *,
        longest_wait: float = 1.0,
        max_waiting: int = 5000,
    ) -> None:
        """Make a pool that starts its threads when they are needed.

        Args:
            threads: the most calls that run at a time.
            client_of: tells clients apart.
            waited: is called with the seconds that each waiting call has waited, for metrics.
            longest_wait: the seconds after which ``refuse_overdue`` refuses a waiting call.
            max_waiting: the most calls that wait; the latest call of the client with the most of them is refused.
        """
        super().__init__(threads, thread_name_prefix=THREAD_NAME)
        self._free = threads
        self._client_of = client_of
        self._waited = waited
        self._longest_wait = longest_wait
        self._waiting = _FairQueue(max_waiting)
        self._lock = threading.Lock()

    def submit(self, call: Callable[..., object], /, *arguments: Any) -> None:  # type: ignore[override]
        """Run a call in a thread, now or after it has waited, or refuse it.

        It returns no future: gRPC would take the server's lock at the end of each call, to count calls for a limit that
        is not set.
        """
        runs, refused = False, None
        run = functools.partial(call, *arguments)
        with self._lock:
            if self._free:
                self._free -= 1
                runs = True
            else:
                event = arguments[1]
                client = self._client_of(event.invocation_metadata, event.call.peer().decode())
                refused = self._waiting.put(client, _WaitingCall(run))
        if runs:
            self._start(run)
        elif refused is not None:
            self._refuse(refused)

    def refuse_overdue(self) -> None:
        """Refuse the calls that have waited for too long."""
        with self._lock:
            overdue = self._waiting.pop_older(time.monotonic() - self._longest_wait)
        for call in overdue:
            self._refuse(call)

    def _start(self, run: Callable[[], object]) -> None:
        try:
            super().submit(self._run, run)
        except RuntimeError as error:
            # It is raised after the call was queued.
            _logger.warning("A call waits for another one's thread: %s.", error)

    def _run(self, run: Callable[[], object]) -> None:
        try:
            run()
        finally:
            with self._lock:
                following = self._waiting.pop()
                self._free += following is None
            if following is not None:
                self._count(following)
                self._start(following.run)

    def _refuse(self, call: _WaitingCall) -> None:
        """Run a call in this thread, where its handler finds out that it is refused."""
        self._count(call)
        _this_thread.refuses = True
        try:
            call.run()
        finally:
            _this_thread.refuses = False

    def _count(self, call: _WaitingCall) -> None:
        if self._waited is not None:
            self._waited(time.monotonic() - call.since)


@dataclass(frozen=True)
class _WaitingCall:
    run: Callable[[], object]
    since: float = field(default_factory=time.monotonic)


class _FairQueue:
    """Waiting calls: first in, first out for each client, and round-robin between clients."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        # In the order in which the clients have their turn; none is without a call.
        self._by_client: dict[Hashable, deque[_WaitingCall]] = {}

    def put(self, client: Hashable, call: _WaitingCall) -> _WaitingCall | None:
        """Add a call; return the one that must leave instead if there are too many."""
        self._by_client.setdefault(client, deque()).append(call)
        self._count += 1
        if self._count <= self._limit:
            return None
        most = max(self._by_client, key=lambda other: (len(self._by_client[other]), other == client))
        return self._leave(most, self._by_client[most].pop())

    def pop(self) -> _WaitingCall | None:
        """Remove the next call, if there is any."""
        client = next(iter(self._by_client), None)
        if client is None:
            return None
        # To the end of the order.
        calls = self._by_client[client] = self._by_client.pop(client)
        return self._leave(client, calls.popleft())

    def pop_older(self, time: float) -> list[_WaitingCall]:
        """Remove the calls that have waited since before a time."""
        older = []
        for client, calls in list(self._by_client.items()):
            while calls and calls[0].since < time:
                older.append(self._leave(client, calls.popleft()))
        return older

    def _leave(self, client: Hashable, call: _WaitingCall) -> _WaitingCall:
        self._count -= 1
        if not self._by_client[client]:
            del self._by_client[client]
        return call
