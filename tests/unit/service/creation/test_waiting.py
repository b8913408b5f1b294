"""Calls that wait for their generations: what they are told, and when."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta

import pytest

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    ConflictError,
    DBConnectionError,
    PixyProxyException,
    PromptRefusedError,
    ServerStoppingError,
)
from pixyproxy.core.fields import GenerationState, new_guid
from pixyproxy.core.local_signal import LocalSignal
from pixyproxy.core.models import Caller, ImageCreation, ImageDetailCreate
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, RequestContext
from pixyproxy.service.creation.changes import GenerationChanges
from pixyproxy.service.creation.waiting import WaitingCalls
from tests.support.waiting import wait_until

TIMEOUT = 20.0
NEVER = 10 * TIMEOUT


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


@contextmanager
def waiting_calls(
    database: Database,
    *,
    changed: LocalSignal | None = None,
    interval: float = 0.02,
    give_up_after: float = NEVER,
    on_change: Callable[[int], object] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[WaitingCalls]:
    waiting = WaitingCalls(
        database,
        changed or LocalSignal(),
        require_closed=lambda: None,
        on_change=on_change,
        interval=interval,
        give_up_after=give_up_after,
        clock=clock,
    )
    with closing(waiting):
        waiting.start()
        yield waiting


def record(database: Database, author: Caller) -> Generation:
    creation = ImageCreation(detail=ImageDetailCreate(prompt="a castle"))
    with database.transaction() as context:
        recorded = GenerationRepository(context).insert(creation, author.user_id, "ab" * 32, RequestContext())
        context.commit()
    return recorded


def end(database: Database, generation: Generation) -> None:
    with database.transaction() as context:
        assert GenerationRepository(context).end(generation, GenerationState.FAILED, PromptRefusedError("no"))
        context.commit()


class Outage:
    """Lets reads of generations fail for as long as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        self.is_over = threading.Event()
        self.failures = 0
        get_several = GenerationRepository.get_several

        def fail_meanwhile(generations: GenerationRepository, ids: Collection[int]) -> list[Generation]:
            if self.is_over.is_set():
                return get_several(generations, ids)
            self.failures += 1
            raise error

        monkeypatch.setattr(GenerationRepository, "get_several", fail_meanwhile)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def note_looks(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """Return the ids of each look at generations, which are added as they come."""
    looks: list[set[int]] = []
    get_several = GenerationRepository.get_several

    def noted(generations: GenerationRepository, ids: Collection[int]) -> list[Generation]:
        looks.append(set(ids))
        return get_several(generations, ids)

    monkeypatch.setattr(GenerationRepository, "get_several", noted)
    return looks


def test_an_end_that_is_signalled_is_told_at_once(
    database: Database, pool: ThreadPoolExecutor, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing but what has ended and is waited for is looked at between two intervals."""
    looks = note_looks(monkeypatch)
    changed = LocalSignal()
    others, generation = record(database, alice), record(database, alice)
    with waiting_calls(database, changed=changed, interval=NEVER) as waiting:
        for waited_for in (others, generation):
            first = pool.submit(waiting.wait_for, waited_for, CallScope(TIMEOUT))
            wait_until(lambda: waiting.is_waited_for(waited_for.id), TIMEOUT, "it to wait")  # noqa: B023
        end(database, generation)
        changes = GenerationChanges([changed])
        changes.ended(generation.id + 1000)
        changes.progressed(others.id)
        changes.ended(generation.id)
        told = first.result()
        assert looks == [{generation.id}]
        assert told is not None
        assert told.state is GenerationState.FAILED
        assert waiting.is_waited_for(others.id)
        assert not waiting.is_waited_for(generation.id)
        end(database, others)
        changes.ended(others.id)


def test_watchers_are_told_at_once_of_other_changes(
    database: Database, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = note_looks(monkeypatch)
    changed = LocalSignal()
    generation = record(database, alice)
    with (
        waiting_calls(database, changed=changed, interval=NEVER) as waiting,
        waiting.watching(generation.id, CallScope(TIMEOUT)) as watcher,
    ):
        assert watcher.wait()  # It is queued.
        with database.transaction() as context:
            assert GenerationRepository(context).submit(
                generation.id, new_guid(), timedelta(minutes=1), "a model", None
            )
            context.commit()
        GenerationChanges([changed]).progressed(generation.id)
        assert watcher.wait()
    assert looks == [{generation.id}] * 2


def test_an_end_on_another_server_is_told_soon(database: Database, pool: ThreadPoolExecutor, alice: Caller) -> None:
    generation = record(database, alice)
    with waiting_calls(database) as waiting:
        call = pool.submit(waiting.wait_for, generation, CallScope(TIMEOUT))
        wait_until(lambda: waiting.is_waited_for(generation.id), TIMEOUT, "it to wait")
        end(database, generation)
        told = call.result()
    assert told is not None
    assert told.error is not None


def test_what_has_ended_before_is_told_soon(database: Database, alice: Caller) -> None:
    generation = record(database, alice)
    end(database, generation)
    with waiting_calls(database) as waiting:
        told = waiting.wait_for(generation, CallScope(TIMEOUT))
    assert told is not None
    assert told.state is GenerationState.FAILED


def test_who_leaves_or_whose_time_is_over_is_told_nothing(
    database: Database, pool: ThreadPoolExecutor, alice: Caller
) -> None:
    generation, leaving = record(database, alice), CallScope()
    with waiting_calls(database) as waiting:
        call = pool.submit(waiting.wait_for, generation, leaving)
        wait_until(lambda: waiting.is_waited_for(generation.id), TIMEOUT, "it to wait")
        leaving.leave()
        assert call.result() is None
        assert waiting.wait_for(generation, CallScope(0.05)) is None
        assert not waiting.is_waited_for(generation.id)


def test_watches_end_with_an_error_and_waiting_calls_do_not(
    database: Database, pool: ThreadPoolExecutor, alice: Caller
) -> None:
    generation = record(database, alice)
    with waiting_calls(database) as waiting:
        call = pool.submit(waiting.wait_for, generation, CallScope(TIMEOUT))
        wait_until(lambda: waiting.is_waited_for(generation.id), TIMEOUT, "it to wait")
        with waiting.watching(generation.id, CallScope(TIMEOUT)) as watcher:
            waiting.end_watches()
            # It may have been woken before by its first look.
            with pytest.raises(ServerStoppingError):
                deque(iter(watcher.wait, False), maxlen=0)
        # So does one whose call began before, and has waited to be signed in.
        with waiting.watching(generation.id, CallScope(TIMEOUT)) as watcher, pytest.raises(ServerStoppingError):
            deque(iter(watcher.wait, False), maxlen=0)
        assert waiting.is_waited_for(generation.id)
        end(database, generation)
        assert call.result() is not None


@pytest.mark.parametrize("error", [DBConnectionError("away"), ConflictError("busy")])
def test_while_the_database_is_away_for_long_calls_are_told(
    database: Database, alice: Caller, monkeypatch: pytest.MonkeyPatch, error: PixyProxyException
) -> None:
    Outage(monkeypatch, error)
    generation = record(database, alice)
    began = time.monotonic()
    with waiting_calls(database, give_up_after=0.3) as waiting, pytest.raises(type(error)):
        waiting.wait_for(generation, CallScope(TIMEOUT))
    assert time.monotonic() - began > 0.2


def test_while_the_database_is_away_for_long_watches_are_told(
    database: Database, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    Outage(monkeypatch, DBConnectionError("away"))
    generation = record(database, alice)
    with (
        waiting_calls(database, give_up_after=0.3) as waiting,
        waiting.watching(generation.id, CallScope(TIMEOUT)) as watcher,
        pytest.raises(DBConnectionError),
    ):
        # It may have been woken before by its first look.
        deque(iter(watcher.wait, False), maxlen=0)


@pytest.mark.parametrize("error", [DBConnectionError("away"), RuntimeError("not foreseen")])
def test_while_the_database_is_away_for_a_moment_calls_wait(
    database: Database,
    pool: ThreadPoolExecutor,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    outage = Outage(monkeypatch, error)
    generation = record(database, alice)
    with waiting_calls(database) as waiting:
        call = pool.submit(waiting.wait_for, generation, CallScope(TIMEOUT))
        wait_until(lambda: outage.failures > 3, TIMEOUT, "several failures")
        end(database, generation)
        outage.is_over.set()
        assert call.result() is not None


def check_outlasted(
    outage: Outage, database: Database, generation: Generation, call: Future[Generation | None]
) -> None:
    """Check that a call that waits for a generation outlasts an outage."""
    wait_until(lambda: outage.failures > 2, TIMEOUT, "several failures")
    outage.is_over.set()
    end(database, generation)
    assert call.result() is not None


def test_an_outage_that_has_ended_does_not_count_for_the_next(
    database: Database, pool: ThreadPoolExecutor, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = record(database, alice)
    looks: list[int] = []
    clock = Clock()
    outage = Outage(monkeypatch, DBConnectionError("away"))
    outage.is_over.set()
    with waiting_calls(database, give_up_after=1, on_change=looks.append, clock=clock) as waiting:
        call = pool.submit(waiting.wait_for, generation, CallScope(TIMEOUT))
        clock.now += 2
        looks.clear()
        wait_until(lambda: 1 in looks, TIMEOUT, "a look")
        outage.is_over.clear()
        check_outlasted(outage, database, generation, call)


def test_time_in_which_no_call_waited_does_not_count_for_an_outage(
    database: Database, pool: ThreadPoolExecutor, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = record(database, alice)
    looks: list[int] = []
    clock = Clock()
    outage = Outage(monkeypatch, DBConnectionError("away"))
    with waiting_calls(database, give_up_after=1, on_change=looks.append, clock=clock) as waiting:
        wait_until(lambda: looks, TIMEOUT, "the thread to wait for calls")
        clock.now += 2
        call = pool.submit(waiting.wait_for, generation, CallScope(TIMEOUT))
        check_outlasted(outage, database, generation, call)


def test_how_many_calls_wait_for_what_is_queued_is_told(
    database: Database, pool: ThreadPoolExecutor, alice: Caller
) -> None:
    changes: list[int] = []
    queued, submitted = record(database, alice), record(database, alice)
    with database.transaction() as context:
        assert GenerationRepository(context).submit(submitted.id, new_guid(), timedelta(minutes=1))
        context.commit()
    scopes = [CallScope() for _ in range(2)]
    with waiting_calls(database, on_change=changes.append) as waiting:
        calls = [
            pool.submit(waiting.wait_for, generation, scope)
            for generation, scope in zip((queued, submitted), scopes, strict=True)
        ]
        wait_until(lambda: waiting.is_waited_for(queued.id) and waiting.is_waited_for(submitted.id), TIMEOUT, "both")
        wait_until(lambda: changes[-3:] == [1] * 3, TIMEOUT, "one that waits for what is queued")
        for scope in scopes:
            scope.leave()
        assert [call.result() for call in calls] == [None, None]
        wait_until(lambda: changes[-1] == 0, TIMEOUT, "none to wait")


def test_it_ends_though_calls_wait(database: Database, pool: ThreadPoolExecutor, alice: Caller) -> None:
    generation, scope = record(database, alice), CallScope()
    with waiting_calls(database, interval=NEVER) as waiting:
        call = pool.submit(waiting.wait_for, generation, scope)
        wait_until(lambda: waiting.is_waited_for(generation.id), TIMEOUT, "it to wait")
        waiting.close()
        assert not waiting._thread.is_alive()
        scope.leave()
        assert call.result() is None


def test_it_may_be_closed_before_it_was_started(database: Database) -> None:
    WaitingCalls(database, LocalSignal(), require_closed=lambda: None).close()


def test_a_look_that_hangs_keeps_no_process_from_ending(
    database: Database, pool: ThreadPoolExecutor, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, may_go_on = threading.Event(), threading.Event()

    def hang(*_: object) -> list[Generation]:
        hangs.set()
        assert may_go_on.wait(TIMEOUT)
        return []

    monkeypatch.setattr(GenerationRepository, "get_several", hang)
    generation, scope = record(database, alice), CallScope()
    with waiting_calls(database) as waiting:
        pool.submit(waiting.wait_for, generation, scope)
        assert hangs.wait(TIMEOUT)
        began = time.monotonic()
        waiting.close()
        assert time.monotonic() - began < TIMEOUT / 2
        assert waiting._thread.daemon
        scope.leave()
        may_go_on.set()


def test_looks_come_at_intervals_while_calls_wait(
    database: Database, pool: ThreadPoolExecutor, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = note_looks(monkeypatch)
    changes_of_idle: list[int] = []
    generation, scope = record(database, alice), CallScope()
    with waiting_calls(database, on_change=changes_of_idle.append), waiting_calls(database) as waiting:
        began = time.monotonic()
        call = pool.submit(waiting.wait_for, generation, scope)
        wait_until(lambda: len(looks) > 10, TIMEOUT, "ten looks")
        assert 10 * 0.02 * 0.5 < time.monotonic() - began < 8
        scope.leave()
        assert call.result() is None

    # Once at the beginning and once at the end.
    assert changes_of_idle in ([0], [0, 0])
