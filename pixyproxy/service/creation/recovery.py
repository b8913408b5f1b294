"""Recovery: completes or cleans up what a crash or an outage of the database has left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

from cachetools import TTLCache

from pixyproxy.core.exceptions import (
    CallerGoneError,
    ConstraintViolationError,
    DBConnectionError,
    OutcomeUnknownError,
    PixyProxyException,
    for_log,
)
from pixyproxy.core.fields import GenerationState
from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.deletions import DeletionRepository
from pixyproxy.data.repositories.generation_details import GenerationDetailRepository
from pixyproxy.data.repositories.generations import Generation, GenerationRepository
from pixyproxy.data.repositories.pending_imports import PendingImportRepository
from pixyproxy.data.repositories.renditions import RenditionRepository
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.data.transactions import in_transaction
from pixyproxy.service.creation.storing import ImageStoring

_logger = logging.getLogger(__name__)

_ROWS_A_RUN = 100
# An outage that is shorter than this share of a lease leaves time to renew it.
_NOTICED_SHARE = 3 / 4
# Watchers on other servers look ten times a second.
_PARTIALS_AFTER_END = timedelta(seconds=5)
_FORGET_SECONDS = 3600.0
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# An image that cannot be recovered is logged at most once an hour.
_REPORT_SECONDS = 3600.0


class Recovery:
    """Runs in a thread of its own: at the start, at intervals, and when something is left to it."""

    def __init__(
        self,
        database: Database,
        store: ImageStore,
        storing: ImageStoring,
        *,
        lease: timedelta,
        interval: float = 5.0,
        on_end: Callable[[int], object] = lambda _: None,
        on_unknown: Callable[[], object] = lambda: None,
        retention: timedelta | None = None,
        retry_interval: float = 0.5,
        max_reported: int = 1000,
    ) -> None:
        """Initialize without recovering anything.

        Args:
            database: where generations and deletions are.
            store: where bytes and manifests are.
            storing: commits images.
            lease: how long a lease lasts.
            interval: seconds between two runs. Several within a lease, so that one of them notices each outage of the
                database in which leases expire.
            on_end: called with the id of each generation that recovery has ended.
            on_unknown: called for each that it has ended with an unknown outcome.
            retention: how long to store the requests of generations that ended without an image; None for ever.
            retry_interval: seconds until the next run after one that failed.
            max_reported: the most images whose failures are logged within an hour.
        """
        self._database = database
        self._store = store
        self._storing = storing
        self._on_end = on_end
        self._on_unknown = on_unknown
        self._lease = lease.total_seconds()
        self._interval = interval
        self._retention = retention
        # Submissions of this process that have ended, with what records it. A generation may have several.
        self._unfinished: list[tuple[Generation, Callable[[], object]]] = []
        # Images with a manifest whose generation had an owner at the last run.
        self._waiting: set[str] = set()
        # Images whose failures were logged within the last hour.
        self._reported: TTLCache[str, None] = TTLCache(max_reported, ttl=_REPORT_SECONDS)
        # While the database is unavailable, no lease can be renewed. So, for as long as a lease lasts after an outage,
        # an expired lease does not mean that its worker has ended. The same holds after a time in which this process
        # cannot know whether there was an outage: it had not started, hung, or was suspended, or the clock was set.
        self._leases_valid_at = 0.0
        self._reached_at = time.time()
        self._list_at = 0.0
        self._forget_at = 0.0
        # When the generation was recorded whose request was removed last in this pass; the next run begins there.
        self._forget_since = _BEGINNING
        # The deletion that failed last, or 0. The next run begins after it.
        self._failed_deletion = 0
        # The rendition that was checked last; after the last of all, 0.
        self._seen_rendition = 0
        self._task = PeriodicTask("recovery", self._run, retry_interval=retry_interval)

    def start(self) -> None:
        """Start the thread."""
        self._leave_leases()
        self._task.start()

    def close(self) -> None:
        """Stop the thread."""
        self._task.close()

    def finish_later(self, generation: Generation, finish: Callable[[], object]) -> None:
        """Call ``finish`` at the next run: it commits the image of a generation of this process, or records its error.

        Without this, the generation would last as long as the process, which renews its lease.
        """
        self._unfinished.append((generation, finish))
        self._task.wake()

    def run(self) -> None:
        """Complete or clean up what is unfinished: generations, imports, deletions, partial images, and partial files.

        A failure for one image, or in one of these steps, does not stop the others.

        Raises:
            DBConnectionError: the database is unavailable; the run ended early.
            PixyProxyException: a step failed, for example because the store is unavailable.
        """
        steps = (
            self._finish_known,
            self._end_expired,
            self._commit_waiting,
            self._commit_listed,
            self._discard_imports,
            self._find_orphans,
            self._finish_deletions,
            self._store.delete_partial_writes,
            self._forget_requests,
            # It asks the database in each run: however long this one took, no outage goes unnoticed until the next.
            self._delete_partials,
        )
        failure: PixyProxyException | None = None
        for step in steps:
            try:
                step()
            except DBConnectionError:
                self._leave_leases()
                raise
            except PixyProxyException as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _run(self) -> float:
        self.run()
        return self._interval

    def _finish_known(self) -> None:
        """Record the ends of generations that could not be recorded at once."""
        for unfinished in tuple(self._unfinished):
            generation, finish = unfinished
            if self._attempt(generation.image_guid, finish):
                self._on_end(generation.id)
                self._unfinished.remove(unfinished)

    def _commit_waiting(self) -> None:
        """Commit or clean up the images that had a manifest at the last run."""
        for guid in tuple(self._waiting):
            self._attempt(guid, partial(self._commit_if_abandoned, guid))

    def _commit_listed(self) -> None:
        """Commit or clean up the others, if a listing is due."""
        if time.monotonic() < self._list_at:
            return
        for guid in set(self._store.list_manifests()) - self._waiting:
            self._attempt(guid, partial(self._commit_if_abandoned, guid))
        self._list_at = time.monotonic() + self._store.listing_interval

    def _discard_imports(self) -> None:
        """Have the bytes of imports deleted whose servers have died."""
        with self._database.reading() as context:
            expired = PendingImportRepository(context).get_expired(_ROWS_A_RUN)

        def discard(context: DatabaseContext, guid: str) -> None:
            # Of this and of the import's own commit, one finds the row.
            if PendingImportRepository(context).delete(guid):
                DeletionRepository(context).insert(guid)

        for guid in expired:
            in_transaction(self._database, partial(discard, guid=guid))

    def _finish_deletions(self) -> None:
        with self._database.reading() as context:
            deletions = DeletionRepository(context).get_next(_ROWS_A_RUN, after=self._failed_deletion)
        self._failed_deletion = 0
        for deletion in deletions:
            if not self._attempt(deletion.image_guid, partial(self._storing.delete_bytes, deletion.image_guid)):
                # The store may be unavailable: leave the rest to the next run.
                self._failed_deletion = deletion.id
                return

    def _find_orphans(self) -> None:
        """Record deletions for images whose renditions are still there, such as those that an earlier release deleted.

        Each run looks at the next few renditions.
        """
        with self._database.reading() as context:
            orphans, self._seen_rendition = RenditionRepository(context).get_orphans(
                _ROWS_A_RUN, after=self._seen_rendition
            )
        for guid in orphans:
            with suppress(ConstraintViolationError):  # Its deletion is recorded.
                in_transaction(self._database, partial(_insert_deletion, guid))

    def _delete_partials(self) -> None:
        """Delete the partial images of generations that ended long enough ago for all watchers to have seen them."""
        before = datetime.now(UTC) - _PARTIALS_AFTER_END
        in_transaction(
            self._database, lambda context: GenerationDetailRepository(context).delete_partials(before, _ROWS_A_RUN)
        )
        self._note_reached()

    def _forget_requests(self) -> None:
        if self._retention is None or time.monotonic() < self._forget_at:
            return
        before, since = datetime.now(UTC) - self._retention, self._forget_since
        seen = in_transaction(
            self._database,
            lambda context: GenerationDetailRepository(context).forget_requests(before, _ROWS_A_RUN, since=since),
        )
        self._forget_since = seen or _BEGINNING
        if seen is None:
            self._forget_at = time.monotonic() + _FORGET_SECONDS

    def _attempt(self, guid: str, step: Callable[[], object]) -> bool:
        """Call ``step``, which is for the image ``guid``; return False, and log it, if it fails."""
        try:
            step()
        except DBConnectionError:
            raise
        except Exception as error:  # One image must not keep the others from being recovered.
            is_foreseen = isinstance(error, PixyProxyException)
            self._report(guid, f"cannot be recovered or deleted; retrying: {for_log(error)}", traceback=not is_foreseen)
            return False
        self._note_reached()
        return True

    def _note_reached(self) -> None:
        """Note that the database has answered."""
        now = time.time()  # unlike the monotonic clock, it advances while the machine is suspended
        if not 0 <= now - self._reached_at < self._lease * _NOTICED_SHARE:
            self._leave_leases()
        self._reached_at = now

    def _leave_leases(self) -> None:
        """Regard expired leases as valid, for as long as a lease lasts."""
        self._leases_valid_at = time.monotonic() + self._lease

    def _commit_if_abandoned(self, guid: str) -> None:
        """Commit or clean up an image with a manifest, unless its generation has an owner."""
        with self._database.reading() as context:
            generation = GenerationRepository(context).find_by_image(guid)
        if generation is not None and generation.is_owned:
            # If its worker has died, its lease expires.
            self._waiting.add(guid)
            return
        if generation is None:
            # The database was restored from a backup that is older than the image.
            self._report(guid, "belongs to no generation; its manifest is kept for an operator.")
        elif self._storing.rescue(generation, discards=True):
            self._on_end(generation.id)
            _logger.info("Committed the stored image %s.", guid)
        self._waiting.discard(guid)

    def _end_expired(self) -> None:
        """End the generations whose lease has expired, unless that may have been in an outage of the database."""
        with self._database.reading() as context:
            generations = GenerationRepository(context)
            self._note_reached()
            is_uncertain = time.monotonic() < self._leases_valid_at
            expired = generations.get_released(_ROWS_A_RUN) if is_uncertain else generations.get_expired(_ROWS_A_RUN)
        for generation in expired:
            self._attempt(generation.image_guid, partial(self._end_abandoned, generation))

    def _end_abandoned(self, generation: Generation) -> None:
        if self._storing.rescue(generation) or self._end(generation):
            self._on_end(generation.id)

    def _end(self, generation: Generation) -> bool:
        """End an expired generation; return False if its lease was renewed meanwhile."""
        if generation.state is GenerationState.SUBMITTED:
            state: GenerationState = GenerationState.OUTCOME_UNKNOWN
            error: PixyProxyException = OutcomeUnknownError.after(
                "The generation worker ended before the image was stored."
            )
        else:
            state, error = GenerationState.FAILED, CallerGoneError("The server that recorded the request has died.")
        is_ended = in_transaction(
            self._database,
            lambda context: GenerationRepository(context).end(generation, state, error, if_expired=True),
        )
        if is_ended and state is GenerationState.OUTCOME_UNKNOWN:
            self._on_unknown()
        if is_ended:
            _logger.warning("The worker of generation %d has died; its state is %s now.", generation.id, state.name)
        return is_ended

    def _report(self, guid: str, what: str, *, traceback: bool = False) -> None:
        """Log a failure for an image, unless one was logged within the last hour."""
        if guid not in self._reported and len(self._reported) < self._reported.maxsize:
            self._reported[guid] = None
            _logger.error("The image %s %s", guid, what, exc_info=traceback)


def _insert_deletion(guid: str, context: DatabaseContext) -> None:
    DeletionRepository(context).insert(guid)
