"""What quotas must count on every database, and that they hold however many transactions claim at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from pixyproxy.core.exceptions import (
    ConstraintViolationError,
    OutcomeUnknownError,
    PriceUnknownError,
    PromptRefusedError,
    QuotaExhaustedError,
)
from pixyproxy.core.fields import GenerationState, Origin
from pixyproxy.core.models import (
    UNLIMITED,
    Caller,
    Cost,
    GenerationDefaults,
    GenerationOptions,
    ImageCreation,
    ImageDetailCreate,
    Quota,
    QuotaLimits,
    QuotaName,
)
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.generations import (
    Generation,
    GenerationRepository,
    QueuedGeneration,
    RequestContext,
)
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.quotas import QuotaRepository, QuotaUse
from pixyproxy.data.repositories.users import UserRepository
from pixyproxy.data.transactions import in_transaction
from pixyproxy.generation.price_list import DEFAULT_PRICE_LIST, read_price_list
from pixyproxy.service.accounting import fold_some
from pixyproxy.service.quotas import QuotaReservedError, Quotas
from tests.contract.databases import open_database
from tests.contract.records import add_caller, add_image, detail_of, get_image
from tests.support.waiting import wait_out_midnight

PRICES = read_price_list(DEFAULT_PRICE_LIST)
OPTIONS = GenerationDefaults(
    model="gpt-image-2.5-flare", size="1024x1024", quality="low", output_format="png", background="auto"
)
LEASE = timedelta(minutes=1)
MOST = PRICES.models[OPTIONS.model].most_nano_usd("fox", GenerationOptions(**dict(OPTIONS)), 0)
COST = Cost(nano_usd=7_000_000, price_list="of-tests")


@pytest.fixture
def ann(database: Database) -> Caller:
    return add_caller(database, "ann")


def quotas_of(database: Database, **defaults: int) -> Quotas:
    return Quotas(database, PRICES, OPTIONS, QuotaLimits(**defaults))


def record(database: Database, author: Caller, **options: Any) -> QueuedGeneration:
    """Record a request, and read it as a worker does."""
    creation = ImageCreation(detail=ImageDetailCreate(prompt="fox"), options=GenerationOptions(**options))
    with database.transaction() as context:
        recorded = GenerationRepository(context).insert(creation, author.user_id, "ab" * 32, RequestContext())
        context.commit()
    return read(database, recorded.id)


def read(database: Database, generation_id: int) -> QueuedGeneration:
    with database.reading() as context:
        queued = GenerationRepository(context).get_queued(generation_id)
    assert queued is not None
    return queued


@pytest.fixture(autouse=True)
def one_day() -> None:
    """All of a test is in one day."""
    wait_out_midnight()


def claim(database: Database, quotas: Quotas, queued: QueuedGeneration) -> Generation:
    """Claim a generation, and return it as it is then."""

    def submit(context: DatabaseContext) -> None:
        reserved = quotas.reserve(context, queued)
        assert GenerationRepository(context).submit(queued.generation.id, "owner", LEASE, OPTIONS.model, reserved)

    in_transaction(database, submit)
    with database.reading() as context:
        [generation] = GenerationRepository(context).get_several([queued.generation.id])
    return generation


def submitted(database: Database, author: Caller) -> Generation:
    return claim(database, quotas_of(database), record(database, author))


def end(database: Database, generation: Generation, state: GenerationState) -> None:
    error = OutcomeUnknownError("?") if state is GenerationState.OUTCOME_UNKNOWN else PromptRefusedError("no")
    assert in_transaction(database, lambda context: GenerationRepository(context).end(generation, state, error))


def commit(database: Database, author: Caller, generation: Generation, **values: Any) -> None:
    """Commit the image of a generation as the storing does."""
    detail = detail_of(author, guid=generation.image_guid, created_at=datetime.now(UTC), **values)

    def insert(context: DatabaseContext) -> None:
        assert GenerationRepository(context).succeed(generation)
        ImageRepository(context).insert(detail, author.user_id, generation.reserved_nano_usd)

    in_transaction(database, insert)


def use_of(database: Database, author: Caller, now: datetime | None = None) -> QuotaUse:
    with database.reading() as context:
        return QuotaRepository(context).get_use(author.user_id, now or datetime.now(UTC))


def set_limits(database: Database, author: Caller, **limits: int) -> None:
    in_transaction(database, lambda context: QuotaRepository(context).set(author.user_id, QuotaLimits(**limits)))


def fold_all(database: Database) -> None:
    while fold_some(database, longest_tail=0):
        pass


# --- What is used ----------------------------------------------------------------------------------------------------


def test_nothing_is_used_before_anything_was_submitted(database: Database, ann: Caller) -> None:
    record(database, ann)
    assert use_of(database, ann) == QuotaUse(0, 0, 0, 0)


def test_a_submitted_generation_reserves_what_it_may_cost(database: Database, ann: Caller) -> None:
    submitted(database, add_caller(database, "bob"))
    generation = submitted(database, ann)

    assert generation.reserved_nano_usd == MOST
    assert use_of(database, ann) == QuotaUse(images=0, nano_usd=0, submitted=1, reserved_nano_usd=MOST)


def test_an_image_has_used_what_it_cost_before_and_after_it_is_folded(database: Database, ann: Caller) -> None:
    generation = submitted(database, ann)
    commit(database, ann, generation, cost=COST)

    for _ in range(2):
        assert use_of(database, ann) == QuotaUse(1, COST.nano_usd, 0, 0)
        fold_all(database)
    image = get_image(database, generation.image_guid, ann)
    in_transaction(database, lambda context: ImageRepository(context).delete(image.id))
    assert use_of(database, ann) == QuotaUse(1, COST.nano_usd, 0, 0)


def test_an_image_of_unknown_cost_has_used_what_was_reserved(database: Database, ann: Caller) -> None:
    commit(database, ann, submitted(database, ann), cost=None)

    for _ in range(2):
        assert use_of(database, ann) == QuotaUse(1, MOST, 0, 0)
        fold_all(database)


@pytest.mark.parametrize("state", [GenerationState.FAILED, GenerationState.QUEUED])
def test_what_cost_nothing_is_given_back(database: Database, ann: Caller, state: GenerationState) -> None:
    generation = submitted(database, ann)
    if state is GenerationState.QUEUED:
        now = datetime.now(UTC)
        in_transaction(database, lambda context: GenerationRepository(context).queue_later(generation, now))
    else:
        end(database, generation, state)

    assert use_of(database, ann) == QuotaUse(0, 0, 0, 0)


def test_an_unknown_outcome_stays_charged_until_it_is_known(database: Database, ann: Caller) -> None:
    first, second = submitted(database, ann), submitted(database, ann)
    for generation in (first, second):
        end(database, generation, GenerationState.OUTCOME_UNKNOWN)
    assert use_of(database, ann) == QuotaUse(2, 2 * MOST, 0, 0)

    commit(database, ann, first, cost=COST)  # recovery has found its image
    assert use_of(database, ann) == QuotaUse(2, COST.nano_usd + MOST, 0, 0)


def test_imported_images_are_not_counted(database: Database, ann: Caller) -> None:
    add_image(database, ann, origin=Origin.IMPORTED, model="", cost=None, created_at=datetime.now(UTC))
    assert use_of(database, ann) == QuotaUse(0, 0, 0, 0)


def test_another_day_begins_with_what_is_submitted(database: Database, ann: Caller) -> None:
    commit(database, ann, submitted(database, ann), cost=COST)
    end(database, submitted(database, ann), GenerationState.OUTCOME_UNKNOWN)
    submitted(database, ann)
    midnight = datetime.combine(datetime.now(UTC).date() + timedelta(days=1), datetime.min.time(), UTC)
    now = datetime.now(UTC)

    assert use_of(database, ann, now) == QuotaUse(2, COST.nano_usd + MOST, 1, MOST)
    # The clock of another server may be ahead.
    assert use_of(database, ann, now - timedelta(days=1)) == QuotaUse(2, COST.nano_usd + MOST, 1, MOST)
    assert use_of(database, ann, midnight + timedelta(hours=1)) == QuotaUse(0, 0, 1, MOST)


# --- What is refused -------------------------------------------------------------------------------------------------


def test_limits_of_a_user_hold_over_the_defaults(database: Database, ann: Caller) -> None:
    quotas = quotas_of(database, images_per_day=0)
    bob = add_caller(database, "bob")
    set_limits(database, bob, images_per_day=1)
    set_limits(database, add_caller(database, "eve"), images_per_day=UNLIMITED)

    with pytest.raises(QuotaExhaustedError):
        claim(database, quotas, record(database, ann))
    claim(database, quotas, record(database, bob))
    assert [quota.limit for quota in quotas.get(bob.user_id)] == [1]
    assert [quota.limit for quota in quotas.get(ann.user_id)] == [0]


def test_the_last_image_is_reserved_and_then_used_up(database: Database, ann: Caller) -> None:
    quotas = quotas_of(database, images_per_day=2)
    commit(database, ann, claim(database, quotas, record(database, ann)), cost=COST)
    last, waiting = claim(database, quotas, record(database, ann)), record(database, ann)

    with pytest.raises(QuotaReservedError):
        claim(database, quotas, waiting)
    quotas.require_left(waiting.creation, ann)
    end(database, last, GenerationState.OUTCOME_UNKNOWN)

    for attempt in (partial(claim, database, quotas, waiting), lambda: quotas.require_left(waiting.creation, ann)):
        with pytest.raises(QuotaExhaustedError) as refusal:
            attempt()
        assert refusal.value.quota == "images_per_day"
        assert refusal.value.retry_after is not None
        assert 0 < refusal.value.retry_after <= 86_400


def test_costs_are_reserved_at_their_most_and_settled(database: Database, ann: Caller) -> None:
    quotas = quotas_of(database, nano_usd_per_day=MOST + COST.nano_usd)
    first, waiting = claim(database, quotas, record(database, ann)), record(database, ann)
    with pytest.raises(QuotaReservedError):
        claim(database, quotas, waiting)

    commit(database, ann, first, cost=COST)

    second = claim(database, quotas, waiting)
    commit(database, ann, second, cost=COST)
    with pytest.raises(QuotaExhaustedError) as refusal:
        claim(database, quotas, record(database, ann))
    assert refusal.value.quota == "usd_per_day"
    assert refusal.value.retry_after is not None
    assert quotas.get(ann.user_id)[0].used == 2 * COST.nano_usd


@pytest.mark.parametrize("limits", [{"nano_usd_per_day": MOST - 1}, {"images_per_day": 0}])
def test_what_no_day_allows_is_not_worth_another_try(database: Database, ann: Caller, limits: dict[str, int]) -> None:
    quotas, generation = quotas_of(database, **limits), record(database, ann)
    with pytest.raises(QuotaExhaustedError) as refusal:
        claim(database, quotas, generation)
    assert refusal.value.retry_after is None
    assert ("more than the whole of the quota" in refusal.value.message) == ("nano_usd_per_day" in limits)


def test_a_model_without_a_price_is_refused_only_where_costs_are_limited(database: Database, ann: Caller) -> None:
    unpriced = record(database, ann, model="who-knows")
    with pytest.raises(PriceUnknownError):
        claim(database, quotas_of(database, nano_usd_per_day=10**15), unpriced)

    assert claim(database, quotas_of(database, images_per_day=1), unpriced).reserved_nano_usd is None


def test_quotas_show_what_is_used_and_reserved(database: Database, ann: Caller) -> None:
    quotas = quotas_of(database, nano_usd_per_day=10**9, images_per_day=5, generations_at_once=3)
    commit(database, ann, claim(database, quotas, record(database, ann)), cost=COST)
    claim(database, quotas, record(database, ann))

    shown = quotas.get(ann.user_id)

    midnight = shown[0].resets_at
    assert midnight is not None
    assert timedelta(0) < midnight - datetime.now(UTC) <= timedelta(days=1)
    assert shown == [
        Quota(name=QuotaName.USD_PER_DAY, limit=10**9, used=COST.nano_usd, reserved=MOST, resets_at=midnight),
        Quota(name=QuotaName.IMAGES_PER_DAY, limit=5, used=1, reserved=1, resets_at=midnight),
        Quota(name=QuotaName.GENERATIONS_AT_ONCE, limit=3, used=1),
    ]
    assert quotas_of(database).get(ann.user_id) == []


def test_a_user_without_images_can_be_removed_with_limits(database: Database, ann: Caller) -> None:
    set_limits(database, ann, images_per_day=1)
    assert not in_transaction(database, lambda context: UserRepository(context).remove(ann.user_id))


# --- Many at once ----------------------------------------------------------------------------------------------------


@pytest.fixture
def several(database: Database, database_url: str) -> Iterator[list[Database]]:
    """The database, as several servers have it open."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(open_database(database_url))) for _ in range(3)]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"images_per_day": 7}, 7),
        ({"generations_at_once": 5}, 5),
        ({"nano_usd_per_day": 4 * MOST + MOST // 2}, 4),
    ],
    ids=["images", "at once", "usd"],
)
def test_claims_at_the_same_time_never_pass_a_limit(
    database: Database, several: list[Database], ann: Caller, limits: dict[str, int], expected: int
) -> None:
    waiting = [record(database, ann) for _ in range(24)]
    servers = [quotas_of(one, **limits) for one in several]

    def attempt(number: int) -> int:
        one, quotas = several[number % 3], servers[number % 3]
        return _claimed(lambda: claim(one, quotas, read(one, waiting[number].generation.id)))

    with ThreadPoolExecutor(len(waiting)) as pool:
        claimed = sum(pool.map(attempt, range(len(waiting))))

    assert claimed == expected
    assert use_of(database, ann).submitted == expected


def _claimed(attempt: Callable[[], object]) -> int:
    while True:
        try:
            attempt()
        except QuotaReservedError:
            return 0
        except ConstraintViolationError:
            continue  # Another one has locked the quotas for the first time.
        return 1
