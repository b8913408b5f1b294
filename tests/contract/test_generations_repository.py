"""What recording, claiming and ending generations must do on every database: once each, whoever races for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Self, TypeVar

import pytest

from pixyproxy.core.error_records import from_record
from pixyproxy.core.exceptions import ConflictError, ConstraintViolationError, PixyProxyException, ProviderQuotaError
from pixyproxy.core.fields import GenerationState, Visibility, new_guid
from pixyproxy.core.models import Caller, GenerationOptions, ImageCreation, ImageDetailCreate, PartialImage, QuotaLimits
from pixyproxy.data.database import Database
from pixyproxy.data.repositories import generations as generations_repository
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, RequestContext
from pixyproxy.data.repositories.quotas import QuotaRepository
from tests.contract.records import add_caller

T = TypeVar("T")

MINUTE = timedelta(minutes=1)
FINGERPRINT = "0123456789abcdef" * 4
ERROR = ProviderQuotaError("out of money")
NO_CALL = RequestContext()


@pytest.fixture
def ann(database: Database) -> Caller:
    return add_caller(database, "ann")


def committed(database: Database, work: Callable[[GenerationRepository], T]) -> T:
    with database.transaction() as context:
        result = work(GenerationRepository(context))
        context.commit()
    return result


def read(database: Database, work: Callable[[GenerationRepository], T]) -> T:
    with database.reading() as context:
        return work(GenerationRepository(context))


def request(request_id: str | None = None, prompt: str = "a fox 🦊") -> ImageCreation:
    return ImageCreation(
        detail=ImageDetailCreate(prompt=prompt, tags=("a", "雪"), visibility=Visibility.PUBLIC),
        options=GenerationOptions(size="64x64"),
        request_id=request_id,
    )


def record(
    database: Database, author: Caller, request_id: str | None = None, context: RequestContext = NO_CALL
) -> Generation:
    return committed(
        database,
        lambda generations: generations.insert(request(request_id), author.user_id, FINGERPRINT, context),
    )


def submit(database: Database, generation: Generation, owner: str = "", lease: timedelta = MINUTE) -> bool:
    submitted_at = committed(
        database, lambda generations: generations.submit(generation.id, owner or new_guid(), lease)
    )
    return submitted_at is not None


def now_of(database: Database, generation: Generation) -> Generation:
    (found,) = read(database, lambda generations: generations.get_several([generation.id]))
    return found


def set_state(
    database: Database, generation: Generation, state: GenerationState, lease: timedelta = MINUTE
) -> Generation:
    """Bring a generation into a state, whichever way led there."""
    with database.transaction() as context:
        context.execute(
            "UPDATE generations SET state = :state, lease_expires_at = :expires_at WHERE id = :id",
            {"id": generation.id, "state": state.value, "expires_at": datetime.now(UTC) + lease},
        )
        context.commit()
    return now_of(database, generation)


# --- Record ----------------------------------------------------------------------------------------------------------


def test_a_request_comes_back_as_it_was_recorded(database: Database, ann: Caller) -> None:
    request_id = new_guid()
    deadline = datetime.now(UTC) + MINUTE
    context = RequestContext("host-1-2", {"traceparent": "00-ab"}, deadline)

    generation = record(database, ann, request_id, context)

    assert generation.state is GenerationState.QUEUED
    assert (generation.attempts, generation.error) == (0, None)
    assert read(database, lambda generations: generations.find(ann.user_id, request_id)) == generation
    queued = read(database, lambda generations: generations.get_queued(generation.id))
    assert queued is not None
    assert queued.generation == generation
    assert queued.creation == request(request_id)
    assert queued.author == ann
    assert queued.context == context
    assert queued.limits is None


def test_a_request_comes_with_the_limits_of_its_author(database: Database, ann: Caller) -> None:
    limits = QuotaLimits(images_per_day=7)
    with database.transaction() as context:
        QuotaRepository(context).set(ann.user_id, limits)
        context.commit()

    generation = record(database, ann)

    queued = read(database, lambda generations: generations.get_queued(generation.id))
    assert queued is not None
    assert queued.limits == limits


def test_what_is_reserved_for_a_generation_comes_back(database: Database, ann: Caller) -> None:
    generation = record(database, ann)
    assert generation.reserved_nano_usd is None

    assert committed(database, lambda generations: generations.submit(generation.id, new_guid(), MINUTE, "m", 7))

    (submitted,) = read(database, lambda generations: generations.get_several([generation.id]))
    assert submitted.reserved_nano_usd == 7


def test_the_longest_request_is_recorded(database: Database, ann: Caller) -> None:
    longest = request(prompt="🦊" * 32_000)
    generation = committed(
        database, lambda generations: generations.insert(longest, ann.user_id, FINGERPRINT, RequestContext())
    )
    queued = read(database, lambda generations: generations.get_queued(generation.id))
    assert queued is not None
    assert queued.creation == longest


def test_every_generation_has_an_image_of_its_own(database: Database, ann: Caller) -> None:
    generations = [record(database, ann) for _ in range(3)]

    assert len({generation.image_guid for generation in generations}) == 3
    assert len({generation.id for generation in generations}) == 3


def test_a_request_id_is_taken_once_by_an_author(database: Database, ann: Caller) -> None:
    bob = add_caller(database, "bob")
    request_id = new_guid()
    first = record(database, ann, request_id)

    with pytest.raises(ConstraintViolationError):
        record(database, ann, request_id)
    others = record(database, bob, request_id)

    assert read(database, lambda generations: generations.find(ann.user_id, request_id)) == first
    assert read(database, lambda generations: generations.find(bob.user_id, request_id)) == others != first


def test_the_author_must_exist(database: Database, ann: Caller) -> None:
    nobody = ann.model_copy(update={"user_id": ann.user_id + 1})

    with pytest.raises(ConstraintViolationError):
        record(database, nobody)


def test_what_was_not_recorded_is_not_found(database: Database, ann: Caller) -> None:
    record(database, ann)
    record(database, ann, new_guid())

    assert read(database, lambda generations: generations.find(ann.user_id, new_guid())) is None
    assert read(database, lambda generations: generations.find(ann.user_id, "")) is None
    assert read(database, lambda generations: generations.find_by_image(new_guid())) is None
    assert read(database, lambda generations: generations.get_several([])) == []


def test_a_record_that_is_not_committed_is_not_there(database: Database, ann: Caller) -> None:
    request_id = new_guid()
    with database.transaction() as context:
        GenerationRepository(context).insert(request(request_id), ann.user_id, FINGERPRINT, RequestContext())

    assert read(database, lambda generations: generations.find(ann.user_id, request_id)) is None


def test_a_failed_generation_is_queued_again_once(database: Database, ann: Caller) -> None:
    recorded = record(database, ann, new_guid())
    submit(database, recorded, "its worker")
    partial = PartialImage(index=0, content_type="image/png", data=b"half")
    assert committed(database, lambda generations: generations.add_partial(recorded.id, "its worker", partial))
    submitted = now_of(database, recorded)
    committed(database, lambda generations: generations.end(submitted, GenerationState.FAILED, ERROR))
    failed = now_of(database, recorded)
    assert failed.partials == 1
    context = RequestContext("another-call")

    queued = committed(database, lambda generations: generations.queue_again(failed, request(), context))

    assert queued is not None
    assert (queued.state, queued.attempts, queued.partials, queued.error) == (GenerationState.QUEUED, 0, 0, None)
    assert now_of(database, failed) == queued
    again = read(database, lambda generations: generations.get_queued(failed.id))
    assert again is not None
    assert again.context == context
    assert committed(database, lambda generations: generations.queue_again(failed, request(), context)) is None


def test_a_generation_is_found_by_its_image(database: Database, ann: Caller) -> None:
    generation, _ = record(database, ann), record(database, ann)

    assert read(database, lambda generations: generations.find_by_image(generation.image_guid)) == generation


# --- Claim -----------------------------------------------------------------------------------------------------------


def test_the_oldest_of_each_author_may_be_claimed(database: Database, ann: Caller) -> None:
    bob = add_caller(database, "bob")
    first, second = record(database, ann), record(database, ann)
    others = record(database, bob)

    assert read(database, GenerationRepository.oldest_queued) == ({ann.user_id: first.id, bob.user_id: others.id}, 3)
    assert read(database, lambda generations: generations.oldest_queued({first.id, others.id})) == (
        {ann.user_id: second.id},
        1,
    )
    assert read(database, GenerationRepository.count_queued) == {ann.user_id: 2, bob.user_id: 1}
    assert submit(database, first)
    assert read(database, GenerationRepository.oldest_queued) == ({ann.user_id: second.id, bob.user_id: others.id}, 2)
    assert read(database, GenerationRepository.count_queued) == {ann.user_id: 1, bob.user_id: 1}


def test_what_was_recorded_while_the_clock_was_wrong_may_be_claimed(
    database: Database, ann: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(hours=2)

    with monkeypatch.context() as clock:
        clock.setattr(generations_repository, "datetime", Ahead)
        generation = record(database, ann)
        failed = set_state(database, record(database, ann), GenerationState.FAILED)
        committed(database, lambda generations: generations.queue_again(failed, request(), RequestContext()))

    assert read(database, GenerationRepository.oldest_queued) == ({ann.user_id: generation.id}, 2)


def test_a_submitted_generation_has_a_lease_and_is_queued_no_more(database: Database, ann: Caller) -> None:
    generation = record(database, ann)

    assert submit(database, generation)

    submitted = now_of(database, generation)
    assert submitted.state is GenerationState.SUBMITTED
    assert submitted.attempts == 1
    assert submitted.is_leased
    assert read(database, lambda generations: generations.get_queued(generation.id)) is None
    assert not submit(database, generation)


def test_a_generation_is_queued_again_for_later_once_for_each_submission(database: Database, ann: Caller) -> None:
    generation = record(database, ann)
    submit(database, generation)
    first = now_of(database, generation)
    later = datetime.now(UTC) + MINUTE

    assert committed(database, lambda generations: generations.queue_later(first, datetime.now(UTC)))
    submit(database, generation)
    second = now_of(database, generation)
    assert not committed(database, lambda generations: generations.queue_later(first, later))
    assert not committed(database, lambda generations: generations.end(first, GenerationState.FAILED, ERROR))
    assert committed(database, lambda generations: generations.queue_later(second, later))

    assert now_of(database, generation).state is GenerationState.QUEUED
    assert read(database, GenerationRepository.oldest_queued) == ({}, 0)
    assert read(database, GenerationRepository.count_queued) == {ann.user_id: 1}


def test_a_claim_that_was_not_submitted_is_taken_back_by_its_owner(database: Database, ann: Caller) -> None:
    generation, owner = record(database, ann), new_guid()
    submit(database, generation, owner)
    first = now_of(database, generation)
    committed(database, lambda generations: generations.queue_later(first, datetime.now(UTC)))
    submit(database, generation, owner)

    committed(database, lambda generations: generations.take_back(generation.id, new_guid()))
    assert now_of(database, generation).state is GenerationState.SUBMITTED
    committed(database, lambda generations: generations.take_back(generation.id, owner))

    queued = now_of(database, generation)
    assert (queued.state, queued.attempts) == (GenerationState.QUEUED, 1)
    assert read_submitted_at(database, generation) is not None


def test_the_first_claim_that_was_not_submitted_leaves_no_trace(database: Database, ann: Caller) -> None:
    generation, owner = record(database, ann), new_guid()
    submit(database, generation, owner)

    committed(database, lambda generations: generations.take_back(generation.id, owner))

    assert now_of(database, generation).attempts == 0
    assert read_submitted_at(database, generation) is None


def read_submitted_at(database: Database, generation: Generation) -> datetime | None:
    with database.reading() as context:
        found: datetime | None = context.fetch_value(
            "SELECT submitted_at FROM generations WHERE id = :id", {"id": generation.id}
        )
    return found


def test_leases_are_renewed_for_their_owners_alone(database: Database, ann: Caller) -> None:
    owners = [new_guid(), new_guid()]
    generations = [record(database, ann) for _ in range(3)]
    for generation, owner in zip(generations, [*owners, new_guid()], strict=True):
        submit(database, generation, owner, -MINUTE)
        assert not now_of(database, generation).is_leased

    committed(database, lambda generations: generations.renew_leases(owners, MINUTE))

    assert [now_of(database, generation).is_leased for generation in generations] == [True, True, False]


def test_leases_of_a_dead_owner_expire_at_once(database: Database, ann: Caller) -> None:
    owner = new_guid()
    mine, others = record(database, ann), record(database, ann)
    submit(database, mine, owner)
    submit(database, others)

    committed(database, lambda generations: generations.expire_leases(owner))
    # Such as by an RPC worker, which does not know that the generation worker was replaced.
    committed(database, lambda generations: generations.renew_leases([owner], MINUTE))

    assert [expired.id for expired in read(database, lambda generations: generations.get_expired(10))] == [mine.id]
    assert now_of(database, others).is_leased


@pytest.mark.parametrize("state", GenerationState)
def test_only_a_lease_that_is_needed_expires(database: Database, ann: Caller, state: GenerationState) -> None:
    alive = set_state(database, record(database, ann), state, MINUTE)
    dead = set_state(database, record(database, ann), state, -MINUTE)
    is_owned = state in (GenerationState.RECORDED, GenerationState.SUBMITTED)

    assert alive.is_leased is is_owned
    assert not dead.is_leased
    expired = read(database, lambda generations: generations.get_expired(10))
    assert [generation.id for generation in expired] == ([dead.id] if is_owned else [])


# --- Finish ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [GenerationState.FAILED, GenerationState.OUTCOME_UNKNOWN])
def test_a_generation_ends_with_its_error(database: Database, ann: Caller, state: GenerationState) -> None:
    generation = record(database, ann)
    submit(database, generation)
    submitted = now_of(database, generation)

    assert committed(database, lambda generations: generations.end(submitted, state, ERROR))

    ended = now_of(database, generation)
    assert ended.state is state
    assert ended.error is not None
    error = from_record(ended.error)
    assert (type(error), error.message) == (type(ERROR), ERROR.message)
    assert not committed(database, lambda generations: generations.end(submitted, state, ERROR))


def test_a_generation_whose_lease_was_renewed_does_not_end_as_expired(database: Database, ann: Caller) -> None:
    generation = record(database, ann)
    submit(database, generation, lease=-MINUTE)
    expired = now_of(database, generation)
    alive = replace(
        set_state(database, generation, GenerationState.SUBMITTED, MINUTE), lease_expires_at=expired.lease_expires_at
    )

    def end(generations: GenerationRepository) -> bool:
        return generations.end(alive, GenerationState.OUTCOME_UNKNOWN, ERROR, if_expired=True)

    assert not committed(database, end)
    set_state(database, generation, GenerationState.SUBMITTED, -MINUTE)
    assert committed(database, end)


@pytest.mark.parametrize("state", GenerationState)
def test_a_generation_succeeds_once_by_whoever_has_its_image(
    database: Database, ann: Caller, state: GenerationState
) -> None:
    recorded = record(database, ann)
    set_state(database, recorded, state)

    assert committed(database, lambda generations: generations.succeed(recorded)) is (
        state is not GenerationState.SUCCEEDED
    )
    assert committed(database, lambda generations: generations.succeed(recorded)) is False
    assert now_of(database, recorded).state is GenerationState.SUCCEEDED


def test_an_end_that_is_not_committed_has_not_happened(database: Database, ann: Caller) -> None:
    generation = record(database, ann)

    with database.transaction() as context:
        assert GenerationRepository(context).end(generation, GenerationState.FAILED, ERROR)

    assert now_of(database, generation) == generation


# --- Races -----------------------------------------------------------------------------------------------------------

RACERS = 6


def race(*works: Callable[[], T]) -> list[T | PixyProxyException]:
    """Do all at once, each in a thread, and return what came of each."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], T]) -> T | PixyProxyException:
        barrier.wait(timeout=30)
        try:
            return work()
        except (ConstraintViolationError, ConflictError) as error:
            return error

    with ThreadPoolExecutor(len(works)) as threads:
        return [future.result() for future in [threads.submit(run, work) for work in works]]


def test_one_of_many_racers_records_a_request(database: Database, ann: Caller) -> None:
    request_id = new_guid()

    outcomes = race(*[lambda: record(database, ann, request_id)] * RACERS)

    winners = [outcome for outcome in outcomes if isinstance(outcome, Generation)]
    assert len(winners) == 1
    assert read(database, lambda generations: generations.find(ann.user_id, request_id)) == winners[0]


def test_one_of_many_racers_submits_a_generation(database: Database, ann: Caller) -> None:
    generation = record(database, ann)

    outcomes = race(*[lambda: submit(database, generation)] * RACERS)

    assert outcomes.count(True) == 1
    assert now_of(database, generation).attempts == 1


def test_a_caller_that_leaves_and_a_worker_that_claims_do_not_both_win(database: Database, ann: Caller) -> None:
    def give_up(generation: Generation) -> bool:
        return committed(database, lambda generations: generations.end(generation, GenerationState.FAILED, ERROR))

    for _ in range(20):
        generation = record(database, ann)
        outcomes = race(lambda g=generation: submit(database, g), lambda g=generation: give_up(g))  # type: ignore[misc]
        assert outcomes.count(True) == 1
