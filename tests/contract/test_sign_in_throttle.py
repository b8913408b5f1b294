"""What counting failed sign-ins must do on every database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from pixyproxy.core.exceptions import TooManySignInsError
from pixyproxy.data.database import Database
from pixyproxy.service.sign_in_throttle import SignInThrottle
from tests.contract.databases import open_database
from tests.support.waiting import wait_until

PEER = "ipv4:10.0.0.1"
OTHER_PEER = "ipv4:10.0.0.2"


def is_refused(throttle: SignInThrottle, username: str, peer: str = PEER) -> bool:
    try:
        throttle.require_allowed(username, peer)
    except TooManySignInsError as error:
        return 0 < (error.retry_after or 0) <= 60
    return False


def count_rows(database: Database) -> int:
    with database.reading() as context:
        (row,) = context.fetch_all("SELECT COUNT(*) AS n FROM failed_sign_ins", {})
    return int(row["n"])


def test_after_the_limit_a_name_is_refused_from_this_peer_alone(database: Database) -> None:
    throttle = SignInThrottle(database, 3, 60)
    for _ in range(3):
        assert not is_refused(throttle, "alice")
        throttle.note_failure("alice", PEER)

    assert is_refused(throttle, "alice")
    assert not is_refused(throttle, "alice", OTHER_PEER)
    assert not is_refused(throttle, "bob")


def test_a_peer_that_tries_many_names_is_refused(database: Database) -> None:
    throttle = SignInThrottle(database, 2, 60)
    for number in range(20):
        assert not is_refused(throttle, f"user{number}")
        throttle.note_failure(f"user{number}", PEER)

    assert is_refused(throttle, "another")
    assert not is_refused(throttle, "another", OTHER_PEER)


def test_all_servers_count_together(database: Database, database_url: str) -> None:
    with closing(open_database(database_url)) as other_database:
        here, there = SignInThrottle(database, 2, 60), SignInThrottle(other_database, 2, 60)
        here.note_failure("alice", PEER)
        there.note_failure("alice", PEER)

        assert is_refused(here, "alice")
        assert is_refused(there, "alice")
        there.note_success("alice", PEER)
        assert not is_refused(here, "alice")


def test_a_success_forgets_the_name_and_not_the_peer(database: Database) -> None:
    throttle = SignInThrottle(database, 1, 60)
    for _ in range(10):
        throttle.note_failure("alice", PEER)
    throttle.note_success("alice", PEER)

    assert is_refused(throttle, "alice")  # by the peer's count
    assert count_rows(database) == 10


def test_failures_are_over_after_the_window_and_go(database: Database) -> None:
    throttle = SignInThrottle(database, 1, 0.2)
    for number in range(5):
        throttle.note_failure(f"user{number}", PEER)
    wait_until(lambda: not is_refused(throttle, "user4"), 30, "the window to end")

    throttle.note_failure("bob", PEER)

    assert count_rows(database) == 2


@pytest.mark.parametrize("name", ["", "x" * 100_000, "\ud800", "名前", "a\0b", "' OR 1=1 --"])
def test_any_name_can_be_counted(database: Database, name: str) -> None:
    throttle = SignInThrottle(database, 1, 60)
    throttle.note_failure(name, PEER)

    assert is_refused(throttle, name)


def test_many_that_fail_at_once_are_all_counted(database: Database) -> None:
    throttle = SignInThrottle(database, 100, 60)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: throttle.note_failure("alice", PEER), range(40)))

    assert count_rows(database) == 80
