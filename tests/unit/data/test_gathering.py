from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import pytest

from pixyproxy.data.gathering import GatheredReads
from tests.support.waiting import wait_until

_TIMEOUT = 30.0


class Queries:
    """Queries that are answered when the test says so: each key with itself in upper case."""

    def __init__(self) -> None:
        self.begun: list[list[str]] = []
        self._answers: SimpleQueue[Exception | None] = SimpleQueue()

    def read(self, keys: Sequence[str]) -> list[str]:
        self.begun.append(list(keys))
        error = self._answers.get(timeout=_TIMEOUT)
        if error is not None:
            raise error
        return [key.upper() for key in keys]

    def answer(self, error: Exception | None = None) -> None:
        self._answers.put(error)

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.begun) >= count, _TIMEOUT, f"query {count}")


@pytest.fixture
def queries() -> Queries:
    return Queries()


@pytest.fixture
def reads(queries: Queries) -> GatheredReads[str, str]:
    return GatheredReads(queries.read)


@pytest.fixture
def patient_reads(queries: Queries) -> GatheredReads[str, str]:
    """Reads that wait for a slow query and do not start another one."""
    return GatheredReads(queries.read, longest_wait=2 * _TIMEOUT)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(100) as pool:
        yield pool


def _get_all(threads: ThreadPoolExecutor, reads: GatheredReads[str, str], keys: Sequence[str]) -> list[Future[str]]:
    """Begin reads, and wait until all of them wait for a query."""
    before = len(reads._next.keys)
    found = [threads.submit(reads.get, key) for key in keys]
    wait_until(lambda: len(reads._next.keys) == before + len(keys), _TIMEOUT, "all to wait")
    return found


def test_a_read_alone_is_a_query_at_once(queries: Queries, reads: GatheredReads[str, str]) -> None:
    queries.answer()
    assert reads.get("a") == "A"
    queries.answer()
    assert reads.get("a") == "A"
    assert queries.begun == [["a"], ["a"]]


def test_reads_that_come_meanwhile_share_the_next_query(
    queries: Queries, patient_reads: GatheredReads[str, str], threads: ThreadPoolExecutor
) -> None:
    first = threads.submit(patient_reads.get, "a")
    queries.wait_for(1)
    others = _get_all(threads, patient_reads, ["b", "c", "a", "c"])
    # Also what is under way already is asked for anew: it may have changed since that query began.
    queries.answer()
    assert first.result(_TIMEOUT) == "A"
    queries.answer()
    assert [other.result(_TIMEOUT) for other in others] == ["B", "C", "A", "C"]
    assert [sorted(keys) for keys in queries.begun] == [["a"], ["a", "b", "c", "c"]]


def test_all_who_share_a_query_are_told_its_error(
    queries: Queries, patient_reads: GatheredReads[str, str], threads: ThreadPoolExecutor
) -> None:
    first = threads.submit(patient_reads.get, "a")
    queries.wait_for(1)
    others = _get_all(threads, patient_reads, ["b", "c"])
    queries.answer(ConnectionError("away"))
    queries.answer(ConnectionError("still away"))
    with pytest.raises(ConnectionError, match=r"^away"):
        first.result(_TIMEOUT)
    for other in others:
        with pytest.raises(ConnectionError, match="still away"):
            other.result(_TIMEOUT)
    queries.answer()
    assert patient_reads.get("d") == "D"


def test_a_query_that_hangs_does_not_keep_the_others_waiting(
    queries: Queries, reads: GatheredReads[str, str], threads: ThreadPoolExecutor
) -> None:
    hanging = threads.submit(reads.get, "a")
    queries.wait_for(1)
    other = threads.submit(reads.get, "b")
    queries.wait_for(2)
    third = threads.submit(reads.get, "c")
    queries.wait_for(3)
    for _ in range(3):
        queries.answer()
    assert [read.result(_TIMEOUT) for read in (hanging, other, third)] == ["A", "B", "C"]
    queries.answer()
    assert reads.get("d") == "D"


def test_many_threads_get_what_they_asked_for() -> None:
    reads: GatheredReads[int, int] = GatheredReads(lambda keys: [-key for key in keys])
    wrong: list[int] = []

    def read_many(first: int) -> None:
        wrong.extend(number for number in range(first, first + 2000) if reads.get(number) != -number)

    workers = [threading.Thread(target=read_many, args=(10_000 * number,)) for number in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(_TIMEOUT)
        assert not worker.is_alive()
    assert wrong == []
