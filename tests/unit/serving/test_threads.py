"""The threads that calls run in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from pixyproxy.serving import threads
from pixyproxy.serving.threads import CallThreads
from tests.support.waiting import wait_until

_TIMEOUT = 30.0


@contextmanager
def call_threads(*, few: int, most: int) -> Iterator[CallThreads]:
    pool = CallThreads("test", few=few, most=most)
    try:
        yield pool
    finally:
        pool.shutdown()


class Calls:
    """Calls that wait until they are let go."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.names: list[str] = []

    def __call__(self) -> None:
        self.names.append(threading.current_thread().name)
        self.began.release()
        assert self.may_end.wait(_TIMEOUT)

    def have_begun(self, number: int) -> bool:
        return all(self.began.acquire(timeout=_TIMEOUT) for _ in range(number))


def named(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def test_a_few_threads_are_made_as_they_are_needed() -> None:
    with call_threads(few=2, most=2) as pool:
        assert named("test") == 0
        calls = Calls()
        for number in (1, 2):
            pool.submit(calls)
            assert calls.have_begun(1)
            assert named("test") == number
        calls.may_end.set()
    assert named("test") == 0


def test_a_thread_that_is_idle_is_used_again() -> None:
    with call_threads(few=8, most=8) as pool:
        used: list[int] = []

        def are_done(number: int) -> bool:
            return len(used) == number and len(pool._idle) == 1

        for number in range(1, 50):
            pool.submit(lambda: used.append(threading.get_ident()))
            wait_until(partial(are_done, number), _TIMEOUT, "the call")
        assert len(set(used)) == 1


def test_what_waits_for_threads_that_wait_is_given_more() -> None:
    with call_threads(few=1, most=20) as pool:
        calls = Calls()
        for _ in range(20):
            pool.submit(calls)
        assert calls.have_begun(20)
        calls.may_end.set()


def test_there_are_never_more_threads_than_may_be() -> None:
    with call_threads(few=1, most=3) as pool:
        calls = Calls()
        for _ in range(5):
            pool.submit(calls)
        assert calls.have_begun(3)
        assert not calls.began.acquire(timeout=4 * threads._GROW_AFTER_SECONDS)
        assert named("test") == 3
        calls.may_end.set()
        assert calls.have_begun(2)


def test_threads_that_are_busy_get_no_others_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # More threads would only take the interpreter from one another.
    looks = threading.Semaphore(0)

    def all_the_time() -> float:
        looks.release()
        return time.monotonic()

    monkeypatch.setattr(time, "process_time", all_the_time)
    with call_threads(few=1, most=8) as pool:
        calls = Calls()
        for _ in range(3):
            pool.submit(calls)
        assert all(looks.acquire(timeout=_TIMEOUT) for _ in range(8))
        assert named("test") == 1
        calls.may_end.set()
        assert calls.have_begun(3)


def test_threads_that_have_nothing_to_do_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_END_AFTER_IDLE_SECONDS", 0.05)
    with call_threads(few=4, most=4) as pool:
        calls = Calls()
        for _ in range(4):
            pool.submit(calls)
        assert calls.have_begun(4)
        calls.may_end.set()
        wait_until(lambda: named("test") == 0, _TIMEOUT, "the threads to end")
        pool.submit(calls)
        assert calls.have_begun(1)


def test_an_error_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with call_threads(few=1, most=1) as pool:
        calls = Calls()
        calls.may_end.set()
        pool.submit(fail)
        pool.submit(calls)
        assert calls.have_begun(1)
    assert "KeyboardInterrupt" in caplog.text


def test_a_system_that_gives_no_threads_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start
    refused: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "test" and len(refused) < 3:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    with call_threads(few=1, most=4) as pool:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        calls = Calls()
        calls.may_end.set()
        # gRPC's serving thread calls this, and would die of an error.
        pool.submit(calls)
        assert calls.have_begun(1)
    assert len(refused) == 3
    assert "no more than 0 threads" in caplog.text


def test_what_was_submitted_is_done_before_the_end() -> None:
    done: list[int] = []
    with call_threads(few=1, most=1) as pool:
        for number in range(100):
            pool.submit(done.append, number)
    assert done == list(range(100))
    with pytest.raises(RuntimeError, match="told to end"):
        pool.submit(done.append, 100)


def test_threads_that_hang_are_not_waited_for_beyond_a_time() -> None:
    going_on = threading.Event()
    pool = CallThreads("hanging", few=2, most=2)
    for _ in range(2):
        pool.submit(going_on.wait)
    pool.shutdown(wait=False)

    assert pool.join(0.01) == 2
    going_on.set()
    assert pool.join(30) == 0


@pytest.mark.parametrize("few", [1, 8])
def test_many_calls_are_each_done_once(few: int) -> None:
    done: list[int] = []

    def submit(first: int, pool: CallThreads) -> None:
        for number in range(first, first + 1000):
            pool.submit(done.append, number)

    with call_threads(few=few, most=16) as pool:
        submitters: list[Callable[[], None]] = []
        for first in range(0, 8000, 1000):
            thread = threading.Thread(target=submit, args=(first, pool))
            thread.start()
            submitters.append(thread.join)
        for join in submitters:
            join()
    assert sorted(done) == list(range(8000))


def test_threads_are_overloaded_while_very_many_calls_wait() -> None:
    with call_threads(few=1, most=1) as pool:
        calls = Calls()
        pool.submit(calls)
        assert calls.have_begun(1)
        for _ in range(threads._MOST_WAITING - 1):
            pool.submit(lambda: None)
        assert not pool.is_overloaded
        pool.submit(lambda: None)
        assert pool.is_overloaded
        calls.may_end.set()
        wait_until(lambda: not pool.is_overloaded, _TIMEOUT, "the calls to be run")
