"""Quotas while requests are recorded and generated: what is refused when, what waits, and what is charged."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    PriceUnknownError,
    ProviderRateLimitedError,
    ProviderTimeoutError,
    QuotaExhaustedError,
)
from pixyproxy.core.fields import GenerationState, new_guid
from pixyproxy.core.models import (
    Caller,
    GenerationKey,
    GenerationOptions,
    ImageCreation,
    ImageDetailCreate,
    Quota,
    QuotaLimits,
)
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.generations import GenerationRepository
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, OnPartial, ignore_partial
from pixyproxy.resource import mapping
from tests.support.waiting import wait_until
from tests.unit.service.conftest import make_caller
from tests.unit.service.creation.parts import COST, FakeGenerator, Server
from tests.unit.service.creation.test_worker import record, states, wait_for_states

TIMEOUT = 20.0


@pytest.fixture
def generator() -> FakeGenerator:
    return FakeGenerator()


def limited(database: Database, store: LocalImageStore, generator: FakeGenerator, **limits: int) -> Server:
    return Server(database, store, generator, limits=QuotaLimits(**limits))


def request(request_id: str | None = None, **options: str) -> ImageCreation:
    detail = ImageDetailCreate(prompt="a castle")
    return ImageCreation(detail=detail, request_id=request_id, options=GenerationOptions(**options))


def used(server: Server, author: Caller) -> Quota:
    [quota] = server.quotas.get(author.user_id)
    return quota


def test_a_request_over_the_quota_is_refused_before_anything_is_recorded(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    with limited(database, store, generator, images_per_day=1).running() as server:
        server.creator.create(request(), alice, CallScope())
        for refused in (
            lambda: server.creator.create(request(), alice, CallScope()),
            lambda: server.creator.start(request(), alice),
        ):
            with pytest.raises(QuotaExhaustedError):
                refused()

    assert states(database) == ["stored"]
    assert len(generator.requests) == 1


def test_a_repeated_request_costs_nothing(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    repeated = request(new_guid())
    with limited(database, store, generator, images_per_day=1).running() as server:
        image = server.creator.create(repeated, alice, CallScope())

        assert server.creator.create(repeated, alice, CallScope()) == image
        assert server.creator.start(repeated, alice).state is GenerationState.SUCCEEDED
        assert used(server, alice).used == 1


def test_what_was_queued_before_the_quota_was_used_up_fails_and_costs_nothing(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    recorded = [record(database, alice) for _ in range(4)]
    with limited(database, store, generator, images_per_day=2).running() as server:
        wait_for_states(database, "stored", "stored", "failed", "failed")
        assert used(server, alice).used == 2

    assert len(generator.requests) == 2
    with database.reading() as context:
        [refused] = GenerationRepository(context).get_several(recorded[-1:])
    assert "QuotaExhaustedError" in str(refused.error)


def test_generations_over_the_limit_wait_until_another_one_ends(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    answer, most, at_once, lock = threading.Event(), [], [0], threading.Lock()

    def behave() -> None:
        with lock:
            at_once[0] += 1
            most.append(at_once[0])
        assert answer.wait(TIMEOUT)
        with lock:
            at_once[0] -= 1

    generator.behave = behave
    for _ in range(5):
        record(database, alice)
    record(database, make_caller(database, "bob"))
    with limited(database, store, generator, generations_at_once=2).running():
        # Two of alice's, and bob's, who does not wait for her.
        wait_for_states(database, "sent", "sent", "queued", "queued", "queued", "sent")
        wait_until(lambda: at_once[0] == 3, TIMEOUT, "three requests")
        answer.set()
        wait_for_states(database, *["stored"] * 6)

    assert max(most) == 3
    assert len(generator.requests) == 6


def test_a_generation_waits_for_what_submitted_ones_may_cost(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    bound = Server(database, store, generator).quotas._most_of(request())
    assert bound is not None
    for _ in range(3):
        record(database, alice)
    # Each costs much less than it may.
    with limited(database, store, generator, nano_usd_per_day=bound + 2 * COST.nano_usd).running() as server:
        wait_for_states(database, "stored", "stored", "stored")
        assert used(server, alice).used == 3 * COST.nano_usd
        with pytest.raises(QuotaExhaustedError):
            server.creator.start(request(), alice)


def test_an_attempt_that_cost_nothing_is_charged_once(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    busy = [ProviderRateLimitedError("busy", retry_after=0.01)]

    def behave() -> None:
        if busy:
            raise busy.pop()

    generator.behave = behave
    with limited(database, store, generator, images_per_day=1).running() as server:
        server.creator.create(request(), alice, CallScope())
        assert (used(server, alice).used, used(server, alice).reserved) == (1, 0)

    assert len(generator.requests) == 2


def test_an_unknown_outcome_stays_charged(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    generator.fails_with(ProviderTimeoutError("too slow", may_have_billed=True))
    with limited(database, store, generator, images_per_day=1).running() as server:
        with pytest.raises(ProviderTimeoutError):
            server.creator.create(request(), alice, CallScope())
        with pytest.raises(QuotaExhaustedError):
            server.creator.create(request(), alice, CallScope())

    assert states(database) == ["unknown"]


class UncountedGenerator(FakeGenerator):
    """Generates without counting tokens, so that costs are unknown."""

    def generate(self, request: GenerationRequest, on_partial: OnPartial = ignore_partial) -> GeneratedImage:
        return replace(super().generate(request, on_partial), usage=None)


def test_an_image_of_unknown_cost_is_charged_with_what_was_reserved(
    database: Database, store: LocalImageStore, alice: Caller
) -> None:
    generator = UncountedGenerator()
    bound = Server(database, store, generator).quotas._most_of(request())
    assert bound
    while_submitted: list[Quota] = []
    with limited(database, store, generator, nano_usd_per_day=10 * bound).running() as server:
        generator.behave = lambda: while_submitted.append(used(server, alice))
        server.creator.create(request(), alice, CallScope())

        assert [(quota.used, quota.reserved) for quota in while_submitted] == [(0, bound)]
        assert (used(server, alice).used, used(server, alice).reserved) == (bound, 0)


def test_a_model_without_a_price_is_refused_where_costs_are_limited(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    with limited(database, store, generator, nano_usd_per_day=10**12).running() as server:
        with pytest.raises(PriceUnknownError) as refusal:
            server.creator.create(request(model="who-knows"), alice, CallScope())
        assert refusal.value.field == "options.model"
    assert states(database) == []


def test_a_model_without_a_price_when_it_is_claimed_fails_and_names_the_field(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    """The costs of its author were not limited when it was recorded."""
    key = GenerationKey(request_id=new_guid())
    Server(database, store, generator).creator.start(request(key.request_id, model="who-knows"), alice)
    with limited(database, store, generator, nano_usd_per_day=10**12).running() as server:
        wait_for_states(database, "failed")
        failed = mapping.from_generation(server.generations.get_generation(key, alice))

    assert (failed.error.code, failed.error.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert failed.error.metadata == {"field": "options.model"}
    assert generator.requests == []


def test_several_servers_and_many_callers_never_pass_the_cap(
    database: Database, store: LocalImageStore, alice: Caller
) -> None:
    generators = [FakeGenerator(), FakeGenerator()]
    with (
        limited(database, store, generators[0], images_per_day=5, generations_at_once=2).running() as first,
        limited(database, store, generators[1], images_per_day=5, generations_at_once=2).running() as second,
        ThreadPoolExecutor(16) as pool,
    ):

        def attempt(number: int) -> bool:
            try:
                (first, second)[number % 2].creator.create(request(), alice, CallScope())
            except QuotaExhaustedError:
                return False
            return True

        assert sum(pool.map(attempt, range(16))) == 5
        wait_until(lambda: "queued" not in states(database), TIMEOUT, "the end of all")
    assert sum(len(generator.requests) for generator in generators) == 5
