"""The generation worker: what it claims, in which order, and what becomes of failures."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import pytest

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    ConflictError,
    ConstraintViolationError,
    ContentUnreadableError,
    DBConnectionError,
    OutcomeUnknownError,
    PixyProxyException,
    PromptRefusedError,
    ProviderCircuitOpenError,
    ProviderError,
    ProviderModelUnknownError,
    ProviderRateLimitedError,
    ProviderRequestInvalidError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExhaustedError,
    StorageFullError,
    TooBusyError,
    UnreadableAnswerError,
)
from pixyproxy.core.fields import GenerationState, new_guid
from pixyproxy.core.models import Caller, Cost, GenerationOptions, ImageCreation, ImageDetailCreate
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, RequestContext
from pixyproxy.data.repositories.users import UserRepository
from pixyproxy.data.stores.image_store import ContentReader
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.data.transactions import in_transaction
from pixyproxy.generation.circuit_breaker import FAILURES_TO_OPEN, FIRST_PAUSE
from pixyproxy.generation.interfaces import GeneratedImage
from pixyproxy.generation.observer import GenerationObserver
from pixyproxy.service.creation.rate_limiter import RateLimiter
from pixyproxy.service.quotas import QuotaReservedError, Quotas
from tests.support.waiting import wait_until
from tests.unit.service.conftest import make_caller
from tests.unit.service.creation.parts import COST, LEASE, FakeGenerator, Server

TIMEOUT = 20.0


@pytest.fixture
def generator() -> FakeGenerator:
    return FakeGenerator()


def request(prompt: str = "a castle", request_id: str | None = None) -> ImageCreation:
    return ImageCreation(detail=ImageDetailCreate(prompt=prompt), request_id=request_id)


def record(database: Database, author: Caller, prompt: str = "a castle") -> int:
    """Record a request that nobody waits for, and return the generation's id."""
    with database.transaction() as context:
        recorded = GenerationRepository(context).insert(request(prompt), author.user_id, "ab" * 32, RequestContext())
        context.commit()
    return recorded.id


def states(database: Database) -> list[str]:
    with database.reading() as context:
        return [row["state"] for row in context.fetch_all("SELECT state FROM generations ORDER BY id", {})]


def wait_for_states(database: Database, *expected: str) -> None:
    wait_until(lambda: states(database) == list(expected), TIMEOUT, f"the states {expected}")


