from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pixyproxy.core.exceptions import DBConnectionError
from pixyproxy.data.pool import ConnectionPool


class Connections:
    """Makes numbered connections, and notes which are closed."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)  # Counts in one step, whichever thread asks.
        self.opened = 0
        self.closed: list[int] = []
        self.is_down = False

    def connect(self) -> int:
        if self.is_down:
            raise DBConnectionError("down")
        self.opened = next(self._numbers)
        return self.opened

    def pool(self, size: int = 2, wait: float = 0.0, **intervals: float) -> ConnectionPool[int]:
        return ConnectionPool(self.connect, self.closed.append, size=size, wait=wait, **intervals)


@pytest.fixture
def connections() -> Connections:
    return Connections()


def test_nothing_is_opened_before_it_is_needed(connections: Connections) -> None:
    pool = connections.pool()
    assert connections.opened == 0

    assert pool.acquire() == (1, False)
    assert connections.opened == 1


def test_a_connection_given_back_is_used_again(connections: Connections) -> None:
    pool = connections.pool()
    connection, _ = pool.acquire()
    pool.release(connection, reusable=True)

    assert pool.acquire() == (connection, True)
    assert (connections.opened, connections.closed) == (1, [])


def test_the_one_used_last_is_given_out_first(connections: Connections) -> None:
    pool = connections.pool(size=3)
    taken = [pool.acquire()[0] for _ in range(3)]
    for connection in (2, 1, 3):
        pool.release(connection, reusable=True)

    assert taken == [1, 2, 3]
    assert [pool.acquire()[0] for _ in range(3)] == [3, 1, 2]


def test_no_more_than_its_size_are_open(connections: Connections) -> None:
    pool = connections.pool(size=2)
    pool.acquire()
    pool.acquire()

    for _ in range(2):
        with pytest.raises(DBConnectionError) as refused:
            pool.acquire()
        assert refused.value.retry_after is not None
    assert connections.opened == 2

    pool.release(1, reusable=True)
    assert pool.acquire() == (1, True)


def test_a_waiting_thread_gets_what_another_one_gives_back(connections: Connections) -> None:
    pool = connections.pool(size=1, wait=30)
    connection, _ = pool.acquire()
    is_waiting = threading.Event()

    def wait() -> tuple[int, bool]:
        is_waiting.set()
        return pool.acquire()

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait)
        assert is_waiting.wait(timeout=30)
        pool.release(connection, reusable=True)
        assert waiting.result(timeout=30) == (connection, True)


def test_one_that_is_not_reusable_is_closed_and_its_slot_is_free(connections: Connections) -> None:
    pool = connections.pool(size=1)
    for expected in (1, 2, 3):
        connection, was_used = pool.acquire()
        assert (connection, was_used) == (expected, False)
        pool.release(connection, reusable=False)

    assert connections.closed == [1, 2, 3]


def test_a_connection_that_cannot_be_made_takes_no_slot(connections: Connections) -> None:
    pool = connections.pool(size=1, retry_interval=0.0)
    connections.is_down = True
    for _ in range(3):
        with pytest.raises(DBConnectionError, match="down"):
            pool.acquire()

    connections.is_down = False
    assert pool.acquire() == (1, False)


def test_renewing_drops_the_idle_ones_too(connections: Connections) -> None:
    pool = connections.pool(size=3)
    for connection in [pool.acquire()[0] for _ in range(3)]:
        pool.release(connection, reusable=True)
    dead, _ = pool.acquire()

    fresh = pool.renew(dead)

    assert fresh == 4
    assert sorted(connections.closed) == [1, 2, 3]
    pool.release(fresh, reusable=True)
    # There are as many slots as before.
    assert [pool.acquire() for _ in range(3)] == [(4, True), (5, False), (6, False)]
    with pytest.raises(DBConnectionError):
        pool.acquire()


def test_renewing_that_fails_releases_the_slot(connections: Connections) -> None:
    pool = connections.pool(size=1)
    dead, _ = pool.acquire()
    connections.is_down = True

    with pytest.raises(DBConnectionError, match="down"):
        pool.renew(dead)

    assert connections.closed == [dead]
    connections.is_down = False
    assert pool.acquire() == (2, False)


def test_closing_closes_the_idle_now_and_the_others_when_they_come_back(connections: Connections) -> None:
    pool = connections.pool(size=3)
    taken = [pool.acquire()[0] for _ in range(3)]
    pool.release(taken[0], reusable=True)
    pool.release(taken[1], reusable=True)

    pool.close()
    assert sorted(connections.closed) == taken[:2]

    pool.release(taken[2], reusable=True)
    assert sorted(connections.closed) == taken
    pool.close()
    assert sorted(connections.closed) == taken


def test_many_threads_never_share_a_connection(connections: Connections) -> None:
    pool = connections.pool(size=3, wait=30)
    in_use: set[int] = set()
    most_at_once = 0
    lock = threading.Lock()

    def use(number: int) -> None:
        nonlocal most_at_once
        for step in range(50):
            connection, _ = pool.acquire()
            with lock:
                assert connection not in in_use
                in_use.add(connection)
                most_at_once = max(most_at_once, len(in_use))
            with lock:
                in_use.remove(connection)
            pool.release(connection, reusable=(number + step) % 10 > 0)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(8)))

    assert 1 <= most_at_once <= 3
    assert len(connections.closed) == 8 * 5


def test_a_silent_database_takes_the_idle_connections_with_it(connections: Connections) -> None:
    pool = connections.pool(size=3)
    taken = [pool.acquire()[0] for _ in range(3)]
    pool.release(taken[0], reusable=True)
    pool.report_silence(time.monotonic())
    pool.release(taken[1], reusable=False)

    assert sorted(connections.closed) == sorted(taken[:2])


def test_a_slow_statement_does_not_close_the_connections_of_others(connections: Connections) -> None:
    """The database has answered others while one statement took too long: it is not down."""
    pool = connections.pool(size=3, silence_tolerance=0.0)
    slow, quick = pool.acquire()[0], pool.acquire()[0]
    began = time.monotonic()
    pool.release(quick, reusable=True)
    pool.report_silence(began)
    pool.release(slow, reusable=False)

    assert connections.closed == [slow]
    assert pool.acquire() == (quick, True)
    assert pool.acquire() == (3, False)


def test_while_the_database_is_down_one_tries_and_the_others_are_refused_at_once() -> None:
    """Otherwise every caller would wait as long as a connection takes to fail."""
    trying, fail = threading.Event(), threading.Event()
    attempts = itertools.count()

    def connect() -> int:
        if next(attempts) == 0:
            raise DBConnectionError("down")
        trying.set()
        assert fail.wait(30)
        raise DBConnectionError("still down")

    pool = ConnectionPool(connect, lambda _: None, size=4, wait=0.0)
    with pytest.raises(DBConnectionError, match=r"^down$"):
        pool.acquire()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(pool.acquire)
        assert trying.wait(30)
        for _ in range(5):
            with pytest.raises(DBConnectionError, match="cannot be reached") as refused:
                pool.acquire()
            assert refused.value.retry_after
        fail.set()
        with pytest.raises(DBConnectionError, match="still down"):
            first.result()


def test_once_the_database_is_back_everybody_is_served(connections: Connections) -> None:
    pool = connections.pool(size=3, retry_interval=0.0)
    connections.is_down = True
    for _ in range(5):
        with pytest.raises(DBConnectionError):
            pool.acquire()
    connections.is_down = False

    assert [pool.acquire() for _ in range(3)] == [(1, False), (2, False), (3, False)]
