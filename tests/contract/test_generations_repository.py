"""What recording generations must do on every database: one for each request, whoever races for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest

from pixyproxy.core.exceptions import ConflictError, ConstraintViolationError
from pixyproxy.core.models import Caller, new_guid
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, GenerationState
from tests.contract.records import add_caller

T = TypeVar("T")

MINUTE = timedelta(minutes=1)
FINGERPRINT = "0123456789abcdef" * 4


@pytest.fixture
def ann(database: Database) -> Caller:
    return add_caller(database, "ann")


def committed(database: Database, work: Callable[[GenerationRepository], T]) -> T:
    with database.transaction() as context:
        result = work(GenerationRepository(context))
        context.commit()
    return result


def record(database: Database, author: Caller, request_id: str | None, lease: timedelta = MINUTE) -> Generation:
    return committed(
        database,
        lambda generations: generations.insert(
            author_id=author.user_id, request_id=request_id, fingerprint=FINGERPRINT, lease=lease
        ),
    )


def find(database: Database, author: Caller, request_id: str) -> Generation | None:
    with database.reading() as context:
        return GenerationRepository(context).find(author.user_id, request_id)


def move(
    database: Database, generation: Generation, state: GenerationState, lease: timedelta = timedelta(0)
) -> Generation | None:
    return committed(database, lambda generations: generations.move(generation, state, lease=lease))


def test_a_generation_comes_back_as_it_was_recorded(database: Database, ann: Caller) -> None:
    request_id = new_guid()
    before = datetime.now(UTC)

    generation = record(database, ann, request_id)

    assert generation.state is GenerationState.RECORDED
    assert generation.fingerprint == FINGERPRINT
    assert before + MINUTE <= generation.lease_expires_at <= datetime.now(UTC) + MINUTE
    assert find(database, ann, request_id) == generation
    assert generation.is_under_way


def test_every_generation_has_an_image_of_its_own(database: Database, ann: Caller) -> None:
    generations = [record(database, ann, None) for _ in range(3)]

    assert len({generation.image_guid for generation in generations}) == 3
    assert len({generation.id for generation in generations}) == 3


def test_a_request_id_is_taken_once_by_an_author(database: Database, ann: Caller) -> None:
    bob = add_caller(database, "bob")
    request_id = new_guid()
    first = record(database, ann, request_id)

    with pytest.raises(ConstraintViolationError):
        record(database, ann, request_id)
    others = record(database, bob, request_id)

    assert find(database, ann, request_id) == first
    assert find(database, bob, request_id) == others != first


def test_the_author_must_exist(database: Database, ann: Caller) -> None:
    nobody = ann.model_copy(update={"user_id": ann.user_id + 1})

    with pytest.raises(ConstraintViolationError):
        record(database, nobody, None)


def test_what_was_not_recorded_is_not_found(database: Database, ann: Caller) -> None:
    record(database, ann, None)
    record(database, ann, new_guid())

    assert find(database, ann, new_guid()) is None
    assert find(database, ann, "") is None


def test_a_generation_that_is_not_committed_is_not_recorded(database: Database, ann: Caller) -> None:
    request_id = new_guid()
    with database.transaction() as context:
        GenerationRepository(context).insert(
            author_id=ann.user_id, request_id=request_id, fingerprint=FINGERPRINT, lease=MINUTE
        )

    assert find(database, ann, request_id) is None


@pytest.mark.parametrize("state", GenerationState)
def test_a_generation_moves_to_any_state(database: Database, ann: Caller, state: GenerationState) -> None:
    request_id, other_id = new_guid(), new_guid()
    generation, other = record(database, ann, request_id), record(database, ann, other_id)

    moved = move(database, generation, state, 2 * MINUTE)

    assert moved is not None
    assert moved.state is state
    assert moved.lease_expires_at > generation.lease_expires_at
    assert (moved.id, moved.image_guid, moved.fingerprint) == (
        generation.id,
        generation.image_guid,
        generation.fingerprint,
    )
    assert find(database, ann, request_id) == moved
    assert find(database, ann, other_id) == other


def test_a_generation_moves_on_from_where_it_was_left(database: Database, ann: Caller) -> None:
    request_id = new_guid()
    generation: Generation | None = record(database, ann, request_id)

    for state in (GenerationState.SENT, GenerationState.FAILED, GenerationState.RECORDED, GenerationState.STORED):
        assert generation is not None
        generation = move(database, generation, state, MINUTE)

    assert generation is not None
    assert find(database, ann, request_id) == generation


def test_a_generation_that_somebody_else_has_moved_stays_as_it_is(database: Database, ann: Caller) -> None:
    request_id = new_guid()
    generation = record(database, ann, request_id)
    moved = move(database, generation, GenerationState.SENT, MINUTE)

    assert move(database, generation, GenerationState.FAILED) is None
    assert find(database, ann, request_id) == moved


def test_a_generation_that_was_taken_over_belongs_to_its_new_owner(database: Database, ann: Caller) -> None:
    request_id = new_guid()
    generation = move(database, record(database, ann, request_id), GenerationState.FAILED)
    assert generation is not None

    taken = committed(database, lambda generations: generations.take_over(generation, lease=MINUTE))

    assert taken is not None
    assert taken.owner != generation.owner
    assert taken.state is GenerationState.RECORDED
    assert taken.is_under_way
    assert find(database, ann, request_id) == taken
    assert committed(database, lambda generations: generations.take_over(generation, lease=MINUTE)) is None
    assert move(database, generation, GenerationState.SENT) is None
    assert find(database, ann, request_id) == taken


def test_a_renewed_lease_keeps_the_generation_with_its_owner(database: Database, ann: Caller) -> None:
    request_id, other_id = new_guid(), new_guid()
    generation, other = record(database, ann, request_id, -MINUTE), record(database, ann, other_id, -MINUTE)
    assert not generation.is_under_way

    committed(database, lambda generations: generations.renew_leases([generation.owner, new_guid()], lease=MINUTE))

    renewed = find(database, ann, request_id)
    assert renewed is not None
    assert renewed.is_under_way
    assert find(database, ann, other_id) == other
    assert move(database, generation, GenerationState.SENT, MINUTE) is not None


def test_a_generation_is_found_by_its_image(database: Database, ann: Caller) -> None:
    generation, _ = record(database, ann, None), record(database, ann, None)

    with database.reading() as context:
        assert GenerationRepository(context).find_by_image(generation.image_guid) == generation
        assert GenerationRepository(context).find_by_image(new_guid()) is None


@pytest.mark.parametrize("state", GenerationState)
def test_a_generation_is_finished_once_by_whoever_has_its_picture(
    database: Database, ann: Caller, state: GenerationState
) -> None:
    request_id = new_guid()
    recorded = record(database, ann, request_id)
    assert move(database, recorded, state) is not None

    assert committed(database, lambda generations: generations.finish(recorded)) is (
        state is not GenerationState.STORED
    )
    assert committed(database, lambda generations: generations.finish(recorded)) is False

    found = find(database, ann, request_id)
    assert found is not None
    assert found.state is GenerationState.STORED


def test_a_move_that_is_not_committed_has_not_happened(database: Database, ann: Caller) -> None:
    request_id = new_guid()
    generation = record(database, ann, request_id)

    with database.transaction() as context:
        assert GenerationRepository(context).move(generation, GenerationState.SENT) is not None

    assert find(database, ann, request_id) == generation


@pytest.mark.parametrize("state", GenerationState)
def test_what_is_unfinished_is_under_way_as_long_as_its_lease_runs(
    database: Database, ann: Caller, state: GenerationState
) -> None:
    with_lease = move(database, record(database, ann, None), state, MINUTE)
    without = move(database, record(database, ann, None), state, -MINUTE)
    assert with_lease is not None
    assert without is not None

    assert with_lease.is_under_way is (state in (GenerationState.RECORDED, GenerationState.SENT))
    assert not without.is_under_way


RACERS = 6


def race(work: Callable[[], T]) -> list[T | Exception]:
    """Do the same in many threads at once, and return what came of it."""
    barrier = threading.Barrier(RACERS)

    def run() -> T | Exception:
        barrier.wait(timeout=30)
        try:
            return work()
        except (ConstraintViolationError, ConflictError) as error:
            return error

    with ThreadPoolExecutor(RACERS) as threads:
        return [future.result() for future in [threads.submit(run) for _ in range(RACERS)]]


def test_one_of_many_racers_records_a_request(database: Database, ann: Caller) -> None:
    request_id = new_guid()

    outcomes = race(lambda: record(database, ann, request_id))

    winners = [outcome for outcome in outcomes if isinstance(outcome, Generation)]
    assert len(winners) == 1
    assert find(database, ann, request_id) == winners[0]


def test_one_of_many_racers_moves_a_generation(database: Database, ann: Caller) -> None:
    request_id = new_guid()
    generation = record(database, ann, request_id)

    outcomes = race(lambda: move(database, generation, GenerationState.SENT, MINUTE))

    winners = [outcome for outcome in outcomes if isinstance(outcome, Generation)]
    assert len(winners) == 1
    assert find(database, ann, request_id) == winners[0]