def at_each_look(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something before each look at the queue."""
    oldest_queued = GenerationRepository.oldest_queued

    def look(generations: GenerationRepository, left_out: Collection[int]) -> tuple[dict[int, int], int]:
        act()
        return oldest_queued(generations, left_out)

    monkeypatch.setattr(GenerationRepository, "oldest_queued", look)


@contextmanager
def held_back(generator: FakeGenerator) -> Iterator[threading.Event]:
    """Let the provider answer when the event is set, at the latest at the end."""
    answer = threading.Event()
    generator.behave = lambda: _wait(answer)
    try:
        yield answer
    finally:
        answer.set()


def _wait(event: threading.Event) -> None:
    assert event.wait(TIMEOUT)


# --- The queue -------------------------------------------------------------------------------------------------------


def test_what_was_recorded_before_it_started_is_generated(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    for number in range(3):
        record(database, alice, f"castle {number}")

    with Server(database, store, generator).running():
        wait_for_states(database, "stored", "stored", "stored")

    assert sorted(asked.prompt for asked in generator.requests) == ["castle 0", "castle 1", "castle 2"]


def test_what_another_server_has_recorded_is_generated_once(
    database: Database, store: LocalImageStore, alice: Caller
) -> None:
    generators = [FakeGenerator(), FakeGenerator()]
    with Server(database, store, generators[0]).running(), Server(database, store, generators[1]).running():
        for number in range(20):
            record(database, alice, f"castle {number}")
        wait_for_states(database, *["stored"] * 20)

    asked = Counter(request.prompt for generator in generators for request in generator.requests)
    assert len(asked) == 20
    assert set(asked.values()) == {1}


def test_a_worker_without_work_logs_nothing(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    looks: list[int] = []
    at_each_look(monkeypatch, lambda: looks.append(1))
    with Server(database, store, generator).running():
        wait_until(lambda: len(looks) > 2, TIMEOUT, "several looks")

    assert caplog.records == []


def test_a_generation_that_waits_alone_takes_one_look_at_the_queue(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    at_each_look(monkeypatch, lambda: looks.append(1))
    with Server(database, store, generator, poll_interval=10 * TIMEOUT).running() as server:
        wait_until(lambda: looks, TIMEOUT, "the look at the start")
        for count in (1, 2):
            server.creator.create(request(), alice, CallScope(TIMEOUT))
            wait_until(lambda: not server.worker._submitted, TIMEOUT, "its end")
            assert len(looks) == 1 + count


def test_a_full_worker_leaves_signals_to_others(
    database: Database, store: LocalImageStore, generator: FakeGenerator
) -> None:
    server = Server(database, store, generator, limit=1)
    for submitted, left in ((1, [0]), (0, [])):
        server.worker._submitted = {threading.Thread() for _ in range(submitted)}
        server.recorded.send()
        server.worker._freed.send()
        server.worker._wait(TIMEOUT)
        assert server.worker._freed.read() == []
        assert server.recorded.read() == left


@pytest.mark.parametrize("error", [DBConnectionError("away"), RuntimeError("not foreseen")])
def test_claims_go_on_after_the_database_was_away(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    failed_at: list[float] = []
    original = GenerationRepository.oldest_queued

    def fail_thrice(generations: GenerationRepository, left_out: Collection[int]) -> tuple[dict[int, int], int]:
        if len(failed_at) < 3:
            failed_at.append(time.monotonic())
            raise error
        return original(generations, left_out)

    monkeypatch.setattr(GenerationRepository, "oldest_queued", fail_thrice)
    record(database, alice)
    with Server(database, store, generator).running():
        wait_for_states(database, "stored")

    # With a pause between them.
    assert failed_at[2] - failed_at[0] > 0.03


def test_a_call_waits_for_what_another_server_generates(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    with (
        Server(database, store, FakeGenerator()).taking_calls() as without_worker,
        Server(database, store, generator).running(),
    ):
        assert without_worker.creator.create(request(), alice, CallScope(TIMEOUT)).size_bytes > 0
    assert len(generator.requests) == 1


def test_authors_are_served_in_turn(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    bob, carol = make_caller(database, "bob"), make_caller(database, "carol")
    for number in range(4):
        record(database, alice, f"alice {number}")
    record(database, bob, "bob 0")
    record(database, carol, "carol 0")
    record(database, carol, "carol 1")

    with Server(database, store, generator, limit=1).running():
        wait_for_states(database, *["stored"] * 7)

    assert [asked.prompt for asked in generator.requests] == [
        *("alice 0", "bob 0", "carol 0", "alice 1", "carol 1", "alice 2", "alice 3"),
    ]


def test_what_cannot_be_read_is_left_to_later_releases(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    caplog: pytest.LogCaptureFixture,
) -> None:
    later, bob = record(database, alice), make_caller(database, "bob")
    record(database, bob)
    record(database, alice)
    with database.transaction() as context:
        context.execute("UPDATE generations SET request = '{\"later\": 1}' WHERE id = :id", {"id": later})
        context.commit()

    with Server(database, store, generator).running():
        wait_for_states(database, "queued", "stored", "stored")

    assert caplog.text.count("left to later ones") == 1


def test_an_image_that_a_restored_database_does_not_know_is_not_paid_for_again(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    record(database, alice)
    with database.reading() as context:
        (row,) = context.fetch_all("SELECT image_guid FROM generations", {})
    store.write(row["image_guid"], b"picture")

    with Server(database, store, generator).running():
        wait_for_states(database, "unknown")

    assert generator.requests == []


# --- Callers that leave ----------------------------------------------------------------------------------------------


def test_a_request_whose_caller_leaves_before_the_claim_is_not_submitted(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    with (
        held_back(generator) as answer,
        Server(database, store, generator, limit=1).running() as server,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(server.creator.create, request(), alice, CallScope(TIMEOUT))
        wait_for_states(database, "sent")
        gone = CallScope()
        second = pool.submit(server.creator.create, request("never"), alice, gone)
        wait_for_states(database, "sent", "queued")
        gone.leave()
        with pytest.raises(ProviderTimeoutError, match="nothing was generated"):
            second.result()
        answer.set()
        first.result()
        assert server.creator.create(request("another"), alice, CallScope(TIMEOUT)).size_bytes > 0

    assert states(database) == ["stored", "failed", "stored"]
    assert [asked.prompt for asked in generator.requests] == ["a castle", "another"]


def test_a_request_that_another_call_waits_for_is_not_given_up(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    same = request("wanted", new_guid())
    with (
        held_back(generator) as answer,
        Server(database, store, generator, limit=1).running() as server,
        ThreadPoolExecutor(3) as pool,
    ):
        pool.submit(server.creator.create, request(), alice, CallScope(TIMEOUT))
        wait_for_states(database, "sent")
        gone = CallScope()
        leaving = pool.submit(server.creator.create, same, alice, gone)
        wait_for_states(database, "sent", "queued")
        staying = pool.submit(server.creator.create, same, alice, CallScope(TIMEOUT))
        wait_until(lambda: len(server.waiting._calls[2]) == 2, TIMEOUT, "both to wait")
        gone.leave()
        with pytest.raises(ProviderTimeoutError, match="still being generated"):
            leaving.result()
        answer.set()
        assert staying.result().size_bytes > 0


def test_a_call_that_joined_queues_again_what_its_first_caller_gave_up(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    same = request("wanted", new_guid())
    with (
        held_back(generator) as answer,
        Server(database, store, generator, limit=1).running() as server,
        Server(database, store, FakeGenerator()).taking_calls() as other,
        ThreadPoolExecutor(3) as pool,
    ):
        pool.submit(server.creator.create, request(), alice, CallScope(TIMEOUT))
        wait_for_states(database, "sent")
        gone = CallScope()
        leaving = pool.submit(server.creator.create, same, alice, gone)
        wait_for_states(database, "sent", "queued")
        staying = pool.submit(other.creator.create, same, alice, CallScope(TIMEOUT))
        wait_until(lambda: other.waiting.is_waited_for(2), TIMEOUT, "it to wait")
        gone.leave()
        with pytest.raises(ProviderTimeoutError):
            leaving.result()
        answer.set()
        assert staying.result().size_bytes > 0


# --- Failures --------------------------------------------------------------------------------------------------------


def test_a_rate_limit_is_waited_for_in_the_queue(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    errors: list[Exception] = [ProviderRateLimitedError("later", retry_after=0.3)]
    seen: list[str] = []

    def behave() -> None:
        if errors:
            raise errors.pop()

    generator.behave = behave
    with Server(database, store, generator).running() as server, ThreadPoolExecutor(1) as pool:
        call = pool.submit(server.creator.create, request(), alice, CallScope(TIMEOUT))
        wait_until(lambda: len(generator.requests) == 1 and states(database) == ["queued"], TIMEOUT, "the queue")
        seen += states(database)
        assert call.result().size_bytes > 0

    assert seen == ["queued"]
    assert len(generator.requests) == 2


def test_a_retry_does_not_wait_for_the_next_poll(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    errors: list[Exception] = [ProviderRateLimitedError("later", retry_after=0.3)]

    def fail_once() -> None:
        if errors:
            raise errors.pop()

    generator.behave = fail_once
    record(database, alice)
    with Server(database, store, generator, poll_interval=10 * TIMEOUT).running():
        wait_for_states(database, "stored")
    assert len(generator.requests) == 2


def test_nothing_is_submitted_for_a_user_who_is_removed(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    """Neither what is queued again after a failure, nor what is recorded while credentials are still remembered."""
    server = Server(database, store, generator)
    record(database, make_caller(database, "bob"))

    def remove() -> None:
        generator.behave = lambda: None
        in_transaction(database, lambda context: UserRepository(context).remove(alice.user_id))
        raise ProviderRateLimitedError("later", retry_after=0.0)

    with server.running():
        wait_for_states(database, "stored")
        generator.behave = remove
        server.generations.create_generation(request(), alice)
        wait_for_states(database, "stored", "cancelled")
        server.generations.create_generation(request(), alice)
        wait_for_states(database, "stored", "cancelled", "cancelled")

    assert len(generator.requests) == 2


@pytest.mark.parametrize(
    ("error", "submissions"), [(ProviderRateLimitedError("slow down"), 4), (ProviderUnavailableError("down"), 3)]
)
def test_retries_end(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    error: ProviderError,
    submissions: int,
) -> None:
    generator.fails_with(error)
    with Server(database, store, generator).running() as server, pytest.raises(type(error)):
        server.creator.create(request(), alice, CallScope(TIMEOUT))

    assert len(generator.requests) == submissions
    assert states(database) == ["failed"]


@pytest.mark.parametrize("kind", [ProviderRateLimitedError, ProviderUnavailableError])
def test_a_retry_beyond_the_deadline_is_not_waited_for(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller, kind: type[ProviderError]
) -> None:
    generator.fails_with(kind("later", retry_after=50))
    with Server(database, store, generator).running() as server, pytest.raises(kind) as told:
        server.creator.create(request(), alice, CallScope(TIMEOUT))

    assert told.value.retry_after == 50
    assert len(generator.requests) == 1


def test_all_calls_that_wait_are_told_the_same_error(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    answer = threading.Event()

    def refuse() -> None:
        _wait(answer)
        raise PromptRefusedError("no", stage="input", categories=("violence",))

    generator.behave = refuse
    same = request("refused", new_guid())
    with Server(database, store, generator).running() as server, ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(server.creator.create, same, alice, CallScope(TIMEOUT)) for _ in range(4)]
        wait_until(lambda: len(server.waiting._calls.get(1, ())) == 4, TIMEOUT, "all to wait")
        answer.set()
        errors = [call.exception() for call in calls]

    assert [(type(error), getattr(error, "stage", "")) for error in errors] == [(PromptRefusedError, "input")] * 4
    assert len({id(error) for error in errors}) == 4
    assert len(generator.requests) == 1


@pytest.mark.parametrize(
    "error", [PromptRefusedError("no"), ProviderRateLimitedError("slow"), ProviderUnavailableError("down")]
)
def test_what_failed_while_it_was_taken_for_dead_has_cost_nothing(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller, error: ProviderError
) -> None:
    """Also after an error for which it would otherwise be queued again."""

    def fail_late() -> None:
        with database.transaction() as context:
            context.execute("UPDATE generations SET state = 'unknown', owner = ''", {})
            context.commit()
        raise error

    generator.behave = fail_late
    record(database, alice)
    with Server(database, store, generator).running():
        wait_for_states(database, "failed")


def test_what_was_taken_for_dead_and_may_have_cost_keeps_its_error(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    """Its caller was told already, and is told the same each time."""

    def fail_late() -> None:
        with database.transaction() as context:
            generations = GenerationRepository(context)
            (submitted,) = generations.get_several([1])
            generations.end(submitted, GenerationState.OUTCOME_UNKNOWN, OutcomeUnknownError("taken for dead"))
            context.commit()
        raise ProviderTimeoutError("late", may_have_billed=True)

    generator.behave = fail_late
    generation_id = record(database, alice)
    with Server(database, store, generator).running():
        wait_for_states(database, "unknown")

    with database.reading() as context:
        (ended,) = GenerationRepository(context).get_several([generation_id])
    assert ended.error is not None
    assert "taken for dead" in ended.error


class Recorder(GenerationObserver):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.submitted: list[int] = []
        self.waited: list[float] = []
        self.retried: list[ProviderError] = []
        self.outcomes: list[GeneratedImage | BaseException] = []
        self.seconds: list[float] = []
        self.costs: list[Cost | None] = []
        self.unknown = 0

    def generations_changed(self, change: int) -> None:
        self.submitted.append(change)

    def claimed(self, waited: float) -> None:
        self.waited.append(waited)

    def retrying(self, error: ProviderError) -> None:
        self.retried.append(error)

    def ended(self, model: str, seconds: float, outcome: GeneratedImage | BaseException) -> None:
        self.seconds.append(seconds)
        self.outcomes.append(outcome)

    def outcome_unknown(self) -> None:
        self.unknown += 1

    def spent(self, model: str, cost: Cost | None) -> None:
        self.costs.append(cost)


def test_what_becomes_of_generations_is_observed(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    observer = Recorder()
    unavailable, unknown_model = ProviderUnavailableError("down"), ProviderModelUnknownError("no such model")
    failures: list[Exception] = [unknown_model, unavailable]

    def fail_twice() -> None:
        if failures:
            raise failures.pop()

    generator.behave = fail_twice
    named = request().model_copy(update={"options": GenerationOptions(model="m")})
    with Server(database, store, generator, observer=observer).running() as server:
        with pytest.raises(ProviderRequestInvalidError):
            server.creator.create(named, alice, CallScope(TIMEOUT))
        server.creator.create(request(), alice, CallScope(TIMEOUT))

    assert observer.submitted == [1, -1] * 3
    assert observer.retried == [unavailable]
    # What the provider said, not what the caller was told.
    assert observer.outcomes[0] is unknown_model
    assert isinstance(observer.outcomes[1], GeneratedImage)
    assert len(observer.outcomes) == 2
    assert observer.costs == [COST]
    assert len(observer.waited) == 3
    assert all(0 <= seconds < TIMEOUT for seconds in observer.waited + observer.seconds)


def test_every_unknown_outcome_is_counted_once(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    failures = [OutcomeUnknownError.after("Cut off."), ProviderTimeoutError("slow", may_have_billed=True), ValueError()]

    def fail() -> None:
        raise failures.pop()

    generator.behave = fail
    died, restored, *_ = [record(database, alice) for _ in range(5)]
    with database.transaction() as context:
        generations = GenerationRepository(context)
        assert generations.submit(died, new_guid(), timedelta(seconds=-1))
        store.write(generations.get_several([restored])[0].image_guid, b"picture")
        context.commit()

    observer = Recorder()
    # The dead one's lease counts for as long as one of this server lasts.
    with Server(database, store, generator, observer=observer, lease=timedelta(seconds=2)).running():
        wait_for_states(database, *["unknown"] * 5)

    assert failures == []
    assert observer.unknown == 5


def test_an_image_that_is_not_stored_for_an_unforeseen_reason_is_kept_aside_and_counted_once(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> NoReturn:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(LocalImageStore, "write", fail)
    generation_id = record(database, alice)
    observer = Recorder()
    with Server(database, store, generator, observer=observer).running():
        wait_for_states(database, "unknown")

    with database.reading() as context:
        (generation,) = GenerationRepository(context).get_several([generation_id])
    assert store.read_aside(generation.image_guid) == b"picture 1"
    assert observer.unknown == 1
    assert len(observer.outcomes) == 1
    assert [str(line.exc_info[1]) for line in caplog.records if line.exc_info] == ["not foreseen"]


# --- The database goes away ------------------------------------------------------------------------------------------


def lose_one_answer(monkeypatch: pytest.MonkeyPatch, method: str, meanwhile: Callable[[], object]) -> list[str]:
    """Commit what a method of the repository changes first, do something, and lose the answer to the commit."""
    work = getattr(GenerationRepository, method)
    lost: list[str] = []

    def change(generations: GenerationRepository, *arguments: Any, **options: Any) -> Any:
        changed = work(generations, *arguments, **options)
        context: DatabaseContext = generations._context
        commit = context.commit

        def commit_and_lose_the_answer() -> None:
            commit()
            meanwhile()
            raise DBConnectionError("cut off after the commit")

        if not lost:
            lost.append(method)
            monkeypatch.setattr(context, "commit", commit_and_lose_the_answer)
        return changed

    monkeypatch.setattr(GenerationRepository, method, change)
    return lost


def test_a_claim_whose_commit_was_lost_is_queued_again(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []
    at_each_look(monkeypatch, lambda: looks.append(len(generator.requests)))
    lost = lose_one_answer(monkeypatch, "submit", meanwhile=lambda: None)
    record(database, alice)
    with Server(database, store, generator).running(), held_back(generator) as answer:
        # It is queued again once, and not while it is submitted.
        wait_until(lambda: looks.count(1) > 2, TIMEOUT, "several looks after it was submitted")
        assert states(database) == ["sent"]
        answer.set()
        wait_for_states(database, "stored")

    assert lost
    assert len(generator.requests) == 1
    with database.reading() as context:
        assert context.fetch_value("SELECT attempts FROM generations", {}) == 1


def test_a_claim_whose_commit_was_lost_at_the_end_is_queued_again(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody knows later that it was not submitted."""
    is_claimed = threading.Event()
    server = Server(database, store, generator)

    def end() -> None:
        is_claimed.set()
        wait_until(lambda: server.worker._is_ending, TIMEOUT, "the end of the worker")

    lost = lose_one_answer(monkeypatch, "submit", meanwhile=end)
    record(database, alice)
    with server.running():
        _wait(is_claimed)

    assert lost
    assert states(database) == ["queued"]


def test_a_claim_for_which_no_thread_can_be_started_is_queued_again(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, failures = threading.Thread.start, ["can't start new thread"]

    def fail(thread: threading.Thread) -> None:
        if thread.name.startswith("generation") and failures:
            raise RuntimeError(failures.pop())
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    record(database, alice)
    with Server(database, store, generator).running():
        wait_for_states(database, "stored")

    assert not failures
    assert len(generator.requests) == 1


@pytest.mark.parametrize(
    "error", [ContentUnreadableError("denied"), PixyProxyException("broken"), ValueError("of a later release")]
)
def test_what_may_be_stored_already_and_cannot_be_read_stops_no_other(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    unreadable = record(database, alice)
    record(database, make_caller(database, "bob"))
    record(database, alice)
    with database.reading() as context:
        (generation,) = GenerationRepository(context).get_several([unreadable])
    open_content = store.open

    def refuse(guid: str) -> ContentReader:
        if guid == generation.image_guid:
            raise error
        return open_content(guid)

    monkeypatch.setattr(store, "open", refuse)
    with Server(database, store, generator).running():
        wait_until(lambda: states(database)[1:] == ["stored", "stored"], TIMEOUT, "the other images")

    assert len(generator.requests) == 2


@pytest.mark.parametrize(
    ("method", "error"), [("queue_later", ProviderUnavailableError("down")), ("end", PromptRefusedError("no"))]
)
def test_a_repeated_transaction_leaves_a_later_submission_alone(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    error: ProviderError,
) -> None:
    """Otherwise it would be submitted, and paid for, twice."""
    generation_id = record(database, alice)
    answer = threading.Event()

    def behave() -> None:
        if len(generator.requests) == 1:
            raise error
        _wait(answer)

    def submit_again() -> None:
        if method == "end":
            with database.transaction() as context:
                generations = GenerationRepository(context)
                assert generations.queue_again(generations.get_several([generation_id])[0], request(), RequestContext())
                context.commit()
        wait_until(lambda: len(generator.requests) == 2, TIMEOUT, "the second submission")

    generator.behave = behave
    looks: list[int] = []
    at_each_look(monkeypatch, lambda: looks.append(len(generator.requests)))
    lost = lose_one_answer(monkeypatch, method, meanwhile=submit_again)
    with Server(database, store, generator).running():
        wait_until(lambda: len([look for look in looks if look > 1]) > 5, TIMEOUT, "looks after the second submission")
        still = states(database)
        answer.set()
        wait_for_states(database, "stored")

    assert lost
    assert still == ["sent"]
    assert len(generator.requests) == 2


@pytest.mark.parametrize("error", [DBConnectionError("away"), ConflictError("busy"), RuntimeError("not foreseen")])
def test_the_end_of_a_generation_waits_for_the_database(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    end = GenerationRepository.end
    failures = [error] * 6

    def end_when_back(generations: GenerationRepository, *arguments: object, **keywords: object) -> bool:
        if failures:
            raise failures.pop()
        return end(generations, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(GenerationRepository, "end", end_when_back)
    generator.fails_with(PromptRefusedError("no"))
    with Server(database, store, generator).running() as server, pytest.raises(PromptRefusedError):
        server.creator.create(request(), alice, CallScope(TIMEOUT))
    assert failures == []
    assert states(database) == ["failed"]


@pytest.mark.parametrize(
    "error", [DBConnectionError("away"), ConflictError("busy"), StorageFullError("full"), RuntimeError("not foreseen")]
)
def test_a_generation_that_cannot_be_queued_again_ends(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """Its worker lives on and renews its leases."""

    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(GenerationRepository, "queue_later", fail)
    generator.fails_with(ProviderUnavailableError("down"))
    record(database, alice)
    with Server(database, store, generator, give_up_after=0.1).running():
        wait_for_states(database, "unknown" if isinstance(error, RuntimeError) else "failed")


# --- Pace and circuit ------------------------------------------------------------------------------------------------


def test_what_waits_for_the_rate_limiter_is_queued(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    with Server(database, store, generator, images_per_minute=2).running() as server, ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(server.creator.create, request(), alice, CallScope()) for _ in range(2)]
        assert all(call.result().size_bytes for call in calls)
        gone = CallScope()
        waiting = pool.submit(server.creator.create, request(), alice, gone)
        wait_for_states(database, "stored", "stored", "queued")
        with pytest.raises(TooBusyError) as refused:
            server.creator.create(request(), alice, CallScope(5))
        gone.leave()
        with pytest.raises(ProviderTimeoutError):
            waiting.result()

    assert refused.value.retry_after is not None
    assert refused.value.retry_after > 50
    assert len(generator.requests) == 2


def test_the_rate_limiter_is_not_asked_all_the_time(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []
    take = RateLimiter.take

    def noted(limiter: RateLimiter, context: DatabaseContext) -> float:
        wait = take(limiter, context)
        if wait:
            asked.append(time.monotonic())
        return wait

    monkeypatch.setattr(RateLimiter, "take", noted)
    for _ in range(2):
        record(database, alice)
    with Server(database, store, generator, images_per_minute=1).running():
        wait_until(lambda: len(asked) > 5, TIMEOUT, "the rate limiter to be asked")

    # At each poll.
    assert asked[5] - asked[0] > 0.4


def test_a_short_wait_for_the_rate_limiter_is_one(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    began: list[float] = []
    generator.behave = lambda: began.append(time.monotonic())
    for _ in range(3):
        record(database, alice)
    # Not from the first one's begin, which may come late.
    started = time.monotonic()
    with Server(database, store, generator, images_per_minute=1, minute=timedelta(seconds=0.4)).running():
        wait_for_states(database, *["stored"] * 3)

    assert began[2] - started > 0.6


def test_a_single_request_is_not_hopeless_behind_anothers_long_queue(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    bob = make_caller(database, "bob")
    for _ in range(50):
        record(database, alice)
    with Server(database, store, generator, images_per_minute=2).taking_calls() as server:
        with pytest.raises(TooBusyError):
            server.creator.create(request(), alice, CallScope(0.2))
        with pytest.raises(ProviderTimeoutError, match="nothing was generated"):
            server.creator.create(request(), bob, CallScope(0.2))


@pytest.mark.parametrize(("own", "wait"), [(0, 60), (1, 180)])
def test_who_is_refused_is_told_when_its_turn_would_come(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller, own: int, wait: float
) -> None:
    for author in (make_caller(database, name) for name in ("bob", "carol", "dave")):
        for _ in range(10):
            record(database, author)
    for _ in range(own):
        record(database, alice)

    # Each of the others has one more turn before hers than she has requests queued.
    with (
        Server(database, store, generator, images_per_minute=2).taking_calls() as server,
        pytest.raises(TooBusyError) as refused,
    ):
        server.creator.create(request(), alice, CallScope(5))
    assert refused.value.retry_after == wait


def open_circuit(server: Server) -> None:
    breaker = server.worker._parts.breaker
    for _ in range(FAILURES_TO_OPEN):
        permit = breaker.admit()
        assert permit is not None
        breaker.record(permit, ProviderUnavailableError("down"))


@pytest.mark.parametrize(
    ("part", "method", "failure"),
    [
        (LocalImageStore, "require_room", StorageFullError("full")),
        (RateLimiter, "take", ConstraintViolationError("another server was faster")),
        (GenerationRepository, "submit", None),
        (Quotas, "reserve", QuotaReservedError()),
        (Quotas, "reserve", QuotaExhaustedError("used up", quota="images_per_day", author="alice", retry_after=1)),
    ],
)
@pytest.mark.parametrize("other", ["bob", "alice"])
def test_a_trial_that_is_not_submitted_is_made_with_the_next_request(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
    part: type,
    method: str,
    failure: Exception | None,
    other: str,
) -> None:
    now = 1000.0
    original = getattr(part, method)
    calls: list[object] = []

    def fail_once(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) > 1:
            return original(*arguments)
        if failure is not None:
            raise failure
        return None

    monkeypatch.setattr(part, method, fail_once)
    with Server(database, store, generator, images_per_minute=10, clock=lambda: now).running() as server:
        open_circuit(server)
        now += FIRST_PAUSE
        for author in (alice, alice if other == "alice" else make_caller(database, other)):
            record(database, author)
        first = "failed" if isinstance(failure, (StorageFullError, QuotaExhaustedError)) else "stored"
        wait_for_states(database, first, "stored")


def test_of_several_requests_one_is_the_trial(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And while it lasts, the queue is looked at with each poll."""
    answer = threading.Event()

    def fail_late() -> None:
        _wait(answer)
        raise OutcomeUnknownError("cut")

    generator.behave = fail_late
    bob, now = make_caller(database, "bob"), 1000.0
    looked_at: list[float] = []
    at_each_look(monkeypatch, lambda: looked_at.append(time.monotonic()) if generator.requests else None)
    with Server(database, store, generator, clock=lambda: now).running() as server:
        open_circuit(server)
        now += FIRST_PAUSE
        began = time.monotonic()
        for author in (alice, bob):
            record(database, author)
        wait_until(lambda: len(looked_at) > 5, TIMEOUT, "several looks")
        assert states(database) == ["sent", "queued"]
        answer.set()
        wait_for_states(database, "unknown", "queued")

    assert looked_at[5] - began > 0.3
    assert len(generator.requests) == 1


def test_all_that_is_submitted_is_generated_at_once(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    limit = 40
    for _ in range(limit):
        record(database, alice)
    with Server(database, store, generator, limit=limit, poll_interval=TIMEOUT).running(), held_back(generator):
        wait_until(lambda: len(generator.requests) == limit, TIMEOUT, "all to be asked for")


def test_room_is_asked_for_all_that_is_submitted(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(store, "require_room", asked.append)
    for _ in range(3):
        record(database, alice)
    with held_back(generator) as answer, Server(database, store, generator, limit=2).running():
        wait_for_states(database, "sent", "sent", "queued")
        assert asked == [1, 2]
        answer.set()


def test_a_trial_that_fails_leaves_the_circuit_open(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    now = 1000.0
    generator.fails_with(ProviderUnavailableError("down"))
    with Server(database, store, generator, clock=lambda: now).running() as server:
        open_circuit(server)
        now += FIRST_PAUSE
        record(database, alice)
        wait_until(lambda: generator.requests and states(database) == ["queued"], TIMEOUT, "the retry to be queued")

        assert server.worker._parts.breaker.wait() == 2 * FIRST_PAUSE
    assert len(generator.requests) == 1


@pytest.mark.parametrize(
    "error", [UnreadableAnswerError("no image", body=b"?"), OutcomeUnknownError("cut"), RuntimeError("not foreseen")]
)
def test_answers_that_are_of_no_use_open_the_circuit_unless_an_image_comes_between(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller, error: Exception
) -> None:
    def fail(times: int) -> None:
        generator.fails_with(error)
        for _ in range(times):
            with pytest.raises(PixyProxyException):
                server.creator.create(request(), alice, CallScope(TIMEOUT))

    with Server(database, store, generator).running() as server:
        fail(FAILURES_TO_OPEN - 1)
        generator.behave = lambda: None
        server.creator.create(request(), alice, CallScope(TIMEOUT))
        fail(FAILURES_TO_OPEN)
        with pytest.raises(ProviderCircuitOpenError):
            server.creator.create(request(), alice, CallScope(TIMEOUT))


def test_while_the_provider_is_down_callers_are_told_at_once(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    generator.fails_with(ProviderUnavailableError("down"))
    with Server(database, store, generator).running() as server:
        told = []
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(ProviderUnavailableError) as failed:
                server.creator.create(request(), alice, CallScope(TIMEOUT))
            told.append(failed.value.retry_after)
        before = len(generator.requests)
        with pytest.raises(ProviderCircuitOpenError) as refused:
            server.creator.create(request(), alice, CallScope(TIMEOUT))
        assert refused.value.retry_after

    # A request counts once, however often it is tried; and the one that opened it knows when to try again.
    assert before == 3 * FAILURES_TO_OPEN
    assert [bool(seconds) for seconds in told] == [False] * (FAILURES_TO_OPEN - 1) + [True]
    assert len(generator.requests) == before
    assert states(database) == ["failed"] * FAILURES_TO_OPEN


def test_calls_that_are_queued_when_the_circuit_opens_are_told(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    with (
        held_back(generator) as answer,
        Server(database, store, generator, limit=1).running() as server,
        ThreadPoolExecutor(2) as pool,
    ):
        pool.submit(server.creator.create, request(), alice, CallScope(TIMEOUT))
        wait_for_states(database, "sent")
        queued = pool.submit(server.creator.create, request(), alice, CallScope(TIMEOUT))
        wait_for_states(database, "sent", "queued")
        open_circuit(server)
        with pytest.raises(ProviderCircuitOpenError):
            queued.result()
        answer.set()
    assert len(generator.requests) == 1


def test_a_call_whose_generation_is_claimed_as_the_circuit_opens_waits_for_it(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would be told that nothing was submitted, and send, and pay for, its request once more."""
    server = Server(database, store, generator)
    claimed: list[Generation] = []

    def claim_and_open() -> None:
        if not claimed:
            with database.transaction() as context:
                [row] = context.fetch_all("SELECT id FROM generations", {})
                assert GenerationRepository(context).submit(row["id"], server.owner, LEASE)
                claimed.extend(GenerationRepository(context).get_several([row["id"]]))
                context.commit()
            raise ProviderCircuitOpenError("down")

    monkeypatch.setattr(server.waiting, "_require_closed", claim_and_open)
    with server.taking_calls(), ThreadPoolExecutor(1) as pool:
        call = pool.submit(server.creator.create, request(), alice, CallScope(TIMEOUT))
        wait_until(
            lambda: claimed and (call.done() or server.waiting.is_waited_for(claimed[0].id)), TIMEOUT, "the claim"
        )
        with database.transaction() as context:
            assert GenerationRepository(context).end(claimed[0], GenerationState.FAILED, PromptRefusedError("no"))
            context.commit()
        with pytest.raises(PromptRefusedError):
            call.result()


# --- Leases ----------------------------------------------------------------------------------------------------------


def test_a_generation_that_takes_longer_than_its_lease_is_kept(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    lease = timedelta(seconds=0.5)
    with (
        held_back(generator) as answer,
        Server(database, store, generator, lease=lease).running() as server,
        Server(database, store, generator, lease=lease).running(),  # Either may claim it.
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(server.creator.create, request(), alice, CallScope(TIMEOUT))
        wait_for_states(database, "sent")
        began = datetime.now(UTC)
        wait_until(lambda: datetime.now(UTC) - began > 4 * lease, TIMEOUT, "several leases")
        assert states(database) == ["sent"]
        answer.set()
        assert call.result().size_bytes > 0


def test_without_renewals_a_long_generation_is_taken_for_dead(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the test above relies on; and the image is committed all the same."""
    monkeypatch.setattr(GenerationRepository, "renew_leases", lambda *_: None)
    with (
        held_back(generator) as answer,
        Server(database, store, generator, lease=timedelta(seconds=0.6)).running() as server,
        ThreadPoolExecutor(1) as pool,
    ):
        call = pool.submit(server.creator.create, request(), alice, CallScope(TIMEOUT))
        wait_for_states(database, "unknown")
        with pytest.raises(OutcomeUnknownError):
            call.result()
        answer.set()
        wait_for_states(database, "stored")


def test_who_takes_the_place_of_a_dead_worker_ends_its_generations_at_once(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    owner = new_guid()
    submitted, queued = record(database, alice), record(database, alice)
    others = record(database, alice)
    with database.transaction() as context:
        generations = GenerationRepository(context)
        assert generations.submit(submitted, owner, timedelta(minutes=5))
        assert generations.submit(others, new_guid(), timedelta(minutes=5))
        context.commit()

    with Server(database, store, generator, owner=owner).running():
        wait_for_states(database, "unknown", "stored", "sent")
    assert queued
    assert len(generator.requests) == 1


def test_at_its_end_it_finishes_what_it_has_submitted_and_leaves_the_rest(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    for _ in range(3):
        record(database, alice)
    with held_back(generator) as answer:
        server = Server(database, store, generator, limit=1)
        thread = threading.Thread(target=server.worker.run)
        thread.start()
        wait_for_states(database, "sent", "queued", "queued")
        # A claim that hangs in the database keeps no process from ending.
        claims = [other for other in threading.enumerate() if other.name == "claims"]
        assert claims
        assert all(claiming.daemon for claiming in claims)
        server.recorded.close_sender()
        answer.set()
        thread.join(TIMEOUT)

    assert not thread.is_alive()
    assert states(database) == ["stored", "queued", "queued"]


def test_a_claim_that_hangs_keeps_no_worker_from_ending(
    database: Database, store: LocalImageStore, generator: FakeGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, may_go_on = threading.Event(), threading.Event()

    def hang(_: GenerationRepository, left_out: Collection[int]) -> tuple[dict[int, int], int]:
        hangs.set()
        _wait(may_go_on)
        return {}, 0

    monkeypatch.setattr(GenerationRepository, "oldest_queued", hang)
    server = Server(database, store, generator, close_timeout=0.1)
    before = threading.enumerate()
    thread = threading.Thread(target=server.worker.run)
    thread.start()
    try:
        _wait(hangs)
        server.recorded.close_sender()
        thread.join(TIMEOUT / 2)
        assert not thread.is_alive()
        threads = [one for one in threading.enumerate() if one not in before]
        assert [one.daemon for one in threads if one.name == "claims"] == [True]
    finally:
        may_go_on.set()


def test_a_claim_that_hangs_until_its_worker_has_ended_is_queued_again(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hangs, may_go_on = threading.Event(), threading.Event()
    reserve = Quotas.reserve

    def hang(*arguments: Any) -> Any:
        hangs.set()
        _wait(may_go_on)
        return reserve(*arguments)

    monkeypatch.setattr(Quotas, "reserve", hang)
    record(database, alice)
    server = Server(database, store, generator, close_timeout=0.1)
    before = threading.enumerate()
    thread = threading.Thread(target=server.worker.run)
    thread.start()
    try:
        _wait(hangs)
        (claiming,) = (one for one in threading.enumerate() if one.name == "claims" and one not in before)
        server.recorded.close_sender()
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    finally:
        may_go_on.set()
    claiming.join(TIMEOUT)
    assert states(database) == ["queued"]
    assert generator.requests == []
