"""Completes or cleans up, from time to time, what processes that died or a database that was away have left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cachetools import TTLCache

from pixyproxy.core.exceptions import (
    CallerGoneError,
    DBConnectionError,
    OutcomeUnknownError,
    PixyProxyException,
    for_log,
)
from pixyproxy.core.models import GenerationState
from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.deletions import DeletionRepository
from pixyproxy.data.repositories.generation_details import GenerationDetailRepository
from pixyproxy.data.repositories.generations import Generation, GenerationRepository
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.data.transactions import in_transaction
from pixyproxy.service.creation.storing import ImageStoring

_logger = logging.getLogger(__name__)

_ROWS_A_RUN = 100
# Watchers on other servers look ten times a second.
_PARTIALS_AFTER_END = timedelta(seconds=5)
_FORGET_SECONDS = 3600.0
# An image that cannot be recovered is logged again after an hour, and no more than so many are within one.
_REPORT_SECONDS = 3600.0
_MAX_REPORTED = 1000


class Recovery:
    """Runs in a thread of its own: at the start, at intervals, and at once after it was asked to."""

    def __init__(
        self,
        database: Database,
        store: ImageStore,
        storing: ImageStoring,
        *,
        on_change: Callable[[int], object] = lambda _: None,
        retention: timedelta | None = None,
        interval: float = 5.0,
        retry_interval: float = 0.5,
    ) -> None:
        """Recover nothing yet.

        Args:
            database: where generations and deletions are.
            store: where bytes and manifests are.
            storing: commits images.
            on_change: is told the id of each generation that it has ended.
            retention: how long the requests of generations are stored that ended without an image; None for ever.
            interval: seconds between two runs.
            retry_interval: seconds before a run that failed, because the database is away, is repeated.
        """
        self._database = database
        self._store = store
        self._storing = storing
        self._on_change = on_change
        self._retention = retention
        self._interval = interval
        # Images that this process stored and could not commit: nobody works on these any more, whatever their lease.
        self._uncommitted: set[str] = set()
        # Images with a manifest whose generation was leased when it was last looked at.
        self._waiting: set[str] = set()
        # Images that were logged lately, because something is wrong with them.
        self._reported: TTLCache[str, None] = TTLCache(_MAX_REPORTED, ttl=_REPORT_SECONDS)
        self._list_at = 0.0
        self._forget_at = 0.0
        # The deletion that failed last; the next run begins after it.
        self._failed_deletion = 0
        self._task = PeriodicTask("recovery", self._run, retry_interval=retry_interval)

    def start(self) -> None:
        """Begin to recover."""
        self._task.start()

    def close(self) -> None:
        """Recover no more."""
        self._task.close()

    def commit_later(self, guid: str) -> None:
        """Take over an image that this process has stored and could not commit."""
        self._uncommitted.add(guid)
        self._task.wake()

    def run(self) -> None:
        """Complete or clean up all that was cut off.

        That is: stored images without a detail, generations whose worker died, bytes of deleted images, and
        half-written files.

        What is wrong with one image, or with one of these kinds, stops no other.

        Raises:
            DBConnectionError: the database is away; the rest is left for the next run.
            PixyProxyException: the store cannot say what it has.
        """
        steps = (
            self._commit_known,
            self._commit_listed,
            self._end_expired,
            self._finish_deletions,
            self._delete_partials,
            self._forget_requests,
            self._store.delete_partial_writes,
        )
        failure: PixyProxyException | None = None
        for step in steps:
            try:
                step()
            except DBConnectionError:
                raise
            except PixyProxyException as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _run(self) -> float:
        self.run()
        return self._interval

    def _commit_known(self) -> None:
        """Commit or clean up the images that are known to have a manifest."""
        for guid in self._uncommitted | self._waiting:
            self._attempt(self._commit_if_abandoned, guid)

    def _commit_listed(self) -> None:
        """Commit or clean up the others, where it is time to list them again."""
        if time.monotonic() < self._list_at:
            return
        for guid in set(self._store.list_manifests()) - self._uncommitted - self._waiting:
            self._attempt(self._commit_if_abandoned, guid)
        self._list_at = time.monotonic() + self._store.listing_interval

    def _finish_deletions(self) -> None:
        with self._database.reading() as context:
            deletions = DeletionRepository(context).get_next(_ROWS_A_RUN, after=self._failed_deletion)
        self._failed_deletion = 0
        for deletion in deletions:
            if not self._attempt(self._storing.delete_bytes, deletion.image_guid):
                # A store that is away is not asked a hundred times.
                self._failed_deletion = deletion.id
                return

    def _delete_partials(self) -> None:
        """Delete the partial images of generations that ended long enough ago for all watchers to have seen them."""
        before = datetime.now(UTC) - _PARTIALS_AFTER_END
        in_transaction(
            self._database, lambda context: GenerationDetailRepository(context).delete_partials(before, _ROWS_A_RUN)
        )

    def _forget_requests(self) -> None:
        if self._retention is None or time.monotonic() < self._forget_at:
            return
        before = datetime.now(UTC) - self._retention
        count = in_transaction(
            self._database, lambda context: GenerationDetailRepository(context).forget_requests(before, _ROWS_A_RUN)
        )
        if count < _ROWS_A_RUN:
            self._forget_at = time.monotonic() + _FORGET_SECONDS

    def _attempt(self, work: Callable[[str], None], guid: str) -> bool:
        """Do something for one image; log what is wrong with it, and return whether nothing is."""
        try:
            work(guid)
        except DBConnectionError:
            raise
        except Exception as error:
            is_foreseen = isinstance(error, PixyProxyException)
            self._report(
                guid, f"cannot be recovered or deleted, and is tried again: {for_log(error)}", traceback=not is_foreseen
            )
            return False
        return True

    def _commit_if_abandoned(self, guid: str) -> None:
        """Commit or clean up an image with a manifest, unless a worker is at it."""
        with self._database.reading() as context:
            generation = GenerationRepository(context).find_by_image(guid)
        if generation is not None and generation.is_leased and guid not in self._uncommitted:
            self._waiting.add(guid)
            return
        if generation is None:
            # It was generated after the backup that the database was restored from.
            self._report(guid, "belongs to no generation; its manifest is left for an operator.")
        elif self._storing.rescue(generation):
            self._on_change(generation.id)
            _logger.info("Committed the image %s, which was stored before.", guid)
        # Committed, or there is nothing to commit.
        self._waiting.discard(guid)
        self._uncommitted.discard(guid)

    def _end_expired(self) -> None:
        """Note of generations whose worker died after it submitted them that their outcome is unknown."""
        with self._database.reading() as context:
            expired = GenerationRepository(context).get_expired(_ROWS_A_RUN)
        for generation in expired:
            self._attempt(lambda _, generation=generation: self._end_abandoned(generation), generation.image_guid)  # type: ignore[misc]

    def _end_abandoned(self, generation: Generation) -> None:
        # Once more: its worker may have stored it since the manifests were listed.
        if self._storing.rescue(generation) or self._end(generation):
            self._on_change(generation.id)

    def _end(self, generation: Generation) -> bool:
        """End a generation whose process died; return False where it lives after all."""
        if generation.state is GenerationState.SUBMITTED:
            state: GenerationState = GenerationState.OUTCOME_UNKNOWN
            error: PixyProxyException = _worker_died()
        else:
            state, error = GenerationState.FAILED, CallerGoneError("The server that recorded the request has died.")
        is_ended = in_transaction(
            self._database,
            lambda context: GenerationRepository(context).end(generation, state, error, if_expired=True),
        )
        if is_ended:
            _logger.warning("The process that had generation %d died; its state is %s now.", generation.id, state.name)
        return is_ended

    def _report(self, guid: str, what: str, *, traceback: bool = False) -> None:
        """Log what is wrong with an image, unless that was done lately."""
        if guid not in self._reported and len(self._reported) < _MAX_REPORTED:
            self._reported[guid] = None
            _logger.error("The image %s %s", guid, what, exc_info=traceback)


def _worker_died() -> OutcomeUnknownError:
    """Return the error for a generation whose worker died after it was submitted."""
    return OutcomeUnknownError(
        "The server process that worked on this request ended before the image was stored. Whether the provider "
        "generated and billed an image is unknown; to try again, and perhaps pay again, send a new request."
    )
