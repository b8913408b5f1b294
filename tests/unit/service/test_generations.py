"""Generations as a resource: started, joined, watched, cancelled and kept, with the worker that runs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    AlreadySubmittedError,
    CallerGoneError,
    CredentialsMissingError,
    GenerationCancelledError,
    GenerationNotFoundError,
    InvalidFieldError,
    OutcomeUnknownError,
    PixyProxyException,
    PromptRefusedError,
    ProviderCircuitOpenError,
    ProviderRateLimitedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RequestIdReusedError,
    TooBusyError,
)
from pixyproxy.core.fields import GenerationState, UserClass, new_guid
from pixyproxy.core.models import (
    MAX_PAGE_BYTES,
    Caller,
    GenerationDetail,
    GenerationFilter,
    GenerationKey,
    GenerationOptions,
    GenerationPageRequest,
    Image,
    ImageCreation,
    ImageDetailCreate,
    PartialImage,
)
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.generations import GenerationRepository, RequestContext
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.generation.circuit_breaker import FAILURES_TO_OPEN
from pixyproxy.resource import mapping
from pixyproxy.service import generations as generations_module
from tests.support.waiting import wait_until
from tests.unit.service.conftest import make_caller
from tests.unit.service.creation.parts import FakeGenerator, Server

TIMEOUT = 20.0
WATCHERS = 200
KEY = "123e4567-e89b-42d3-a456-426614174000"
QUEUED, SUBMITTED, SUCCEEDED = GenerationState.QUEUED, GenerationState.SUBMITTED, GenerationState.SUCCEEDED
FAILED, CANCELLED, UNKNOWN = GenerationState.FAILED, GenerationState.CANCELLED, GenerationState.OUTCOME_UNKNOWN

Event = GenerationDetail | PartialImage


@pytest.fixture
def generator() -> FakeGenerator:
    return FakeGenerator()


@pytest.fixture
def server(database: Database, store: LocalImageStore, generator: FakeGenerator) -> Server:
    """A server that is not started."""
    return Server(database, store, generator)


def request(request_id: str | None = KEY, prompt: str = "a castle", partial_images: int | None = None) -> ImageCreation:
    return ImageCreation(
        detail=ImageDetailCreate(prompt=prompt),
        options=GenerationOptions(partial_images=partial_images),
        request_id=request_id,
    )


def key_of(generation: GenerationDetail) -> GenerationKey:
    return GenerationKey(guid=generation.guid)


def wait_for_state(server: Server, generation: GenerationDetail, author: Caller, state: GenerationState) -> None:
    wait_until(
        lambda: server.generations.get_generation(key_of(generation), author).state is state, TIMEOUT, state.name
    )


@contextmanager
def held_back(generator: FakeGenerator, error: Exception | None = None) -> Iterator[threading.Event]:
    """Let the provider answer, with an error or an image, when the event is set, at the latest at the end."""
    answer = threading.Event()

    def behave() -> None:
        assert answer.wait(TIMEOUT)
        if error is not None:
            raise error

    generator.behave = behave
    try:
        yield answer
    finally:
        answer.set()


# --- Start -----------------------------------------------------------------------------------------------------------


def test_a_generation_is_recorded_at_once_and_runs_by_itself(
    server: Server, generator: FakeGenerator, alice: Caller
) -> None:
    started = server.generations.create_generation(request(), alice)
    assert (started.state, started.author, started.request_id) == (QUEUED, "alice", KEY)
    assert started.creation == request()
    assert (started.submitted_at, started.finished_at, started.attempts, started.image) == (None, None, 0, None)

    with server.running():
        wait_for_state(server, started, alice, SUCCEEDED)

    ended = server.generations.get_generation(GenerationKey(request_id=KEY), alice)
    assert ended.guid == started.guid
    assert ended.image is not None
    assert ended.image.guid == started.image_guid == ended.image_guid
    assert ended.attempts == 1
    assert ended.submitted_at is not None
    assert ended.finished_at is not None
    assert started.created_at <= ended.submitted_at <= ended.finished_at
    assert len(generator.requests) == 1


def test_the_same_request_starts_one_generation(server: Server, alice: Caller, database: Database) -> None:
    together = threading.Barrier(8)

    def start() -> str:
        together.wait(TIMEOUT)
        return server.generations.create_generation(request(), alice).guid

    with ThreadPoolExecutor(8) as pool:
        assert len({future.result() for future in [pool.submit(start) for _ in range(8)]}) == 1
    with pytest.raises(RequestIdReusedError):
        server.generations.create_generation(request(prompt="another castle"), alice)
    others = server.generations.create_generation(request(), make_caller(database, "bob"))
    assert others.author == "bob"
    unnamed = {server.generations.create_generation(request(None), alice).guid for _ in range(3)}
    assert len(unnamed) == 3


def test_too_many_are_not_queued(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    server = Server(database, store, generator, max_queued=2)
    first, _ = (server.generations.create_generation(request(new_guid()), alice) for _ in range(2))

    with pytest.raises(TooBusyError) as refused:
        server.generations.create_generation(request(), alice)
    assert refused.value.retry_after
    # What is known is not queued once more.
    assert server.generations.create_generation(request(first.request_id), alice).guid == first.guid

    server.generations.cancel_generation(first.guid, alice)
    assert server.generations.create_generation(request(), alice).state is QUEUED


def test_nobody_takes_the_share_of_others_in_the_queue(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    server = Server(database, store, generator, max_queued=6)

    def queued_by(caller: Caller) -> int:
        for count in range(10):
            try:
                server.generations.create_generation(request(new_guid()), caller)
            except TooBusyError:
                return count
        return 10

    others = [make_caller(database, f"user {number}") for number in range(6)]
    assert [queued_by(caller) for caller in (alice, *others, alice)] == [6, 3, 2, 1, 1, 1, 0, 0]


def test_an_open_circuit_keeps_nobody_from_queueing(server: Server, generator: FakeGenerator, alice: Caller) -> None:
    generator.fails_with(ProviderUnavailableError("down", may_have_billed=True))
    with server.running():
        failing = [server.generations.create_generation(request(new_guid()), alice) for _ in range(FAILURES_TO_OPEN)]
        for generation in failing:
            wait_for_state(server, generation, alice, UNKNOWN)
        with pytest.raises(ProviderCircuitOpenError):
            server.creator.create(request(new_guid()), alice, CallScope())

        started = server.generations.create_generation(request(), alice)
        # Whoever waits for an image is told; the generation stays.
        with pytest.raises(ProviderCircuitOpenError):
            server.creator.create(request(), alice, CallScope())
        assert server.generations.get_generation(key_of(started), alice).state is QUEUED

        generator.behave = lambda: None
        wait_for_state(server, started, alice, SUCCEEDED)


# --- CreateImage and CreateGeneration under one request id ---------------------------------------------------------


def bring_into(server: Server, generator: FakeGenerator, state: GenerationState, author: Caller) -> GenerationDetail:
    """Start a generation on a server without a worker, and bring it into a state as a worker would."""
    started = server.generations.create_generation(request(), author)
    if state is CANCELLED:
        return server.generations.cancel_generation(started.guid, author)
    if state is QUEUED:
        return started
    errors: dict[GenerationState, Exception] = {FAILED: PromptRefusedError("no"), UNKNOWN: OutcomeUnknownError("cut")}
    if state in errors:
        generator.fails_with(errors[state])
    with server.running():
        wait_for_state(server, started, author, state)
    generator.behave = lambda: None
    return server.generations.get_generation(key_of(started), author)


@pytest.fixture
def again(database: Database, store: LocalImageStore, generator: FakeGenerator) -> Server:
    """Another server, for when the first has ended."""
    return Server(database, store, generator)


@pytest.mark.parametrize("state", [QUEUED, SUCCEEDED, FAILED, CANCELLED, UNKNOWN])
def test_create_image_joins_a_generation(
    server: Server, again: Server, generator: FakeGenerator, alice: Caller, state: GenerationState
) -> None:
    started = bring_into(server, generator, state, alice)
    assert started.state is state
    submissions = len(generator.requests)
    told: dict[GenerationState, type[PixyProxyException]] = {
        CANCELLED: GenerationCancelledError,
        UNKNOWN: OutcomeUnknownError,
    }
    with again.running():
        if state in told:
            with pytest.raises(told[state]):
                again.creator.create(request(), alice, CallScope(TIMEOUT))
            assert again.generations.get_generation(key_of(started), alice) == started
        else:
            assert again.creator.create(request(), alice, CallScope(TIMEOUT)).guid == started.image_guid
    # Only what was not submitted, and what has certainly cost nothing.
    assert len(generator.requests) - submissions == (state in (QUEUED, FAILED))


def test_create_image_joins_a_submitted_generation(server: Server, generator: FakeGenerator, alice: Caller) -> None:
    with server.running(), held_back(generator) as answer, ThreadPoolExecutor(1) as pool:
        started = server.generations.create_generation(request(), alice)
        wait_for_state(server, started, alice, SUBMITTED)
        call = pool.submit(server.creator.create, request(), alice, CallScope(TIMEOUT))
        wait_until(lambda: server.waiting.is_waited_for(1), TIMEOUT, "the call to wait")
        answer.set()
        assert call.result().guid == started.image_guid
    assert len(generator.requests) == 1


@pytest.mark.parametrize("state", [QUEUED, SUCCEEDED, FAILED, CANCELLED, UNKNOWN])
def test_create_generation_returns_the_generation_of_its_request_id(
    server: Server, again: Server, generator: FakeGenerator, alice: Caller, state: GenerationState
) -> None:
    started = bring_into(server, generator, state, alice)
    submissions = len(generator.requests)

    joined = again.generations.create_generation(request(), alice)

    assert joined.guid == started.guid
    assert joined.image_guid == started.image_guid
    if state is FAILED:
        assert joined.state is QUEUED
        assert (joined.error, joined.attempts, joined.submitted_at, joined.finished_at) == (None, 0, None, None)
        with again.running():
            wait_for_state(again, joined, alice, SUCCEEDED)
    else:
        assert joined == started
    assert len(generator.requests) - submissions == (state is FAILED)


@contextmanager
def call_for_image(server: Server, author: Caller) -> Iterator[tuple[CallScope, Future[Image]]]:
    call = CallScope(TIMEOUT)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(server.creator.create, request(), author, call)
        wait_until(lambda: server.waiting.is_waited_for(1), TIMEOUT, "the call to wait")
        yield call, future


def test_a_queued_request_that_is_joined_outlives_the_call_that_recorded_it(
    server: Server, generator: FakeGenerator, alice: Caller
) -> None:
    with server.taking_calls():
        with call_for_image(server, alice) as (call, future):
            joined = server.generations.create_generation(request(), alice)
            call.leave()
            with pytest.raises(ProviderTimeoutError):
                future.result(TIMEOUT)
        assert server.generations.get_generation(key_of(joined), alice).state is QUEUED
    with Server(server.database, server.store, generator).running() as other:
        wait_for_state(other, joined, alice, SUCCEEDED)


def test_a_queued_request_that_nobody_joins_ends_with_its_call(
    server: Server, generator: FakeGenerator, alice: Caller
) -> None:
    with server.taking_calls():
        with call_for_image(server, alice) as (call, future):
            call.leave()
            with pytest.raises(ProviderTimeoutError):
                future.result(TIMEOUT)
        ended = server.generations.get_generation(GenerationKey(request_id=KEY), alice)
        assert ended.state is FAILED
        # Somebody else who wants it after all begins it anew.
        assert server.generations.create_generation(request(), alice).state is QUEUED
    assert generator.requests == []


def test_a_call_that_joins_a_started_generation_and_leaves_does_not_end_it(
    server: Server, generator: FakeGenerator, alice: Caller
) -> None:
    started = server.generations.create_generation(request(), alice)
    with server.taking_calls():
        with call_for_image(server, alice) as (call, future):
            call.leave()
            with pytest.raises(ProviderTimeoutError):
                future.result(TIMEOUT)
        assert server.generations.get_generation(key_of(started), alice).state is QUEUED
    with Server(server.database, server.store, generator).running() as other:
        wait_for_state(other, started, alice, SUCCEEDED)


def test_a_submitted_request_that_is_joined_is_tried_again_after_its_caller_s_deadline(
    server: Server, generator: FakeGenerator, alice: Caller
) -> None:
    limited = ProviderRateLimitedError("slow down", retry_after=0.05)
    call = CallScope(1.0)
    with server.running(), held_back(generator, limited) as answer, ThreadPoolExecutor(1) as pool:
        future = pool.submit(server.creator.create, request(), alice, call)
        wait_until(lambda: generator.requests, TIMEOUT, "the submission")
        joined = server.generations.create_generation(request(), alice)
        assert joined.state is SUBMITTED
        with pytest.raises(ProviderTimeoutError):
            future.result(TIMEOUT)
        answer.set()
        generator.behave = lambda: None
        wait_for_state(server, joined, alice, SUCCEEDED)
    assert len(generator.requests) == 2


def test_a_submitted_request_is_not_tried_again_after_its_caller_s_deadline(
    server: Server, generator: FakeGenerator, alice: Caller
) -> None:
    limited = ProviderRateLimitedError("slow down", retry_after=0.05)
    with server.running(), held_back(generator, limited) as answer:
        with pytest.raises(ProviderTimeoutError):
            server.creator.create(request(), alice, CallScope(0.5))
        answer.set()
        ended = wait_until(
            lambda: (
                found
                if (found := server.generations.get_generation(GenerationKey(request_id=KEY), alice)).state is FAILED
                else None
            ),
            TIMEOUT,
            "its end",
        )
    assert "ProviderRateLimitedError" in str(ended.error)
    assert len(generator.requests) == 1


# --- Get and list ----------------------------------------------------------------------------------------------------


def test_what_led_to_an_unknown_outcome_is_told(server: Server, generator: FakeGenerator, alice: Caller) -> None:
    generator.fails_with(ProviderTimeoutError("too slow", may_have_billed=True))
    started = server.generations.create_generation(request(), alice)
    with server.running():
        wait_for_state(server, started, alice, UNKNOWN)
    shown = mapping.from_generation(server.generations.get_generation(key_of(started), alice))
    assert (shown.error.code, shown.error.reason) == ("DEADLINE_EXCEEDED", "PROVIDER_TIMEOUT")
    assert shown.error.message == "too slow"


def all_calls(server: Server, key: GenerationKey, guid: str) -> list[Callable[[Caller | None], object]]:
    generations = server.generations
    return [
        lambda caller: generations.get_generation(key, caller),
        lambda caller: list(generations.watch_generation(key, caller, CallScope(TIMEOUT))),
        lambda caller: generations.cancel_generation(guid, caller),
    ]


def test_others_generations_are_not_there(server: Server, database: Database, alice: Caller) -> None:
    bob = make_caller(database, "bob")
    started = server.generations.create_generation(request(), alice)
    there, nowhere = (all_calls(server, GenerationKey(guid=guid), guid) for guid in (started.guid, new_guid()))
    for ask, ask_nothing in zip(there, nowhere, strict=True):
        with pytest.raises(GenerationNotFoundError) as of_others:
            ask(bob)
        with pytest.raises(GenerationNotFoundError) as of_nobody:
            ask_nothing(bob)
        assert of_others.value.message == of_nobody.value.message
        with pytest.raises(CredentialsMissingError):
            ask(None)
    with pytest.raises(GenerationNotFoundError):
        server.generations.get_generation(GenerationKey(request_id=KEY), bob)
    root = make_caller(database, "root", UserClass.ADMIN)
    assert server.generations.get_generation(key_of(started), root).author == "alice"
    assert server.generations.cancel_generation(started.guid, root).state is CANCELLED


@pytest.mark.parametrize("key", [GenerationKey(), GenerationKey(guid=KEY, request_id=KEY)])
def test_one_key_must_be_given(server: Server, alice: Caller, key: GenerationKey) -> None:
    for ask in all_calls(server, key, KEY)[:2]:
        with pytest.raises(InvalidFieldError) as refused:
            ask(alice)
        assert [violation.field for violation in refused.value.violations] == ["key"]


def test_pages_are_walked_by_their_owner_alone(server: Server, database: Database, alice: Caller) -> None:
    started = [server.generations.create_generation(request(new_guid()), alice) for _ in range(5)]
    wanted = GenerationFilter(states=(QUEUED,))

    first = server.generations.get_all_generations(GenerationPageRequest(filter=wanted, page_size=2), alice)
    assert first.next_page_token is not None
    rest = server.generations.get_all_generations(
        GenerationPageRequest(filter=wanted, page_size=200, page_token=first.next_page_token), alice
    )

    assert [*first.generations, *rest.generations] == list(reversed(started))
    assert rest.next_page_token is None
    others = [
        (GenerationPageRequest(filter=wanted, page_token=first.next_page_token), make_caller(database, "bob")),
        (GenerationPageRequest(page_token=first.next_page_token), alice),
        (GenerationPageRequest(filter=wanted, page_token=first.next_page_token[:-4] + "AAAA"), alice),
    ]
    for page, caller in others:
        with pytest.raises(InvalidFieldError) as refused:
            server.generations.get_all_generations(page, caller)
        assert [violation.field for violation in refused.value.violations] == ["page_token"]


def test_a_page_ends_before_it_is_too_large(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    server = Server(database, store, generator, max_queued=1000)
    long = "🦊" * 32_000
    with database.transaction() as context:
        for _ in range(60):
            GenerationRepository(context).insert(
                request(None, long), alice.user_id, "ab" * 32, server.creator._context_of(CallScope())
            )
        context.commit()

    sizes, token = [], None
    while True:
        page = server.generations.get_all_generations(GenerationPageRequest(page_size=200, page_token=token), alice)
        sizes.append(mapping.from_generation_page(page).ByteSize())
        token = page.next_page_token
        if token is None:
            break

    assert len(sizes) == 3
    assert max(sizes) <= MAX_PAGE_BYTES
    assert sizes[0] > MAX_PAGE_BYTES * 0.9


def test_a_generation_takes_no_more_of_a_page_than_is_counted(
    server: Server, generator: FakeGenerator, alice: Caller
) -> None:
    for error in (None, ProviderUnavailableError("é" * 3000, may_have_billed=True)):
        generator.behave = lambda: None
        if error is not None:
            generator.fails_with(error)
        creation = ImageCreation(
            detail=ImageDetailCreate(
                prompt="🦊" * 32_000, tags=tuple(f"{number:02}{'雪' * 40}" for number in range(20)), filename="é" * 255
            ),
            request_id=new_guid(),
        )
        started = server.generations.create_generation(creation, alice)
        with Server(server.database, server.store, generator).running():
            wait_for_state(server, started, alice, SUCCEEDED if error is None else UNKNOWN)
        ended = server.generations.get_generation(key_of(started), alice)
        counted = generations_module._bytes_in_page(ended)
        assert mapping.from_generation(ended).ByteSize() <= counted


# --- Cancel ----------------------------------------------------------------------------------------------------------


def test_a_queued_generation_is_cancelled_for_good(
    server: Server, again: Server, generator: FakeGenerator, alice: Caller
) -> None:
    started = server.generations.create_generation(request(), alice)
    cancelled = server.generations.cancel_generation(started.guid, alice)
    assert cancelled.state is CANCELLED
    assert cancelled.finished_at is not None
    assert server.generations.cancel_generation(started.guid.upper(), alice) == cancelled
    with again.running():
        other = again.generations.create_generation(request(new_guid()), alice)
        wait_for_state(again, other, alice, SUCCEEDED)
        assert again.generations.get_generation(key_of(started), alice) == cancelled
    assert len(generator.requests) == 1


@pytest.mark.parametrize("state", [SUCCEEDED, FAILED, UNKNOWN])
def test_what_has_ended_is_not_cancelled(
    server: Server, generator: FakeGenerator, alice: Caller, state: GenerationState
) -> None:
    ended = bring_into(server, generator, state, alice)
    with pytest.raises(AlreadySubmittedError):
        server.generations.cancel_generation(ended.guid, alice)
    assert server.generations.get_generation(key_of(ended), alice) == ended


def test_what_is_submitted_is_not_cancelled(server: Server, generator: FakeGenerator, alice: Caller) -> None:
    with server.running(), held_back(generator):
        started = server.generations.create_generation(request(), alice)
        wait_for_state(server, started, alice, SUBMITTED)
        with pytest.raises(AlreadySubmittedError):
            server.generations.cancel_generation(started.guid, alice)
    assert server.generations.get_generation(key_of(started), alice).state is SUCCEEDED


def test_calls_that_wait_are_told_of_the_cancellation(server: Server, alice: Caller) -> None:
    started = server.generations.create_generation(request(), alice)
    with server.taking_calls(), call_for_image(server, alice) as (_, future):
        server.generations.cancel_generation(started.guid, alice)
        with pytest.raises(GenerationCancelledError):
            future.result(TIMEOUT)


# --- Watch -----------------------------------------------------------------------------------------------------------


class Watch:
    """What a watcher, in a thread of its own, is shown."""

    def __init__(self, server: Server, generation: GenerationDetail, caller: Caller, pool: ThreadPoolExecutor) -> None:
        self.events: list[Event] = []
        self.call = CallScope(TIMEOUT)
        self._watching = server.generations.watch_generation(key_of(generation), caller, self.call)
        self.done = pool.submit(self._run)

    def _run(self) -> None:
        for event in self._watching:
            self.events.append(event)

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.events) >= count, TIMEOUT, f"{count} events")


def seen(events: Sequence[Event]) -> list[object]:
    """The states, and the indexes of partial images."""
    return [event.state if isinstance(event, GenerationDetail) else event.index for event in events]


def test_a_watcher_sees_every_change_and_the_end(server: Server, generator: FakeGenerator, alice: Caller) -> None:
    started = server.generations.create_generation(request(partial_images=2), alice)
    with ThreadPoolExecutor(1) as pool, held_back(generator) as answer, server.running():
        watch = Watch(server, started, alice, pool)
        wait_until(lambda: 1 in seen(watch.events), TIMEOUT, "the partial images")
        answer.set()
        watch.done.result(TIMEOUT)
    first, *others = seen(watch.events)
    assert first in (QUEUED, SUBMITTED)
    assert [event for event in others if event is not SUBMITTED] == [0, 1, SUCCEEDED]
    partials = [event for event in watch.events if isinstance(event, PartialImage)]
    assert [(partial.data, partial.content_type) for partial in partials] == [
        (b"partial 1 0", "image/webp"),
        (b"partial 1 1", "image/webp"),
    ]
    assert isinstance(watch.events[-1], GenerationDetail)
    assert watch.events[-1].image is not None


def test_a_watch_of_what_is_submitted_begins_with_what_there_is(
    server: Server, generator: FakeGenerator, alice: Caller
) -> None:
    started = server.generations.create_generation(request(partial_images=3), alice)
    with ThreadPoolExecutor(2) as pool, held_back(generator) as answer, server.running():
        wait_until(
            lambda: server.generations.get_generation(key_of(started), alice).partials == 3, TIMEOUT, "partial images"
        )
        for _ in range(2):
            watch = Watch(server, started, alice, pool)
            watch.wait_for(4)
            assert seen(watch.events) == [SUBMITTED, 0, 1, 2]
            watch.call.leave()
            watch.done.result(TIMEOUT)
            assert seen(watch.events) == [SUBMITTED, 0, 1, 2]
        answer.set()


@pytest.mark.parametrize("state", [SUCCEEDED, FAILED, CANCELLED, UNKNOWN])
def test_a_watch_of_what_has_ended_shows_that_alone(
    server: Server, generator: FakeGenerator, alice: Caller, state: GenerationState
) -> None:
    ended = bring_into(server, generator, state, alice)
    assert list(server.generations.watch_generation(key_of(ended), alice, CallScope(TIMEOUT))) == [ended]


def after_submission(events: Sequence[Event]) -> list[object]:
    states = seen(events)
    return states[states.index(SUBMITTED) :]


def test_a_watch_shows_attempts_that_fail(server: Server, generator: FakeGenerator, alice: Caller) -> None:
    limited = ProviderRateLimitedError("slow down", retry_after=2)
    started = server.generations.create_generation(request(), alice)
    with ThreadPoolExecutor(1) as pool, held_back(generator, limited) as answer, server.running():
        watch = Watch(server, started, alice, pool)
        wait_until(lambda: SUBMITTED in seen(watch.events), TIMEOUT, "the submission")
        answer.set()
        wait_until(lambda: QUEUED in after_submission(watch.events), TIMEOUT, "it to be queued again")
        generator.behave = lambda: None
        watch.done.result(TIMEOUT)
    last = watch.events[-1]
    assert isinstance(last, GenerationDetail)
    assert (last.state, last.attempts) == (SUCCEEDED, 2)


def test_a_watcher_is_told_of_the_cancellation(server: Server, alice: Caller) -> None:
    started = server.generations.create_generation(request(), alice)
    with ThreadPoolExecutor(1) as pool, server.taking_calls():
        watch = Watch(server, started, alice, pool)
        watch.wait_for(1)
        server.generations.cancel_generation(started.guid, alice)
        watch.done.result(TIMEOUT)
    assert seen(watch.events) == [QUEUED, CANCELLED]


def test_a_watch_that_reaches_its_deadline_is_told_so(server: Server, alice: Caller) -> None:
    started = server.generations.create_generation(request(), alice)
    with server.taking_calls():
        watching = server.generations.watch_generation(key_of(started), alice, CallScope(0.3))
        assert next(watching) == started
        with pytest.raises(ProviderTimeoutError):
            next(watching)
        # To watch is not to wait: it gives nothing up.
        assert server.generations.get_generation(key_of(started), alice) == started


def test_a_watcher_does_not_keep_an_unwanted_request_queued(server: Server, alice: Caller) -> None:
    with server.taking_calls(), ThreadPoolExecutor(1) as pool, call_for_image(server, alice) as (call, future):
        recorded = server.generations.get_generation(GenerationKey(request_id=KEY), alice)
        watch = Watch(server, recorded, alice, pool)
        watch.wait_for(1)
        call.leave()
        with pytest.raises(ProviderTimeoutError):
            future.result(TIMEOUT)
        watch.done.result(TIMEOUT)
        assert seen(watch.events) == [QUEUED, FAILED]
    assert CallerGoneError.__name__ in str(server.generations.get_generation(key_of(recorded), alice).error)


def test_many_watchers_of_a_generation_cost_one_query_an_interval(
    server: Server, generator: FakeGenerator, alice: Caller, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries: list[str] = []
    read = database.reading

    def counted() -> AbstractContextManager[DatabaseContext]:
        queries.append(threading.current_thread().name)
        return read()

    started = server.generations.create_generation(request(partial_images=2), alice)
    with ThreadPoolExecutor(WATCHERS) as pool, held_back(generator) as answer, server.taking_calls():
        watches = [Watch(server, started, alice, pool) for _ in range(WATCHERS)]
        for watch in watches:
            watch.wait_for(1)
        monkeypatch.setattr(database, "reading", counted)
        wait_until(lambda: queries.count("waiting-calls") >= 10, TIMEOUT, "some intervals")
        # Nothing changes, and nobody else asks; but for those who had just begun.
        assert len(queries) <= queries.count("waiting-calls") + 2 * WATCHERS
        queries.clear()
        wait_until(lambda: queries.count("waiting-calls") >= 10, TIMEOUT, "some intervals")
        assert set(queries) == {"waiting-calls"}

        with Server(database, server.store, generator).running():
            for watch in watches:
                wait_until(lambda watch=watch: 1 in seen(watch.events), TIMEOUT, "the partial images")  # type: ignore[misc]
            answer.set()
            for watch in watches:
                watch.done.result(TIMEOUT)
    # Four changes and two partial images would take six queries of each watcher; they share them, fewer of them if they
    # wake late.
    of_watchers = [name for name in queries if name.startswith("ThreadPoolExecutor")]
    assert len(of_watchers) < 3 * WATCHERS
    assert {tuple(event for event in seen(watch.events) if event is not SUBMITTED) for watch in watches} == {
        (QUEUED, 0, 1, SUCCEEDED)
    }


def test_a_partial_image_that_cannot_be_stored_costs_no_image(
    server: Server,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> bool:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(GenerationRepository, "add_partial", fail)
    started = server.generations.create_generation(request(partial_images=2), alice)
    with server.running():
        wait_for_state(server, started, alice, SUCCEEDED)
    assert "not foreseen" in caplog.text
    assert len(generator.requests) == 1


# --- Retention -------------------------------------------------------------------------------------------------------


def age(database: Database, days: int) -> None:
    """Let everything have happened so many days ago."""

    def set_back(context: DatabaseContext) -> None:
        then = datetime.now(UTC) - timedelta(days=days)
        context.execute("UPDATE generations SET created_at = :then, updated_at = :then", {"then": then})

    with database.transaction() as context:
        set_back(context)
        context.commit()


@pytest.mark.parametrize("state", [QUEUED, SUCCEEDED, FAILED, CANCELLED, UNKNOWN])
def test_old_requests_are_removed_and_stay_protected(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller, state: GenerationState
) -> None:
    server = Server(database, store, generator, retention=timedelta(days=3))
    started = bring_into(server, generator, state, alice)
    submissions = len(generator.requests)
    age(database, 2)
    server.recovery.run()
    assert server.generations.get_generation(key_of(started), alice).creation == request()
    age(database, 4)
    # The next run may be an hour away.
    Server(database, store, generator, retention=timedelta(days=3)).recovery.run()

    kept = server.generations.get_generation(key_of(started), alice)
    assert kept.creation == (None if state in (FAILED, CANCELLED, UNKNOWN) else request())
    assert (kept.request_id, kept.image_guid, kept.state) == (KEY, started.image_guid, state)
    with pytest.raises(RequestIdReusedError):
        server.generations.create_generation(request(prompt="another castle"), alice)
    joined = server.generations.create_generation(request(), alice)
    assert joined.guid == started.guid
    assert joined.state is (QUEUED if state is FAILED else state)
    if state is FAILED:
        assert joined.creation == request()
    assert len(generator.requests) == submissions


def test_many_old_requests_are_removed_run_by_run(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    server = Server(database, store, generator, retention=timedelta(days=3))
    with database.transaction() as context:
        for _ in range(101):
            GenerationRepository(context).insert(request(None), alice.user_id, "ab" * 32, RequestContext())
        context.execute("UPDATE generations SET state = :state", {"state": CANCELLED.value})
        context.commit()
    age(database, 4)
    for left in (1, 0):
        server.recovery.run()
        with database.reading() as context:
            assert len(context.fetch_all("SELECT id FROM generations WHERE request IS NOT NULL", {})) == left


def test_nothing_is_removed_by_default(server: Server, alice: Caller) -> None:
    started = server.generations.create_generation(request(), alice)
    server.generations.cancel_generation(started.guid, alice)
    age(server.database, 10_000)
    server.recovery.run()
    assert server.generations.get_generation(key_of(started), alice).creation == request()


def test_recovery_deletes_partial_images_after_the_end(server: Server, generator: FakeGenerator, alice: Caller) -> None:
    started = server.generations.create_generation(request(partial_images=2), alice)
    with server.running():
        wait_for_state(server, started, alice, SUCCEEDED)
    for days, left in ((0, 2), (1, 0)):  # Watchers have some seconds to see them.
        age(server.database, days)
        server.recovery.run()
        with server.database.reading() as context:
            assert len(context.fetch_all("SELECT generation_id FROM partial_images", {})) == left
