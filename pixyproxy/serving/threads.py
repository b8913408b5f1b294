"""The threads that calls run in: few while calls are quick, more while they wait for something else than the CPU.

Few are fastest, because only one of them runs Python at a time; but a few that all wait would keep every other call
from being looked at.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_logger = logging.getLogger(__name__)

# A call that has waited for as long for a thread, while the process left the CPU idle for a part of that time, waits
# for threads that wait themselves. Shorter waits are the normal ones of a server at work.
_GROW_AFTER_SECONDS = 0.05
_BUSY_SHARE = 0.8
_END_AFTER_IDLE_SECONDS = 10.0
# Each call that waits holds 15 KiB. As many as 1,000 connections that all call at once leave waiting.
_MOST_WAITING = 1024

_Work = tuple[Callable[..., object], tuple[Any, ...]]


class _Thread:
    """A thread that waits for work."""

    __slots__ = ("wake", "work")

    def __init__(self) -> None:
        self.wake = threading.Lock()
        self.wake.acquire()
        self.work: _Work | None = None

    def hand(self, work: _Work | None) -> None:
        self.work = work
        self.wake.release()


class CallThreads(ThreadPoolExecutor):
    """A pool of threads. Which was idle last works next: what it needs is still in the CPU's caches.

    It shares nothing with its base class but the type, which gRPC asks for.
    """

    def __init__(self, name: str, *, few: int, most: int) -> None:
        """Have no threads yet.

        Args:
            name: what the threads are called.
            few: up to as many are made at once when there is work and none is idle.
            most: up to as many are made when work goes on waiting.
        """
        self._name = name
        self._few = few
        self._most = most
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._idle: list[_Thread] = []
        self._waiting: deque[tuple[float, _Work]] = deque()
        self._count = 0
        self._is_closed = False
        self._something_waits = threading.Event()
        threading.Thread(target=self._add_as_needed, name=f"{name}-growth", daemon=True).start()

    def submit(self, call: Callable[..., object], /, *arguments: Any) -> None:  # type: ignore[override]
        """Run a call as soon as there is a thread for it. What it returns is nobody's business."""
        work = (call, arguments)
        with self._lock:
            if self._is_closed:
                raise RuntimeError("These threads were told to end.")
            if self._idle:
                self._idle.pop().hand(work)
                return
            self._waiting.append((time.monotonic(), work))
            if self._count < self._few:
                self._add(1)
        if not self._something_waits.is_set():
            self._something_waits.set()

    @property
    def is_overloaded(self) -> bool:
        """Whether so many calls wait that further ones had better be refused than wait, too."""
        return len(self._waiting) >= _MOST_WAITING

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and end the threads once there is none."""
        with self._lock:
            self._is_closed = True
            while self._idle:
                self._idle.pop().hand(None)
            self._something_waits.set()
        if wait:
            self.join(None)

    def join(self, timeout: float | None) -> int:
        """Wait for up to ``timeout`` seconds until all threads have ended; return how many have not."""
        with self._lock:
            self._ended.wait_for(lambda: self._count == 0, timeout)
            return self._count

    def _run(self) -> None:
        me = _Thread()
        while (work := self._next_work(me)) is not None:
            call, arguments = work
            try:
                call(*arguments)
            except BaseException:
                _logger.exception("A call left its thread with an error.")
            # A thread that waits keeps nothing of its last call.
            del work, call, arguments

    def _next_work(self, me: _Thread) -> _Work | None:
        """Wait for work; None tells the thread to end, which then counts no more."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()[1]
            if self._is_closed:
                self._leave()
                return None
            self._idle.append(me)
        if not me.wake.acquire(timeout=_END_AFTER_IDLE_SECONDS):
            with self._lock:
                if me in self._idle:
                    self._idle.remove(me)
                    self._leave()
                    return None
            me.wake.acquire()  # Work was handed over at the last moment.
        work, me.work = me.work, None
        if work is None:
            with self._lock:
                self._leave()
        return work

    def _leave(self) -> None:
        self._count -= 1
        self._ended.notify_all()

    def _add_as_needed(self) -> None:
        while self._something_waits.wait() and not self._is_closed:
            self._something_waits.clear()
            began, used = time.monotonic(), time.process_time()
            time.sleep(_GROW_AFTER_SECONDS)
            is_busy = time.process_time() - used > _BUSY_SHARE * (time.monotonic() - began)
            with self._lock:
                if not self._waiting:
                    continue
                self._something_waits.set()
                has_waited = time.monotonic() - self._waiting[0][0] >= _GROW_AFTER_SECONDS
                if has_waited and not is_busy:
                    self._add(min(max(self._count, 1), self._most - self._count))

    def _add(self, number: int) -> None:
        for _ in range(number):
            try:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            except RuntimeError:
                _logger.warning("The system gives no more than %d threads; calls wait for these.", self._count)
                return
            self._count += 1
