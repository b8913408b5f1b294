"""What limiting the images per minute of all servers must do on every database."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pixyproxy.data.database import Database
from pixyproxy.data.repositories.rate_limit_slots import RateLimitSlotRepository
from pixyproxy.service.creation.rate_limiter import RateLimiter
from tests.contract.take_slots_in_process import take
from tests.support.waiting import wait_until

PROJECT = Path(__file__).parents[2]


def rows(database: Database) -> list[int]:
    with database.reading() as context:
        return [row["id"] for row in context.fetch_all("SELECT id FROM provider_turns ORDER BY id", {})]


def take_long_ago(database: Database, number: int, ago: timedelta) -> None:
    with database.transaction() as context:
        RateLimitSlotRepository(context).insert(number, context.now() - ago)
        context.commit()


def test_the_database_tells_the_time(database: Database) -> None:
    with database.reading() as context:
        now = context.now()

    assert abs(now - datetime.now(UTC)) < timedelta(seconds=60)


def test_no_more_are_given_within_a_window_than_may_be(database: Database) -> None:
    limiter = RateLimiter(database, 3)

    assert [take(database, limiter) for _ in range(3)] == [0, 0, 0]
    wait = take(database, limiter)

    assert 50 < wait <= 60
    assert rows(database) == [1, 2, 3]


def test_a_slot_comes_back_after_the_window(database: Database) -> None:
    limiter = RateLimiter(database, 2, timedelta(seconds=0.3))
    assert [take(database, limiter), take(database, limiter)] == [0, 0]

    wait_until(lambda: take(database, limiter) == 0, 30, "the window to end")


def test_each_slot_opens_one_a_window_later(database: Database) -> None:
    limiter = RateLimiter(database, 2)
    take_long_ago(database, 1, timedelta(seconds=50))
    take_long_ago(database, 2, timedelta(seconds=20))

    expected = [10, 40, 70, 100, 130]
    assert [limiter.wait_for(ahead) for ahead in range(5)] == pytest.approx(expected, abs=5)


def test_who_waits_for_nothing_is_told_so(database: Database) -> None:
    limiter = RateLimiter(database, 2)

    assert [limiter.wait_for(ahead) for ahead in range(3)] == [0, 0, 60]
    take(database, limiter)
    assert limiter.wait_for(0) == 0


def test_only_as_many_are_remembered_as_matter(database: Database) -> None:
    limiter = RateLimiter(database, 3, timedelta(0))

    for _ in range(10):
        assert take(database, limiter) == 0

    assert rows(database) == [8, 9, 10]


def test_a_clock_that_was_set_back_stops_nobody_for_longer_than_a_window(database: Database) -> None:
    limiter = RateLimiter(database, 1)
    take_long_ago(database, 1, timedelta(hours=-3))

    assert take(database, limiter) == 60


def test_processes_share_the_slots(database: Database, database_url: str) -> None:
    limit = 60
    command = [sys.executable, "-m", "tests.contract.take_slots_in_process", database_url, str(limit)]
    with ExitStack() as stack:
        takers = [
            stack.enter_context(
                subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(3)
        ]
        for taker in takers:
            assert taker.stdout is not None
            assert taker.stdout.readline() == "ready\n"
        for taker in takers:
            assert taker.stdin is not None
            taker.stdin.write("go\n")
            taker.stdin.flush()
        taken = [taker.communicate()[0] for taker in takers]

    assert sum(map(int, taken)) == limit
    assert rows(database) == list(range(1, limit + 1))
