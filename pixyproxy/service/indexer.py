"""Seals the search index: moves what was added lately from its tail into its blocks. See ``search_index``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.data.database import Database
from pixyproxy.data.search.index import SearchIndexRepository, Unsealed
from pixyproxy.data.transactions import in_transaction

# A search reads through the tail, some microseconds an image; to seal one alone costs ten times as much as among these.
_IMAGES_A_STEP = 512
# Prompts can be long.
_TAIL_BYTES = 2**20
# A whole block at once costs least, and takes seconds during which nobody else can change its images.
_IMAGES_A_LARGE_STEP = 16_384
_BYTES_A_LARGE_STEP = 2**24


class SearchIndexer:
    """Seals from a thread of its own, whenever the tail has become long. Any number of servers may do so at once."""

    def __init__(self, database: Database, interval: float = 5.0) -> None:
        """Seal nothing yet; ``interval`` is the seconds between two looks at a short tail."""
        self._database = database
        self._interval = interval
        self._task = PeriodicTask("search index", self._work, retry_interval=interval)

    def start(self) -> None:
        """Begin to seal."""
        self._task.start()

    def close(self) -> None:
        """Seal no more."""
        self._task.close()

    def _work(self) -> float:
        started = time.monotonic()
        has_worked = take_step(self._database)
        # Behind a long tail as long a pause as the work took: the rest of the server is to have half of the time.
        return time.monotonic() - started if has_worked else self._interval


def take_step(database: Database) -> bool:
    """Seal some hundred images, where so many wait; return whether that was needed."""
    return _reopen(database) or _seal_oldest(database, _IMAGES_A_STEP, _TAIL_BYTES, even_if_short=False) > 0


def seal_all(database: Database, report: Callable[[int, int], None]) -> None:
    """Seal all images of the tail, as after an upgrade of a database that had no index of this kind.

    Args:
        database: whose index to seal.
        report: is told how many are sealed, and of how many.

    Raises:
        DBConnectionError: the database is away; what is sealed stays so.
    """
    while _reopen(database):
        pass
    with database.reading() as context:
        count = SearchIndexRepository(context).count_unsealed()
    done = 0
    while sealed := _seal_oldest(database, _IMAGES_A_LARGE_STEP, _BYTES_A_LARGE_STEP, even_if_short=True):
        done += sealed
        report(done, max(count, done))


def _seal_oldest(database: Database, most_images: int, most_bytes: int, *, even_if_short: bool) -> int:
    """Seal the images with the lowest ids in the tail, and return how many; a short tail is left alone unless told."""
    with database.reading() as context:
        tail = SearchIndexRepository(context).get_unsealed(most_images)
    step = _up_to(tail, most_bytes)
    is_long = len(step) == most_images or len(step) < len(tail)
    if not step or not (is_long or even_if_short):
        return 0
    in_transaction(database, lambda context: SearchIndexRepository(context).seal(step, database))
    return len(step)


def _reopen(database: Database) -> bool:
    """Move the images that a server of the first release has sealed into batches back into the tail."""
    with database.reading() as context:
        block = SearchIndexRepository(context).get_batched_block()
    if block is None:
        return False
    in_transaction(database, lambda context: SearchIndexRepository(context).reopen(block, database))
    return True


def _up_to(tail: Sequence[Unsealed], most_bytes: int) -> list[int]:
    """Return the ids of those in front that have so many bytes together, and of one at least."""
    step: list[int] = []
    size = 0
    for image in tail:
        size += image.size
        if step and size > most_bytes:
            break
        step.append(image.image_id)
    return step
