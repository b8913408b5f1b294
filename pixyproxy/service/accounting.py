"""Maintains the usage in the background: the costs of images of earlier releases, and the sums by day."""

from __future__ import annotations

import time

from pixyproxy.core.fields import Origin
from pixyproxy.core.models import Cost
from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.image_costs import ImageCostRepository, UnaccountedImage
from pixyproxy.data.repositories.usage import UsageRepository
from pixyproxy.data.transactions import in_transaction
from pixyproxy.generation.price_list import PriceList

_IMAGES_A_STEP = 256
_ROWS_A_STEP = 1000
# A summary reads as many rows in some tenths of a millisecond.
_LONGEST_TAIL = 100


def accountant(database: Database, prices: PriceList, interval: float = 10.0) -> PeriodicTask:
    """Return the task that maintains the usage. Any number of servers may run it at the same time.

    While there is nothing to do, it polls every ``interval`` seconds.
    """

    def account() -> float:
        started = time.monotonic()
        has_worked = [account_some(database, prices), fold_some(database)]
        # It pauses as long as it works, to leave half of the time to other threads.
        return time.monotonic() - started if any(has_worked) else interval

    return PeriodicTask("accounting", account, retry_interval=interval)


def account_some(database: Database, prices: PriceList, limit: int = _IMAGES_A_STEP) -> bool:
    """Determine the cost of some images that an earlier release has stored, and count them in the usage.

    Returns:
        False if there are none left.
    """
    with database.reading() as context:
        image_ids = ImageCostRepository(context).get_unaccounted(limit)
    if not image_ids:
        return False

    def account(context: DatabaseContext) -> None:
        images = ImageCostRepository(context).get_images(image_ids, locks=True)
        if images:
            costs = {image.id: _cost_of(image, prices) for image in images}
            ImageCostRepository(context).account(costs)
            UsageRepository(context).add(image.spending(costs[image.id]) for image in images if image.is_generated)

    in_transaction(database, account)
    return True


def fold_some(database: Database, limit: int = _ROWS_A_STEP, longest_tail: int = _LONGEST_TAIL) -> bool:
    """Add the oldest rows of the usage's tail to the days; return False if the tail is short."""
    with database.reading() as context:
        ids = UsageRepository(context).get_tail(limit)
    if len(ids) <= longest_tail:
        return False
    in_transaction(database, lambda context: UsageRepository(context).fold(ids))
    return True


def _cost_of(image: UnaccountedImage, prices: PriceList) -> Cost | None:
    if not image.is_generated:
        return None
    return prices.cost_of(image.model, image.usage, has_inputs=image.origin is Origin.EDITED)
