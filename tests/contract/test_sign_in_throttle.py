"""What counting failed sign-ins must do on every database."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from pixyproxy.core.exceptions import StorageFullError, TooManySignInsError
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.sign_ins import SignInRepository
from pixyproxy.service.sign_in.throttle import SignInThrottle, Standing
from tests.contract.databases import open_database
from tests.support.waiting import wait_until

ADDRESS = "10.0.0.1"
OTHER_ADDRESS = "10.0.0.2"


def is_refused(throttle: SignInThrottle, username: str, address: str = ADDRESS) -> bool:
    try:
        throttle.require_allowed(username, address)
    except TooManySignInsError as error:
        return 0 < (error.retry_after or 0) <= 60
    return False


def count_rows(database: Database) -> int:
    with database.reading() as context:
        (row,) = context.fetch_all("SELECT COUNT(*) AS n FROM failed_sign_ins", {})
    return int(row["n"])


def test_after_the_limit_a_name_is_refused_from_this_address_alone(database: Database) -> None:
    throttle = SignInThrottle(database, 3, 60)
    for _ in range(3):
        assert not is_refused(throttle, "alice")
        throttle.note_failure("alice", ADDRESS)

    assert is_refused(throttle, "alice")
    assert not is_refused(throttle, "alice", OTHER_ADDRESS)
    assert not is_refused(throttle, "bob")


def test_an_address_that_tries_many_names_is_slowed(database: Database) -> None:
    throttle = SignInThrottle(database, 2, 60)
    for number in range(20):
        assert throttle.standing_of("another", ADDRESS) == Standing(is_known=False, is_slowed=False)
        throttle.note_failure(f"user{number}", ADDRESS)

    assert throttle.standing_of("another", ADDRESS) == Standing(is_known=False, is_slowed=True)
    assert throttle.standing_of("another", OTHER_ADDRESS) == Standing(is_known=False, is_slowed=False)
    assert not is_refused(throttle, "another")


def test_a_name_that_has_signed_in_there_is_not_slowed(database: Database, database_url: str) -> None:
    throttle = SignInThrottle(database, 1, 60)
    throttle.note_success("alice", ADDRESS)
    for number in range(10):
        throttle.note_failure(f"user{number}", ADDRESS)

    with closing(open_database(database_url)) as other_database:
        for anywhere in (throttle, SignInThrottle(other_database, 1, 60)):
            assert anywhere.standing_of("alice", ADDRESS) == Standing(is_known=True, is_slowed=False)
            assert anywhere.standing_of("bob", ADDRESS) == Standing(is_known=False, is_slowed=True)
    assert throttle.standing_of("alice", OTHER_ADDRESS) == Standing(is_known=False, is_slowed=False)
    throttle.note_failure("alice", ADDRESS)
    assert is_refused(throttle, "alice")


def test_a_success_is_noted_again_after_a_day_and_forgotten_after_a_month(database: Database) -> None:
    throttle = SignInThrottle(database, 1, 60)
    now = datetime.now(UTC)
    month, two_days, half_a_day = (now - timedelta(days=days) for days in (31, 2, 0.5))
    for name, then in (("alice", month), ("bob", two_days), ("carol", half_a_day)):
        throttle.note_success(name, ADDRESS)
        with database.transaction() as context:
            context.execute(
                "UPDATE past_sign_ins SET signed_in_at = :then WHERE signed_in_at > :half_a_day",
                {"then": then, "half_a_day": half_a_day},
            )
            context.commit()

    for name in ("bob", "carol"):
        throttle.note_success(name, ADDRESS)

    with database.reading() as context:
        rows = context.fetch_all("SELECT signed_in_at FROM past_sign_ins ORDER BY signed_in_at", {})
    older, newer = (row["signed_in_at"] for row in rows)
    assert older == half_a_day
    assert newer > half_a_day


def test_a_success_that_cannot_be_noted_is_one(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise StorageFullError("There is no room left.")

    monkeypatch.setattr(SignInRepository, "set_success", refuse)
    SignInThrottle(database, 1, 60).note_success("alice", ADDRESS)


def test_all_servers_count_together(database: Database, database_url: str) -> None:
    with closing(open_database(database_url)) as other_database:
        here, there = SignInThrottle(database, 2, 60), SignInThrottle(other_database, 2, 60)
        here.note_failure("alice", ADDRESS)
        there.note_failure("alice", ADDRESS)

        assert is_refused(here, "alice")
        assert is_refused(there, "alice")
        there.note_success("alice", ADDRESS)
        assert not is_refused(here, "alice")


def test_a_success_forgets_the_failures_of_the_name_and_not_of_the_address(database: Database) -> None:
    throttle = SignInThrottle(database, 1, 60)
    for _ in range(10):
        throttle.note_failure("alice", ADDRESS)
    throttle.note_success("alice", ADDRESS)

    assert not is_refused(throttle, "alice")
    assert throttle.standing_of("bob", ADDRESS).is_slowed
    assert count_rows(database) == 10


def test_slowed_addresses_may_fail_as_often_as_within_the_limit(database: Database) -> None:
    assert SignInThrottle(database, 10, 60).pause == 0.6
    assert SignInThrottle(database, 1, 86_400).pause == 1  # right passwords among them must not wait for hours


def test_failures_are_over_after_the_window_and_go(database: Database) -> None:
    throttle = SignInThrottle(database, 1, 0.2)
    for number in range(5):
        throttle.note_failure(f"user{number}", ADDRESS)
    wait_until(lambda: not is_refused(throttle, "user4"), 30, "the window to end")

    throttle.note_failure("bob", ADDRESS)

    assert count_rows(database) == 2


def test_failures_count_to_the_end_of_the_window(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    monkeypatch.setattr(DatabaseContext, "now", lambda _: now)
    throttle = SignInThrottle(database, 1, 60)
    for _ in range(10):
        throttle.note_failure("alice", ADDRESS)

    now += timedelta(seconds=59.5)
    with pytest.raises(TooManySignInsError) as refused:
        throttle.require_allowed("alice", ADDRESS)
    assert refused.value.retry_after == 0.5
    assert throttle.standing_of("bob", ADDRESS).is_slowed
    now += timedelta(seconds=0.5)
    throttle.require_allowed("alice", ADDRESS)
    assert not throttle.standing_of("bob", ADDRESS).is_slowed


def test_servers_of_all_releases_count_under_the_same_name(database: Database) -> None:
    SignInThrottle(database, 1, 60).note_failure("名前", ADDRESS)

    with database.reading() as context:
        rows = context.fetch_all("SELECT counter FROM failed_sign_ins ORDER BY id", {})
    assert [row["counter"] for row in rows] == [
        hashlib.sha256(f"名前\0{ADDRESS}".encode()).hexdigest(),
        hashlib.sha256(b"10.0.0.1").hexdigest(),
    ]


@pytest.mark.parametrize("name", ["", "x" * 100_000, "\ud800", "名前", "a\0b", "' OR 1=1 --"])
def test_any_name_can_be_counted(database: Database, name: str) -> None:
    throttle = SignInThrottle(database, 1, 60)
    throttle.note_failure(name, ADDRESS)

    assert is_refused(throttle, name)


def test_many_that_fail_at_once_are_all_counted(database: Database) -> None:
    throttle = SignInThrottle(database, 100, 60)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: throttle.note_failure("alice", ADDRESS), range(40)))

    assert count_rows(database) == 80
