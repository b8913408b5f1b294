"""What the accountant must do on every database: alone, with others, and after a crash."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest

from pixyproxy.core.exceptions import DBConnectionError
from pixyproxy.core.fields import Origin
from pixyproxy.core.models import Caller, Cost, Image, Usage
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.image_costs import ImageCostRepository
from pixyproxy.generation.price_list import DEFAULT_PRICE_LIST, read_price_list
from pixyproxy.service.accounting import account_some, accountant
from tests.contract.records import add_caller, add_images, get_image, minutes
from tests.support.waiting import wait_until

PRICES = read_price_list(DEFAULT_PRICE_LIST)
# As an earlier release stored it, without details.
USAGE = Usage(input_tokens=13, output_tokens=1_056, total_tokens=1_069)
COST = Cost(nano_usd=31_745_000, price_list="2026-11-21")
_TIMEOUT = 60.0


@pytest.fixture
def ann(database: Database) -> Caller:
    return add_caller(database, "ann")


def add_as_before(database: Database, ann: Caller, rows: Sequence[dict[str, Any]]) -> list[Image]:
    """Add images as an earlier release did, which knew nothing of costs."""
    values = [{"usage": USAGE, "created_at": minutes(number), **row} for number, row in enumerate(rows)]
    return add_images(database, ann, values)


def costs_of(database: Database, images: Sequence[Image], ann: Caller) -> list[Cost | None]:
    return [get_image(database, image.guid, ann).cost for image in images]


def unaccounted(database: Database) -> list[int]:
    with database.reading() as context:
        return ImageCostRepository(context).get_unaccounted(1_000)


def test_images_of_earlier_releases_get_a_cost_and_nothing_else_changes(database: Database, ann: Caller) -> None:
    images = add_as_before(
        database,
        ann,
        [
            {},
            {"usage": None},
            {"model": "unknown"},
            {"model": "gpt-image-2-2026-04-21", "usage": USAGE.model_copy(update={"output_tokens": 2_056})},
            {"origin": Origin.EDITED},
            {"origin": Origin.IMPORTED},
        ],
    )
    assert costs_of(database, images, ann) == [None] * 6

    assert account_some(database, PRICES)

    dearer = Cost(nano_usd=61_745_000, price_list="2026-11-21")
    costs = [COST, None, None, dearer, None, None]
    for image, cost in zip(images, costs, strict=True):
        assert get_image(database, image.guid, ann) == image.model_copy(update={"cost": cost})
    assert not account_some(database, PRICES)


def test_a_cost_is_fixed(database: Database, ann: Caller) -> None:
    fixed = Cost(nano_usd=1, price_list="another")
    images = add_images(database, ann, [{"usage": USAGE, "cost": cost} for cost in (fixed, None)])

    assert not account_some(database, PRICES)

    assert costs_of(database, images, ann) == [fixed, None]


def test_a_step_takes_some_images_and_remembers_them(database: Database, ann: Caller) -> None:
    images = add_as_before(database, ann, [{}] * 5)

    for left in (3, 1, 0):
        assert account_some(database, PRICES, limit=2)
        assert len(unaccounted(database)) == left
    assert not account_some(database, PRICES, limit=2)

    assert costs_of(database, images, ann) == [COST] * 5


def test_a_step_that_fails_changes_nothing(database: Database, ann: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    images = add_as_before(database, ann, [{}])
    account = ImageCostRepository.account

    def fail(self: ImageCostRepository, costs: Any) -> None:
        account(self, costs)
        raise DBConnectionError("gone before the commit")

    with monkeypatch.context() as patch:
        patch.setattr(ImageCostRepository, "account", fail)
        with pytest.raises(DBConnectionError):
            account_some(database, PRICES)
    assert costs_of(database, images, ann) == [None]

    assert account_some(database, PRICES)
    assert costs_of(database, images, ann) == [COST]


def test_an_image_that_was_deleted_meanwhile_is_passed_over(database: Database, ann: Caller) -> None:
    [image] = add_as_before(database, ann, [{}])
    with database.transaction() as context:
        costs = ImageCostRepository(context)
        assert costs.get_images([image.id + 1], locks=True) == []
        [found] = costs.get_images([image.id, image.id + 1], locks=True)
    assert found.id == image.id


def test_several_accountants_share_the_work(database: Database, ann: Caller) -> None:
    images = add_as_before(database, ann, [{}] * 700)

    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(closing(accountant(database, PRICES))).start()
        wait_until(lambda: not unaccounted(database), _TIMEOUT, "all images to be accounted")

    assert costs_of(database, images, ann) == [COST] * 700


def test_images_are_added_while_others_are_accounted(database: Database, ann: Caller) -> None:
    add_as_before(database, ann, [{}] * 300)

    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(add_images, database, ann, [{"usage": USAGE, "cost": COST}] * 3) for _ in range(40)]
        while account_some(database, PRICES, limit=20):
            pass
        for future in futures:
            future.result()

    assert unaccounted(database) == []
