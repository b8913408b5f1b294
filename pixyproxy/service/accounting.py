"""Determines, in the background, what the images of earlier releases cost."""

from __future__ import annotations

import time

from pixyproxy.core.models import Cost, Origin
from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.image_costs import ImageCostRepository, UnaccountedImage
from pixyproxy.data.transactions import in_transaction
from pixyproxy.generation.price_list import PriceList

_IMAGES_A_STEP = 256


def accountant(database: Database, prices: PriceList, interval: float = 60.0) -> PeriodicTask:
    """Return the task that determines costs. Any number of servers may run it at the same time.

    Args:
        database: the database.
        prices: the price list.
        interval: the seconds between two looks for images that an earlier release has stored meanwhile.
    """

    def account() -> float:
        started = time.monotonic()
        # It pauses as long as it works, to leave half of the time to other threads.
        return time.monotonic() - started if account_some(database, prices) else interval

    return PeriodicTask("accounting", account, retry_interval=interval)


def account_some(database: Database, prices: PriceList, limit: int = _IMAGES_A_STEP) -> bool:
    """Determine the cost of some images; return False if there are none left."""
    with database.reading() as context:
        image_ids = ImageCostRepository(context).get_unaccounted(limit)
    if not image_ids:
        return False

    def account(context: DatabaseContext) -> None:
        costs = ImageCostRepository(context)
        images = costs.lock_unaccounted(image_ids, database)
        if images:
            costs.account({image.id: _cost_of(image, prices) for image in images})

    in_transaction(database, account)
    return True


def _cost_of(image: UnaccountedImage, prices: PriceList) -> Cost | None:
    if image.origin is Origin.IMPORTED:
        return None
    return prices.cost_of(image.model, image.usage, has_inputs=image.origin is Origin.EDITED)
