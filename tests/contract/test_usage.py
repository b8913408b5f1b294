"""What the usage must say on every database: at once, after it was folded, and while many transactions count."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pixyproxy.core.exceptions import OutcomeUnknownError
from pixyproxy.core.fields import GenerationState, Origin, UserClass, new_guid
from pixyproxy.core.models import Caller, Cost, ImageCreation, ImageDetailCreate, Usage, UsageGrouping, UsageRow
from pixyproxy.data.database import Database, statements_of
from pixyproxy.data.init import SCRIPTS
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, RequestContext
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.usage import UsageRepository
from pixyproxy.data.repositories.users import UserRepository
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.generation.price_list import DEFAULT_PRICE_LIST, read_price_list
from pixyproxy.service.accounting import account_some, accountant, fold_some
from pixyproxy.service.creation.storing import ImageStoring
from tests.contract.databases import on_servers, open_database
from tests.contract.records import NOON, add_caller, add_image, add_images, detail_of
from tests.support.waiting import wait_out_midnight, wait_until

BY_DAY, BY_AUTHOR, BY_MODEL = UsageGrouping.DAY, UsageGrouping.AUTHOR, UsageGrouping.MODEL
FIRST, LAST = date(2026, 11, 1), date(2026, 11, 30)
PRICES = read_price_list(DEFAULT_PRICE_LIST)
USAGE = Usage(input_tokens=13, output_tokens=1_056, total_tokens=1_069)
COST = Cost(nano_usd=31_745_000, price_list="of-then")
FLARE = "gpt-image-2.5-flare"
_TIMEOUT = 60.0


@pytest.fixture
def ann(database: Database) -> Caller:
    return add_caller(database, "ann")


@pytest.fixture
def root(database: Database) -> Caller:
    return add_caller(database, "root", UserClass.ADMIN)


def summary(
    database: Database,
    caller: Caller,
    *group_by: UsageGrouping,
    days: tuple[date, date] = (FIRST, LAST),
    author: str | None = None,
    limit: int = 100,
) -> list[UsageRow]:
    with database.reading() as context:
        return UsageRepository(context).summarize(*days, group_by, caller, author, limit=limit)


def tail_of(database: Database) -> list[int]:
    with database.reading() as context:
        return UsageRepository(context).get_tail(10_000)


def fold_all(database: Database) -> None:
    while fold_some(database, longest_tail=0):
        pass
    assert tail_of(database) == []


def used(images: int, *, costs: int = 0, **fields: Any) -> UsageRow:
    """The row of so many images with USAGE, of which some cost what COST says, and the others an unknown amount."""
    return UsageRow(
        images=images,
        input_tokens=13 * images,
        output_tokens=1_056 * images,
        nano_usd=31_745_000 * costs,
        images_without_cost=images - costs,
        **fields,
    )


def on_day(day: int, hour: int = 12, minute: int = 0) -> datetime:
    return datetime(2026, 11, day, hour, minute, tzinfo=UTC)


# --- What is counted -------------------------------------------------------------------------------------------------


def test_nothing_was_spent_before_the_first_image(database: Database, ann: Caller) -> None:
    assert summary(database, ann) == [UsageRow()]
    for group in UsageGrouping:
        assert summary(database, ann, group) == []


def test_images_are_counted_by_any_groups_before_and_after_they_are_folded(
    database: Database, ann: Caller, root: Caller
) -> None:
    bob = add_caller(database, "bob")
    priced = {"usage": USAGE, "cost": COST}
    add_images(database, ann, [{**priced, "created_at": on_day(3)}] * 2)
    add_images(database, ann, [{**priced, "created_at": on_day(4), "model": "another"}])
    add_images(database, ann, [{"usage": USAGE, "cost": None, "created_at": on_day(4)}])
    add_images(database, bob, [{"cost": None, "created_at": on_day(4, 23, 59)}])
    nothing_known = {"images": 1, "images_without_cost": 1}

    for _ in range(2):
        assert summary(database, ann) == [used(4, costs=3)]
        assert summary(database, bob) == [UsageRow(**nothing_known)]
        everything = used(4, costs=3).model_copy(update={"images": 5, "images_without_cost": 2})
        assert summary(database, root) == [everything]
        assert summary(database, ann, BY_DAY) == [
            used(2, costs=2, day="2026-11-03"),
            used(2, costs=1, day="2026-11-04"),
        ]
        assert summary(database, ann, BY_MODEL) == [used(1, costs=1, model="another"), used(3, costs=2, model=FLARE)]
        assert summary(database, root, BY_AUTHOR) == [
            used(4, costs=3, author="ann"),
            UsageRow(author="bob", **nothing_known),
        ]
        assert summary(database, root, BY_MODEL, BY_AUTHOR, BY_DAY) == [
            used(2, costs=2, day="2026-11-03", author="ann", model=FLARE),
            used(1, costs=1, day="2026-11-04", author="ann", model="another"),
            used(1, day="2026-11-04", author="ann", model=FLARE),
            UsageRow(day="2026-11-04", author="bob", model=FLARE, **nothing_known),
        ]
        assert len(summary(database, root, BY_DAY, BY_AUTHOR, BY_MODEL, limit=2)) == 2
        fold_all(database)


def test_a_summary_has_whole_days_and_no_others(database: Database, ann: Caller) -> None:
    times = [on_day(2, 23, 59), on_day(3, 0), on_day(3, 23, 59), on_day(4, 0)]
    add_images(database, ann, [{"usage": USAGE, "cost": COST, "created_at": time} for time in times])

    for _ in range(2):
        assert summary(database, ann, days=(date(2026, 11, 3), date(2026, 11, 3))) == [used(2, costs=2)]
        assert summary(database, ann, days=(date(2026, 11, 3), date(2026, 11, 4))) == [used(3, costs=3)]
        assert summary(database, ann, days=(date.min, date.max)) == [used(4, costs=4)]
        fold_all(database)


@pytest.mark.parametrize(
    "days",
    [
        (date(2026, 8, 1), date(2026, 8, 31)),
        (date(2026, 8, 2), date(2026, 8, 31)),
        (date(2026, 8, 1), date(2026, 8, 30)),
        (date(2026, 8, 2), date(2026, 8, 2)),
        (date(2026, 7, 31), date(2026, 9, 1)),
        (date(2026, 7, 1), date(2026, 9, 30)),
        (date(2026, 8, 31), date(2026, 9, 1)),
        (date(2026, 8, 1), date.max),
        (date(2026, 8, 2), date.max),
        (date.min, date.max),
    ],
    ids=lambda days: f"{days[0]} to {days[1]}",
)
def test_a_summary_of_everybody_is_the_sum_of_those_of_all(
    database: Database, ann: Caller, root: Caller, days: tuple[date, date]
) -> None:
    bob = add_caller(database, "bob")
    ends = [date(2026, month, day) for month in (7, 8, 9) for day in (1, 2, 30, 31 if month < 9 else 29)]
    for author, model in ((ann, FLARE), (bob, FLARE), (bob, "another")):
        times = [datetime.combine(day, NOON.timetz()) for day in ends]
        known = {"usage": USAGE, "cost": COST, "model": model}
        add_images(database, author, [{**known, "created_at": time} for time in times])
    count = sum(days[0] <= day <= days[1] for day in ends)

    for _ in range(2):
        assert summary(database, root, days=days) == [used(3 * count, costs=3 * count)]
        for by_model in (False, True):
            groups = (BY_AUTHOR, BY_MODEL) if by_model else (BY_AUTHOR,)
            each = [row for caller in (ann, bob) for row in summary(database, caller, *groups, days=days)]
            assert summary(database, root, *groups, days=days) == each
            assert sum(row.images for row in each) == 3 * count
        assert sum(row.images for row in summary(database, root, BY_DAY, days=days)) == 3 * count
        assert [row.day for row in summary(database, root, BY_DAY, days=days)] == [
            str(day) for day in sorted(ends) if days[0] <= day <= days[1]
        ]
        fold_all(database)


def test_an_author_is_asked_for_by_name(database: Database, ann: Caller, root: Caller) -> None:
    bob = add_caller(database, "bob")
    for author in (ann, bob, bob):
        add_image(database, author, usage=USAGE, cost=COST)

    assert summary(database, root, BY_AUTHOR, author="bob") == [used(2, costs=2, author="bob")]
    assert summary(database, bob, BY_AUTHOR, author="bob") == [used(2, costs=2, author="bob")]
    # A caller who may not see it learns nothing, not even whether there is such an author.
    assert summary(database, bob, BY_AUTHOR, author="ann") == summary(database, bob, BY_AUTHOR, author="nobody") == []
    assert summary(database, bob, author="ann") == summary(database, root, author="nobody") == [UsageRow()]


def test_what_is_deleted_stays_counted_and_what_is_imported_is_not(database: Database, ann: Caller) -> None:
    image = add_image(database, ann, usage=USAGE, cost=COST)
    add_image(database, ann, origin=Origin.IMPORTED, cost=None)

    delete(database, image.id)

    assert summary(database, ann) == [used(1, costs=1)]


@pytest.mark.parametrize("is_folded", [False, True])
def test_the_name_of_an_author_outlives_all_images(
    database: Database, ann: Caller, root: Caller, is_folded: bool
) -> None:
    delete(database, add_image(database, ann, usage=USAGE, cost=COST).id)
    if is_folded:
        fold_all(database)

    with database.transaction() as context:
        assert UserRepository(context).remove(ann.user_id)
        context.commit()

    fold_all(database)
    assert summary(database, root, BY_AUTHOR) == [used(1, costs=1, author="ann")]


def test_an_image_of_an_earlier_release_is_counted_once(database: Database, ann: Caller) -> None:
    images = add_images(
        database,
        ann,
        [{"usage": USAGE, "model": "gpt-image-2"}] * 3 + [{"usage": USAGE, "origin": Origin.IMPORTED}],
    )
    assert summary(database, ann) == [UsageRow()]

    # Its cost will never be known, but what was used is.
    delete(database, images[0].id)
    delete(database, images[3].id)
    assert summary(database, ann) == [used(1)]

    for _ in range(2):
        while account_some(database, PRICES):
            pass
        assert summary(database, ann) == [used(3, costs=2)]
        delete(database, images[1].id)
    assert summary(database, ann) == [used(3, costs=2)]


def delete(database: Database, image_id: int) -> None:
    with database.transaction() as context:
        ImageRepository(context).delete(image_id)
        context.commit()


# --- Unknown outcomes ------------------------------------------------------------------------------------------------


def submitted(database: Database, author: Caller, model: str | None) -> Generation:
    creation = ImageCreation(detail=ImageDetailCreate(prompt="a castle"))
    with database.transaction() as context:
        generations = GenerationRepository(context)
        begun = generations.insert(creation, author.user_id, "ab" * 32, RequestContext())
        assert generations.submit(begun.id, new_guid(), timedelta(minutes=1), model)
        [generation] = generations.get_several([begun.id])
        context.commit()
    return generation


def end(database: Database, generation: Generation, state: GenerationState) -> None:
    with database.transaction() as context:
        assert GenerationRepository(context).end(generation, state, OutcomeUnknownError("The connection broke."))
        context.commit()


def test_unknown_outcomes_are_counted_apart_and_move_when_an_image_turns_up(
    database: Database, ann: Caller, root: Caller, tmp_path: Path
) -> None:
    wait_out_midnight()
    today = datetime.now(UTC).date()
    around = (today - timedelta(days=1), today + timedelta(days=1))
    generations = [submitted(database, ann, model) for model in (FLARE, FLARE, None, FLARE)]
    for generation in generations[:3]:
        end(database, generation, GenerationState.OUTCOME_UNKNOWN)
    end(database, generations[3], GenerationState.FAILED)

    assert summary(database, ann, days=around) == [UsageRow(unknown_outcomes=3)]
    assert summary(database, root, BY_AUTHOR, BY_MODEL, days=around) == [
        UsageRow(author="ann", unknown_outcomes=1),
        UsageRow(author="ann", model=FLARE, unknown_outcomes=2),
    ]
    [row] = summary(database, ann, BY_DAY, days=around)
    assert row == UsageRow(day=generations[0].created_at.date().isoformat(), unknown_outcomes=3)

    now = datetime.now(UTC)
    detail = detail_of(ann, guid=generations[0].image_guid, usage=USAGE, cost=COST, created_at=now)
    storing = ImageStoring(database, LocalImageStore(tmp_path), lease=timedelta(minutes=1))
    for _ in range(2):  # Recovery may do it twice.
        storing.commit(generations[0], detail)
    assert summary(database, ann, days=around) == [used(1, costs=1, unknown_outcomes=2)]
    assert summary(database, ann, days=(FIRST, today - timedelta(days=2))) == [UsageRow()]


# --- Many at a time --------------------------------------------------------------------------------------------------


def test_a_short_tail_is_left_alone(database: Database, ann: Caller) -> None:
    add_images(database, ann, [{"usage": USAGE, "cost": COST}] * 3)

    assert not fold_some(database, longest_tail=3)
    assert len(tail_of(database)) == 3
    assert fold_some(database, limit=2, longest_tail=1)
    assert len(tail_of(database)) == 1
    assert summary(database, ann) == [used(3, costs=3)]


@pytest.mark.parametrize("folders", [1, 3])
def test_nothing_is_lost_or_counted_twice_while_many_count_and_fold(
    database: Database, database_url: str, ann: Caller, folders: int
) -> None:
    count, rounds = 16, 8
    seen: list[int] = []
    is_over = threading.Event()

    def fold() -> None:
        while not is_over.is_set():
            fold_some(database, limit=7, longest_tail=0)

    def watch() -> None:
        while not is_over.is_set():
            seen.append(summary(database, ann)[0].images)

    with (
        closing(open_database(database_url, pool_size=32)) as other,
        ThreadPoolExecutor(count + folders + 1) as threads,
    ):
        background = [threads.submit(work) for work in [fold] * folders + [watch]]
        futures = [
            threads.submit(add_images, other, ann, [{"usage": USAGE, "cost": COST}]) for _ in range(count * rounds)
        ]
        try:
            for future in futures:
                future.result()
        finally:
            is_over.set()
        for task in background:
            task.result()

    assert summary(database, ann) == [used(count * rounds, costs=count * rounds)]
    # No image is missing or there twice while it moves from the tail to its day.
    assert seen == sorted(seen)
    fold_all(database)
    assert summary(database, ann) == [used(count * rounds, costs=count * rounds)]


@on_servers  # With SQLite there are no servers of two releases.
def test_the_script_may_be_run_again_for_what_old_servers_have_added_to_days_alone(
    database: Database, ann: Caller, root: Caller
) -> None:
    add_images(database, ann, [{"usage": USAGE, "cost": COST}] * 3)
    fold_all(database)
    with database.transaction() as context:
        context.execute("DELETE FROM usage_sums", {})
        context.commit()
    assert summary(database, root) == [UsageRow()]

    with database.reading() as context:
        for statement in statements_of((SCRIPTS / "mysql" / "016_sum_usage.sql").read_text(encoding="utf-8")):
            context.execute(statement, {})

    assert summary(database, root) == [used(3, costs=3)]
    assert summary(database, root, BY_AUTHOR) == [used(3, costs=3, author=ann.username)]


def test_several_accountants_count_the_images_of_earlier_releases_once(database: Database, ann: Caller) -> None:
    days: Sequence[dict[str, Any]] = [
        {"usage": USAGE, "created_at": NOON - timedelta(hours=number)} for number in range(600)
    ]
    add_images(database, ann, list(days))

    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(closing(accountant(database, PRICES, interval=0.05))).start()
        wait_until(lambda: summary(database, ann, days=(date.min, LAST))[0].images >= 600, _TIMEOUT, "all")
        wait_until(lambda: len(tail_of(database)) <= 100, _TIMEOUT, "the tail to be folded")

    assert summary(database, ann, days=(date.min, LAST)) == [used(600, costs=600)]
