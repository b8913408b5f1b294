"""Seals the search index: moves images from its tail into its blocks. See ``data.search.index``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate

from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.data.database import Database
from pixyproxy.data.search.index import SearchIndexRepository
from pixyproxy.data.search.postings import DEFAULT_LAYOUT, BlockLayout
from pixyproxy.data.shared_lease import SharedLease
from pixyproxy.data.transactions import in_transaction

_LEASE = "search_index_lease"
_LEASE_DURATION = timedelta(seconds=30)
_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class SealingStep:
    """How much is sealed in one transaction.

    Attributes:
        images: the most images.
        size: the most bytes of their terms, because prompts can be long; a single image may have more.
        layout: the layout of the index.
    """

    images: int
    size: int
    layout: BlockLayout = DEFAULT_LAYOUT


SMALL_STEP = SealingStep(512, 2**20)
"""For sealing in the background: small, because searches scan the tail, some microseconds an image; and not smaller,
because an image that is sealed alone costs ten times as much."""
LARGE_STEP = SealingStep(16_384, 2**24)
"""For sealing everything: whole blocks cost the least an image, but their images cannot be changed for seconds."""


def search_indexer(database: Database, interval: float = 5.0, step: SealingStep = SMALL_STEP) -> PeriodicTask:
    """Return the task that seals long tails in the background. Any number of servers may run it; one at a time seals.

    While the tail is short, it polls every ``interval`` seconds.
    """
    lease = _lease(database)

    def seal() -> float:
        started = time.monotonic()
        has_worked = take_step(database, step, lease)
        # While the tail is long, the task pauses as long as it works, to leave half of the time to other threads.
        return time.monotonic() - started if has_worked else interval

    return PeriodicTask("search index", seal, retry_interval=interval)


def take_step(database: Database, step: SealingStep = SMALL_STEP, lease: SharedLease | None = None) -> bool:
    """Take one step if the tail is long enough for it, and the lease if there is one; return whether it was taken."""
    return _reopen(database, step, lease) or _seal_oldest(database, step, lease, even_if_short=False) > 0


def seal_all(database: Database, report: Callable[[int, int], None], step: SealingStep = LARGE_STEP) -> None:
    """Seal all images of the tail, as after an upgrade of a database that had no index of this kind.

    While another process seals, this one waits. After each step, it calls ``report`` with the number of images sealed
    so far, and of all images to seal.

    Raises:
        DBConnectionError: the database cannot be reached; the images sealed so far stay sealed.
    """
    lease = _lease(database)
    done = 0
    while left := _count_unsealed(database):
        if _reopen(database, step, lease):
            continue
        if sealed := _seal_oldest(database, step, lease, even_if_short=True):
            done += sealed
            report(done, done - sealed + max(left, sealed))
        else:
            time.sleep(_WAIT_SECONDS)


def _lease(database: Database) -> SharedLease:
    # On the nodes of a cluster, locks of rows do not make servers wait for one another: all but one would work in vain.
    return SharedLease(database, _LEASE, _LEASE_DURATION)


def _count_unsealed(database: Database) -> int:
    """Count the images that are in no block yet, or in one of a server of the first release."""
    with database.reading() as context:
        index = SearchIndexRepository(context)
        return index.count_unsealed() or int(index.get_batched_block() is not None)


def _seal_oldest(database: Database, step: SealingStep, lease: SharedLease | None, *, even_if_short: bool) -> int:
    """Seal the images with the lowest ids in the tail, unless it is short; return how many."""
    with database.reading() as context:
        tail = SearchIndexRepository(context).get_unsealed(step.images)
    sizes = zip(tail, accumulate(tail.values()), strict=True)
    image_ids = [image_id for image_id, size in sizes if size <= step.size] or list(tail)[:1]
    is_long = len(image_ids) == step.images or len(image_ids) < len(tail)
    if not image_ids or not (is_long or even_if_short) or not (lease is None or lease.take()):
        return 0
    in_transaction(database, lambda context: SearchIndexRepository(context, step.layout).seal(image_ids))
    return len(image_ids)


def _reopen(database: Database, step: SealingStep, lease: SharedLease | None) -> bool:
    """Move the images of a block that a server of the first release has sealed into batches back into the tail."""
    with database.reading() as context:
        block = SearchIndexRepository(context).get_batched_block()
    if block is None or not (lease is None or lease.take()):
        return False
    in_transaction(database, lambda context: SearchIndexRepository(context, step.layout).reopen(block))
    return True
