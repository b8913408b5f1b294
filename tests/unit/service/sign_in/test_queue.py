"""Whose sign-in is checked next, whatever others send."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pixyproxy.core.exceptions import CredentialsInvalidError, TooBusyError, TooManySignInsError
from pixyproxy.core.fields import UserClass
from pixyproxy.core.models import Caller
from pixyproxy.service.sign_in.queue import SignInQueue
from pixyproxy.service.sign_in.throttle import Standing
from tests.support.waiting import wait_until

HERE, THERE, ELSEWHERE = "10.0.0.1", "10.0.0.2", "10.0.0.3"
UNKNOWN = Standing(is_known=False, is_slowed=False)
KNOWN = Standing(is_known=True, is_slowed=False)
SLOWED = Standing(is_known=False, is_slowed=True)
TIMEOUT = 60.0
_MAX_WAITING = 64
_WRONG = "wrong"
GUID = "123e4567-e89b-42d3-a456-426614174000"


class Desk:
    """A queue, people who sign in, and checks that go on when a test says so.

    Attributes:
        checked: the names whose checks have begun, in their order.
    """

    def __init__(self, pool: ThreadPoolExecutor, pause: float = TIMEOUT, wait: float = TIMEOUT) -> None:
        self.checked: list[str] = []
        self._queue = SignInQueue(pause, wait)
        self._pool = pool
        self._may_end = threading.Semaphore(0)

    @property
    def waiting(self) -> int:
        return len(self._queue._waiting)

    @property
    def running(self) -> int:
        return self._queue._checks

    def sign_in(
        self, name: str, address: str = HERE, standing: Standing = UNKNOWN, password: str = "right"
    ) -> Future[Caller]:
        """Sign in from another thread."""
        key = f"{name}:{password}".encode()
        return self._pool.submit(
            self._queue.check, name, address, key, standing, lambda: self._check(name, is_wrong=password == _WRONG)
        )

    def arrive(
        self, name: str, address: str = HERE, standing: Standing = UNKNOWN, password: str = "right"
    ) -> Future[Caller]:
        """Sign in, and be there before the next one is."""
        before = self.waiting + len(self.checked)
        future = self.sign_in(name, address, standing, password)
        wait_until(lambda: self.waiting + len(self.checked) > before, TIMEOUT, f"{name} to arrive")
        return future

    def be_busy(self) -> None:
        """Have as many checked as can be."""
        self.arrive("first", "10.9.0.1")
        self.arrive("second", "10.9.0.2")
        wait_until(lambda: len(self.checked) == 2, TIMEOUT, "both to be checked")
        self.checked.clear()

    def finish(self, checks: int) -> list[str]:
        """Let so many further checks begin, one after the other, and return whose they were."""
        for number in range(checks):
            self._may_end.release()
            wait_until(lambda: len(self.checked) > number, TIMEOUT, "the next check")  # noqa: B023
        return self.checked

    def let_all_finish(self) -> None:
        self._may_end.release(1000)

    def _check(self, name: str, *, is_wrong: bool) -> Caller:
        self.checked.append(name)
        assert self._may_end.acquire(timeout=TIMEOUT)
        if is_wrong:
            raise CredentialsInvalidError("wrong")
        return Caller(user_id=1, guid=GUID, username=name, class_key=UserClass.USER)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(200) as threads:
        yield threads


@pytest.fixture
def desk(pool: ThreadPoolExecutor) -> Iterator[Desk]:
    """A desk where all checks end in the end."""
    made = Desk(pool)
    yield made
    made.let_all_finish()
    wait_until(lambda: made.running == 0, TIMEOUT, "all checks to end")


def test_two_are_checked_at_a_time(desk: Desk) -> None:
    futures = [desk.arrive(f"user{number}") for number in range(5)]
    wait_until(lambda: desk.waiting == 3, TIMEOUT, "three to wait")
    assert len(desk.checked) == 2

    desk.let_all_finish()
    assert [future.result(TIMEOUT).username for future in futures] == [f"user{number}" for number in range(5)]


def test_addresses_are_served_in_turn(desk: Desk) -> None:
    desk.be_busy()
    for number in range(5):
        desk.arrive(f"here{number}", HERE)
    for number in range(2):
        desk.arrive(f"there{number}", THERE)
    desk.arrive("elsewhere", ELSEWHERE)

    assert desk.finish(8) == ["here0", "there0", "elsewhere", "here1", "there1", "here2", "here3", "here4"]


def test_names_of_an_address_are_served_in_turn(desk: Desk) -> None:
    desk.be_busy()
    for number in range(4):
        desk.arrive("guessed", HERE, password=f"guess {number}")
    desk.arrive("alice", HERE)
    desk.arrive("bob", HERE)

    assert desk.finish(6) == ["guessed", "alice", "bob", "guessed", "guessed", "guessed"]


def test_known_names_come_first(desk: Desk) -> None:
    desk.be_busy()
    for number in range(5):
        desk.arrive(f"unknown{number}", f"10.1.0.{number}")
    desk.arrive("alice", HERE, KNOWN)

    assert desk.finish(1) == ["alice"]


def test_of_a_slowed_address_one_is_checked_at_a_time(desk: Desk) -> None:
    for number in range(3):
        desk.arrive(f"here{number}", HERE, SLOWED)
    desk.arrive("there", THERE, SLOWED)

    assert desk.checked == ["here0", "there"]


def test_a_slowed_address_pauses_after_a_failure(pool: ThreadPoolExecutor) -> None:
    desk = Desk(pool, wait=1)
    desk.let_all_finish()
    with pytest.raises(CredentialsInvalidError):
        desk.sign_in("here0", HERE, SLOWED, _WRONG).result(TIMEOUT)
    with pytest.raises(TooManySignInsError):
        desk.sign_in("here1", HERE, SLOWED).result(TIMEOUT)
    desk.sign_in("there", THERE, SLOWED).result(TIMEOUT)
    desk.sign_in("known", HERE, KNOWN).result(TIMEOUT)

    assert desk.checked == ["here0", "there", "known"]


def test_a_slowed_address_goes_on_after_a_success(desk: Desk) -> None:
    desk.arrive("here0", HERE, SLOWED)
    desk.arrive("here1", HERE, SLOWED)

    assert desk.finish(2) == ["here0", "here1"]


def test_after_the_pause_a_slowed_address_goes_on(pool: ThreadPoolExecutor) -> None:
    desk = Desk(pool, pause=0.2)
    desk.let_all_finish()
    started = time.monotonic()
    futures = [desk.sign_in(f"user{number}", HERE, SLOWED, _WRONG) for number in range(4)]
    for future in futures:
        with pytest.raises(CredentialsInvalidError):
            future.result(TIMEOUT)

    assert time.monotonic() - started >= 3 * 0.2


def test_who_waits_for_too_long_is_told_to_come_again(pool: ThreadPoolExecutor) -> None:
    desk = Desk(pool, wait=0.1)
    desk.be_busy()
    for standing, refusal, retry_after in ((UNKNOWN, TooBusyError, 1), (SLOWED, TooManySignInsError, 10)):
        with pytest.raises(refusal) as refused:
            desk.sign_in("alice", HERE, standing).result(TIMEOUT)
        assert refused.value.retry_after == retry_after
    assert desk.waiting == 0
    desk.let_all_finish()


def test_the_address_with_the_most_waiting_makes_room(desk: Desk) -> None:
    desk.be_busy()
    there = [desk.arrive(f"there{number}", THERE) for number in range(4)]
    here = [desk.arrive(f"here{number}", HERE, SLOWED) for number in range(_MAX_WAITING - 4)]

    elsewhere = desk.sign_in("elsewhere", ELSEWHERE)
    with pytest.raises(TooManySignInsError):
        here[-1].result(TIMEOUT)
    with pytest.raises(TooManySignInsError):
        desk.sign_in("another", HERE, SLOWED).result(TIMEOUT)

    assert desk.waiting == _MAX_WAITING
    desk.let_all_finish()
    assert elsewhere.result(TIMEOUT).username == "elsewhere"
    assert all(future.result(TIMEOUT) for future in (*there, *here[:-1]))


def test_of_that_address_the_name_with_the_most_waiting_makes_room(desk: Desk) -> None:
    desk.be_busy()
    guesses = [desk.arrive("guessed", HERE, password=f"guess {number}") for number in range(_MAX_WAITING)]

    alice = desk.sign_in("alice", HERE)
    with pytest.raises(TooBusyError):
        guesses[-1].result(TIMEOUT)
    known = desk.sign_in("known", HERE, KNOWN)
    with pytest.raises(TooBusyError):
        guesses[-2].result(TIMEOUT)

    desk.let_all_finish()
    assert alice.result(TIMEOUT).username == "alice"
    assert known.result(TIMEOUT).username == "known"


def test_the_same_credentials_that_wait_are_checked_once(desk: Desk) -> None:
    desk.be_busy()
    first = desk.arrive("alice")
    others = [desk.sign_in("alice") for _ in range(100)]
    desk.let_all_finish()

    assert {future.result(TIMEOUT).username for future in (first, *others)} == {"alice"}
    assert desk.checked.count("alice") < 50


def test_calls_with_the_same_credentials_from_a_slowed_address_are_bounded(desk: Desk) -> None:
    desk.be_busy()
    first = desk.arrive("alice", HERE, SLOWED)
    others = [desk.sign_in("alice", HERE, SLOWED) for _ in range(_MAX_WAITING + 10)]
    wait_until(lambda: sum(future.done() for future in others) == 10, TIMEOUT, "ten to be refused")
    desk.let_all_finish()

    assert first.result(TIMEOUT).username == "alice"
    refused = [future.exception(TIMEOUT) for future in others if future.exception(TIMEOUT)]
    assert [type(error) for error in refused] == [TooManySignInsError] * 10
