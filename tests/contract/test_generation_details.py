"""What showing generations, their partial images and their retention must do on every database."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest

from pixyproxy.core.error_records import from_record
from pixyproxy.core.exceptions import GenerationCancelledError, PixyProxyException
from pixyproxy.core.fields import GenerationState, UserClass, new_guid
from pixyproxy.core.models import (
    Caller,
    GenerationDetail,
    GenerationFilter,
    GenerationKey,
    GenerationOptions,
    ImageCreation,
    ImageDetailCreate,
    PagePosition,
    PartialImage,
)
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.generation_details import GenerationDetailRepository
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, RequestContext
from tests.contract.databases import on_servers
from tests.contract.records import NOON, add_caller, add_image, minutes

T = TypeVar("T")

LEASE = timedelta(minutes=1)
EVERYTHING = GenerationFilter()
FINAL_WITHOUT_IMAGE = (GenerationState.FAILED, GenerationState.CANCELLED, GenerationState.OUTCOME_UNKNOWN)
SHOWN_STATES = tuple(state for state in GenerationState if state is not GenerationState.IMPORTED)
ERROR = GenerationCancelledError("cancelled")


@pytest.fixture
def ann(database: Database) -> Caller:
    return add_caller(database, "ann")


@pytest.fixture
def bob(database: Database) -> Caller:
    return add_caller(database, "bob")


@pytest.fixture
def root(database: Database) -> Caller:
    return add_caller(database, "root", UserClass.ADMIN)


def changed(database: Database, work: Callable[[GenerationRepository], T]) -> T:
    with database.transaction() as context:
        result = work(GenerationRepository(context))
        context.commit()
    return result


def shown(database: Database, work: Callable[[GenerationDetailRepository], T]) -> T:
    with database.reading() as context:
        return work(GenerationDetailRepository(context))


def removed(database: Database, work: Callable[[GenerationDetailRepository], T]) -> T:
    with database.transaction() as context:
        result = work(GenerationDetailRepository(context))
        context.commit()
    return result


def request(request_id: str | None = None) -> ImageCreation:
    return ImageCreation(
        detail=ImageDetailCreate(prompt="a fox 🦊", tags=("雪",)),
        options=GenerationOptions(size="64x64", partial_images=2),
        request_id=request_id,
    )


def record(
    database: Database, author: Caller, request_id: str | None = None, *, is_detached: bool = False, **columns: Any
) -> Generation:
    """Record a request, and then bring its columns to some values, whichever way led there."""
    context = RequestContext(is_detached=is_detached)
    generation = changed(database, lambda all_: all_.insert(request(request_id), author.user_id, "ab" * 32, context))
    if columns:
        set_columns(database, generation, **columns)
    return generation


def set_columns(database: Database, generation: Generation, **columns: Any) -> None:
    with database.transaction() as context:
        listed = ", ".join(f"{name} = :{name}" for name in columns)
        context.execute(f"UPDATE generations SET {listed} WHERE id = :id", {"id": generation.id, **columns})
        context.commit()


def submitted(database: Database, author: Caller, owner: str) -> Generation:
    generation = record(database, author)
    assert changed(database, lambda all_: all_.submit(generation.id, owner, LEASE))
    return generation


def detail(database: Database, generation: Generation) -> GenerationDetail:
    (found,) = shown(database, lambda details: details.get_several([generation.id]))
    assert found is not None
    return found


def column(database: Database, generation: Generation, name: str) -> Any:
    with database.reading() as context:
        row = context.fetch_one(f"SELECT {name} FROM generations WHERE id = :id", {"id": generation.id})
    assert row is not None
    return row[name]


# --- One -------------------------------------------------------------------------------------------------------------


def test_a_generation_is_shown_as_it_was_recorded(database: Database, ann: Caller) -> None:
    request_id = new_guid()
    generation = record(database, ann, request_id)

    found = shown(database, lambda details: details.find(GenerationKey(request_id=request_id), ann))

    assert found is not None
    assert found.id == generation.id
    assert (found.author, found.state, found.request_id) == ("ann", GenerationState.QUEUED, request_id)
    assert (found.creation, found.image_guid) == (request(request_id), generation.image_guid)
    assert (found.submitted_at, found.finished_at, found.error, found.image) == (None, None, None, None)
    assert (found.attempts, found.partials) == (0, 0)
    assert shown(database, lambda details: details.find(GenerationKey(guid=found.guid), ann)) == found


def test_only_authors_and_admins_find_a_generation(database: Database, ann: Caller, bob: Caller, root: Caller) -> None:
    request_id = new_guid()
    generation = record(database, ann, request_id)
    by_guid = GenerationKey(guid=detail(database, generation).guid)

    for caller, is_found in ((ann, True), (bob, False), (root, True)):
        found = shown(database, lambda details, caller=caller: details.find(by_guid, caller))  # type: ignore[misc]
        assert (found is not None) is is_found
    # A request id is its author's own, whoever else uses it.
    key = GenerationKey(request_id=request_id)
    for caller in (bob, root):
        assert shown(database, lambda details, caller=caller: details.find(key, caller)) is None  # type: ignore[misc]
    others = record(database, bob, request_id)
    found = shown(database, lambda details: details.find(key, bob))
    assert found is not None
    assert found.id == others.id


@pytest.mark.parametrize("state", GenerationState)
def test_every_state_is_shown(database: Database, ann: Caller, state: GenerationState) -> None:
    generation = record(database, ann, state=state.value, updated_at=NOON)
    image = add_image(database, ann, guid=generation.image_guid)

    found = detail(database, generation)

    assert found.state is state
    assert (found.image == image) is (state is GenerationState.SUCCEEDED)
    assert found.finished_at == (NOON if state.is_final else None)
    set_columns(database, generation, finished_at=minutes(1))
    assert detail(database, generation).finished_at == (minutes(1) if state.is_final else None)


def test_a_deleted_image_is_not_shown(database: Database, ann: Caller) -> None:
    generation = record(database, ann, state=GenerationState.SUCCEEDED.value)
    assert detail(database, generation).image is None


def test_several_come_in_the_order_asked_for(database: Database, ann: Caller) -> None:
    first, second = record(database, ann), record(database, ann)
    missing = second.id + 1

    found = shown(database, lambda details: details.get_several([second.id, missing, first.id, second.id]))

    assert [one and one.id for one in found] == [second.id, None, first.id, second.id]


def test_a_request_of_a_later_release_is_left_out(database: Database, ann: Caller) -> None:
    generation = record(database, ann, request='{"detail": {"prompt": "a fox"}, "holograms": 3}')
    assert detail(database, generation).creation is None


# --- Pages -----------------------------------------------------------------------------------------------------------


def page(
    database: Database,
    caller: Caller,
    wanted: GenerationFilter = EVERYTHING,
    limit: int = 100,
    after: GenerationDetail | None = None,
) -> list[GenerationDetail]:
    position = None if after is None else PagePosition(after.created_at, after.id)
    return shown(database, lambda details: details.get_page(wanted, caller, limit=limit, after=position))


def ids(found: list[GenerationDetail]) -> list[int]:
    return [one.id for one in found]


def walk(database: Database, caller: Caller, wanted: GenerationFilter, limit: int) -> list[int]:
    """Return the ids of all pages, one behind the other."""
    found: list[GenerationDetail] = []
    while one := page(database, caller, wanted, limit, found[-1] if found else None):
        assert len(one) <= limit
        found += one
    return ids(found)


def test_pages_have_the_newest_first_whatever_their_states(
    database: Database, ann: Caller, bob: Caller, root: Caller
) -> None:
    states = [*SHOWN_STATES, *SHOWN_STATES]
    # Recorded out of order, and two at a time.
    times = [minutes((number * 5 % len(states)) // 2) for number in range(len(states))]
    own = [record(database, ann, state=state.value, created_at=time) for state, time in zip(states, times, strict=True)]
    order = sorted(range(len(own)), key=lambda number: (times[number], own[number].id), reverse=True)
    expected = [own[number].id for number in order]
    others = record(database, bob, created_at=minutes(1000))

    assert page(database, bob)[0].id == others.id
    for limit in (1, 2, 3, 100):
        assert walk(database, ann, EVERYTHING, limit) == expected
        assert walk(database, root, EVERYTHING, limit) == [others.id, *expected]
        for chosen in itertools.combinations(SHOWN_STATES, 2):
            of_these = [own[number].id for number in order if states[number] in chosen]
            assert walk(database, ann, GenerationFilter(states=(*chosen, chosen[0])), limit) == of_these


def test_filters_must_all_hold(database: Database, ann: Caller, bob: Caller, root: Caller) -> None:
    queued, failed = (
        [record(database, ann, state=state, created_at=minutes(number)) for number in range(4)]
        for state in ("queued", "failed")
    )
    record(database, bob, created_at=minutes(2))

    def found(caller: Caller, **wanted: Any) -> set[int]:
        return set(ids(page(database, caller, GenerationFilter(**wanted))))

    def ids_of(*generations: Generation) -> set[int]:
        return {generation.id for generation in generations}

    assert found(ann, created_after=minutes(1)) == ids_of(*queued[2:], *failed[2:])
    assert found(ann, created_before=minutes(1)) == ids_of(queued[0], failed[0])
    between = {"created_after": minutes(0), "created_before": minutes(3)}
    assert found(ann, **between) == ids_of(*queued[1:3], *failed[1:3])
    assert found(ann, states=(GenerationState.FAILED,), **between) == ids_of(*failed[1:3])
    assert found(ann, author="ann") == ids_of(*queued, *failed)
    # Other authors' are nobody's business but an admin's.
    assert found(ann, author="bob") == found(ann, author="nobody") == found(bob, author="ann") == set()
    assert found(root, author="ann", states=(GenerationState.QUEUED,)) == ids_of(*queued)
    assert found(root, author="Ann") == found(root, author="nobody") == set()
    assert found(bob, states=(GenerationState.FAILED,)) == set()


def test_rows_that_are_added_meanwhile_neither_repeat_nor_skip_any(database: Database, ann: Caller) -> None:
    recorded = [record(database, ann, created_at=minutes(number)) for number in range(6)]
    first = page(database, ann, limit=3)
    record(database, ann, created_at=minutes(100))
    set_columns(database, recorded[1], state="failed")

    rest = page(database, ann, limit=100, after=first[-1])

    assert ids(first + rest) == [generation.id for generation in reversed(recorded)]


# --- Cancel and detach -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", GenerationState)
def test_only_a_queued_generation_is_cancelled(database: Database, ann: Caller, state: GenerationState) -> None:
    generation = record(database, ann, state=state.value)
    is_queued = state is GenerationState.QUEUED

    assert changed(database, lambda all_: all_.cancel(generation.id, ERROR)) is is_queued
    assert not changed(database, lambda all_: all_.cancel(generation.id, ERROR))

    found = detail(database, generation)
    assert found.state is (GenerationState.CANCELLED if is_queued else state)
    assert not changed(database, lambda all_: all_.submit(generation.id, new_guid(), LEASE)) or not is_queued
    if is_queued:
        assert found.finished_at is not None
        assert isinstance(from_record(str(found.error)), GenerationCancelledError)


@pytest.mark.parametrize("state", GenerationState)
def test_a_generation_that_has_not_ended_is_detached(database: Database, ann: Caller, state: GenerationState) -> None:
    generation = record(database, ann, state=state.value, deadline_at=NOON)
    is_running = state in (GenerationState.QUEUED, GenerationState.SUBMITTED)

    assert changed(database, lambda all_: all_.detach(generation.id)) is is_running

    assert column(database, generation, "is_detached") == int(is_running)
    assert (column(database, generation, "deadline_at") is None) is is_running


@pytest.mark.parametrize("is_detached", [False, True])
def test_a_detached_generation_does_not_end_with_its_callers(
    database: Database, ann: Caller, *, is_detached: bool
) -> None:
    generation = record(database, ann, is_detached=is_detached)

    def end(all_: GenerationRepository) -> bool:
        return all_.end(generation, GenerationState.FAILED, PixyProxyException("gone"), unless_detached=True)

    assert changed(database, end) is not is_detached
    assert detail(database, generation).state is (GenerationState.QUEUED if is_detached else GenerationState.FAILED)


def test_the_deadline_is_that_of_whoever_still_waits(database: Database, ann: Caller) -> None:
    generation = record(database, ann, deadline_at=NOON)
    assert shown_deadline(database, generation) == NOON
    changed(database, lambda all_: all_.detach(generation.id))
    assert shown_deadline(database, generation) is None


def shown_deadline(database: Database, generation: Generation) -> datetime | None:
    with database.reading() as context:
        return GenerationRepository(context).deadline_of(generation.id)


# --- Partial images --------------------------------------------------------------------------------------------------


def partial(index: int, size: int = 1000) -> PartialImage:
    return PartialImage(index=index, content_type="image/webp", data=bytes([index, 0, 255]) * size)


def add(database: Database, generation: Generation, owner: str, *added: PartialImage) -> list[bool]:
    return [
        changed(database, lambda all_, one=one: all_.add_partial(generation.id, owner, one))  # type: ignore[misc]
        for one in added
    ]


def partials_of(database: Database, generation: Generation, *indexes: int) -> list[PartialImage | None]:
    return shown(database, lambda details: details.get_partials([(generation.id, index) for index in indexes]))


def test_partial_images_come_back(database: Database, ann: Caller) -> None:
    one, other = submitted(database, ann, "owner"), submitted(database, ann, "owner")
    large = partial(1, size=2_000_000)

    assert add(database, one, "owner", partial(0), large) == [True, True]

    assert detail(database, one).partials == 2
    assert partials_of(database, one, 1, 2, 0, 1) == [large, None, partial(0), large]
    assert partials_of(database, other, 0) == [None]
    assert detail(database, other).partials == 0


def test_a_partial_image_that_comes_again_replaces_the_first(database: Database, ann: Caller) -> None:
    generation = submitted(database, ann, "owner")

    assert add(database, generation, "owner", partial(0), partial(1), partial(0, size=5)) == [True, True, True]

    assert detail(database, generation).partials == 2
    assert partials_of(database, generation, 0, 1) == [partial(0, size=5), partial(1)]


def test_only_the_owner_of_a_submitted_generation_adds_partial_images(database: Database, ann: Caller) -> None:
    generation = submitted(database, ann, "owner")

    assert add(database, generation, "another", partial(0)) == [False]
    for state in GenerationState:
        set_columns(database, generation, state=state.value)
        is_added = state is GenerationState.SUBMITTED
        assert add(database, generation, "owner", partial(1)) == [is_added]

    assert partials_of(database, generation, 0, 1) == [None, partial(1)]


def test_a_generation_that_is_queued_again_begins_without_partial_images(database: Database, ann: Caller) -> None:
    generation = submitted(database, ann, "owner")
    add(database, generation, "owner", partial(0))
    set_columns(database, generation, state="failed")
    (failed,) = changed(database, lambda all_: all_.get_several([generation.id]))

    queued = changed(database, lambda all_: all_.queue_again(failed, request(), RequestContext()))

    assert queued is not None
    assert queued.partials == detail(database, generation).partials == 0
    assert changed(database, lambda all_: all_.submit(generation.id, "owner", LEASE))
    assert add(database, generation, "owner", partial(0, size=7)) == [True]
    assert partials_of(database, generation, 0) == [partial(0, size=7)]


def test_partial_images_are_deleted_some_time_after_the_end(database: Database, ann: Caller) -> None:
    def with_partials(state: GenerationState, updated_at: datetime) -> Generation:
        generation = submitted(database, ann, "owner")
        add(database, generation, "owner", partial(0), partial(1))
        set_columns(database, generation, state=state.value, updated_at=updated_at)
        return generation

    running = with_partials(GenerationState.SUBMITTED, minutes(0))
    fresh = with_partials(GenerationState.SUCCEEDED, minutes(3))
    ended = [with_partials(state, minutes(0)) for state in GenerationState if state is not GenerationState.SUBMITTED]

    removed(database, lambda details: details.delete_partials(minutes(2), 1))
    left = [generation for generation in ended if partials_of(database, generation, 0, 1) != [None, None]]
    assert len(left) == len(ended) - 1
    removed(database, lambda details: details.delete_partials(minutes(2), 100))

    assert [partials_of(database, generation, 0, 1) for generation in ended] == [[None, None]] * len(ended)
    for generation in (running, fresh):
        assert partials_of(database, generation, 0, 1) == [partial(0), partial(1)]


# --- Retention -------------------------------------------------------------------------------------------------------


def test_old_requests_without_an_image_are_forgotten_and_their_ids_are_not(database: Database, ann: Caller) -> None:
    def ended(state: GenerationState, created_at: datetime, updated_at: datetime) -> Generation:
        return record(database, ann, new_guid(), state=state.value, created_at=created_at, updated_at=updated_at)

    old = [ended(state, minutes(0), minutes(1)) for state in GenerationState]
    young = [ended(state, minutes(2), minutes(2)) for state in GenerationState]
    late = [ended(state, minutes(0), minutes(2)) for state in GenerationState]

    since = removed(database, lambda details: details.forget_requests(minutes(2), 2, since=minutes(0)))
    assert since == minutes(0)
    assert removed(database, lambda details: details.forget_requests(minutes(2), 2, since=minutes(0))) is None
    for generation in (*old, *young, *late):
        found = detail(database, generation)
        is_forgotten = generation in old and found.state in FINAL_WITHOUT_IMAGE
        assert (found.creation is None) is is_forgotten
        request_id = str(found.request_id)
        known = changed(database, lambda all_, request_id=request_id: all_.find(ann.user_id, request_id))  # type: ignore[misc]
        assert known is not None
        assert (known.id, known.fingerprint) == (generation.id, generation.fingerprint)


def test_the_oldest_requests_are_forgotten_first_and_each_call_goes_on_after_the_last(
    database: Database, ann: Caller
) -> None:
    """Each would otherwise read past all that were forgotten, or are kept because they ended late."""
    generations = [
        record(
            database,
            ann,
            state=FINAL_WITHOUT_IMAGE[number % 3].value,
            created_at=minutes(number),
            updated_at=minutes(9 if number == 1 else number),
        )
        for number in reversed(range(6))
    ][::-1]

    def is_known() -> list[bool]:
        return [detail(database, generation).creation is not None for generation in generations]

    assert removed(database, lambda details: details.forget_requests(minutes(9), 2, since=minutes(0))) == minutes(2)
    assert is_known() == [False, True, False, True, True, True]
    # It would be forgotten by now.
    assert removed(database, lambda details: details.forget_requests(minutes(10), 2, since=minutes(2))) == minutes(4)
    assert is_known() == [False, True, False, False, False, True]
    assert removed(database, lambda details: details.forget_requests(minutes(10), 2, since=minutes(4))) is None
    assert is_known() == [False, True, False, False, False, False]


@on_servers  # SQLite does not count them.
def test_forgetting_the_last_requests_reads_no_more_rows_than_forgetting_the_first(
    database: Database, ann: Caller
) -> None:
    for number in range(60):
        state = FINAL_WITHOUT_IMAGE[number % 3].value
        record(database, ann, state=state, created_at=minutes(number), updated_at=minutes(number))

    def read_rows(context: DatabaseContext) -> int:
        (row,) = context.fetch_all("SHOW SESSION STATUS LIKE 'Handler_read_next'", {})
        return int(row["Value"])

    counts: list[int] = []
    since: datetime | None = minutes(0)
    while since is not None:
        with database.transaction() as context:
            before = read_rows(context)
            since = GenerationDetailRepository(context).forget_requests(minutes(60), 5, since=since)
            counts.append(read_rows(context) - before)
            context.commit()

    assert len(counts) == 60 // 5 + 1
    # The one that was forgotten last is read again.
    assert max(counts) <= counts[0] + 1, counts


@on_servers  # In SQLite a transaction excludes other changes.
def test_a_request_that_is_queued_again_meanwhile_is_not_forgotten(
    database: Database, ann: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise no worker could read it, and it would be queued for ever."""
    generation = record(database, ann, new_guid(), state="failed", created_at=minutes(0), updated_at=minutes(0))
    with database.transaction() as context:
        fetch_all = context.fetch_all

        def read_first(sql: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
            rows = fetch_all(sql, parameters)
            [failed] = changed(database, lambda all_: all_.get_several([generation.id]))
            assert changed(database, lambda all_: all_.queue_again(failed, request(), RequestContext()))
            return rows

        monkeypatch.setattr(context, "fetch_all", read_first)
        GenerationDetailRepository(context).forget_requests(minutes(2), 2, since=minutes(0))
        context.commit()

    assert detail(database, generation).creation is not None
    with database.reading() as context:
        assert GenerationRepository(context).get_queued(generation.id) is not None


# --- Imports ---------------------------------------------------------------------------------------------------------


def test_imports_are_not_shown(database: Database, ann: Caller, root: Caller) -> None:
    key = new_guid()
    changed(database, lambda generations: generations.insert_import(ann.user_id, key, "0" * 64, new_guid()))
    for caller in (ann, root):
        with database.reading() as context:
            details = GenerationDetailRepository(context)
            assert details.find(GenerationKey(request_id=key), caller) is None
            assert details.get_page(EVERYTHING, caller, limit=9, after=None) == []
    with database.reading() as context:
        known = GenerationRepository(context).find(ann.user_id, key)
        assert known is not None
        assert (known.state, known.is_leased) == (GenerationState.IMPORTED, False)
        assert GenerationRepository(context).count_queued() == {}
        assert GenerationRepository(context).get_expired(9) == []
