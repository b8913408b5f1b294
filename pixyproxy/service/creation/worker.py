"""The generation worker: claims queued generations, and runs each in a thread of its own."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from cachetools import LRUCache
from pydantic import ValidationError

from pixyproxy.core.exceptions import (
    ConflictError,
    ConstraintViolationError,
    DBConnectionError,
    GenerationCancelledError,
    OutcomeUnknownError,
    PixyProxyException,
    PriceUnknownError,
    QuotaExhaustedError,
)
from pixyproxy.core.fields import GenerationState
from pixyproxy.core.local_signal import LocalSignal, wait_for_any
from pixyproxy.data.database import DatabaseContext
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, QueuedGeneration
from pixyproxy.data.transactions import in_transaction
from pixyproxy.generation.circuit_breaker import Permit
from pixyproxy.service.creation.changes import GenerationChanges
from pixyproxy.service.creation.rate_limiter import RateLimiter
from pixyproxy.service.creation.runner import GenerationRunner, WorkerParts
from pixyproxy.service.quotas import QuotaReservedError, Quotas

_logger = logging.getLogger(__name__)

_MAX_REMEMBERED_AUTHORS = 10_000


class _NotSubmitted(Exception):
    """Rolls a claim back: another worker was faster, or the rate limiter has no slot for ``wait`` seconds."""

    def __init__(self, wait: float = 0.0) -> None:
        self.wait = wait


class GenerationWorker:
    """Claims and runs generations until no process of this server can record any more."""

    def __init__(
        self,
        parts: WorkerParts,
        runner: GenerationRunner,
        *,
        quotas: Quotas,
        limit: int,
        lease: timedelta,
        limiter: RateLimiter | None,
        recorded: LocalSignal,
        changes: GenerationChanges,
        poll_interval: float = 1.0,
        close_timeout: float = 10.0,
    ) -> None:
        """Initialize without claiming anything.

        Args:
            parts: the parts of the worker.
            runner: runs the generations that are claimed.
            quotas: limits what authors spend.
            limit: the most submitted generations at a time.
            lease: how long a lease lasts. Others renew it, as long as this worker runs.
            limiter: limits the submissions of all servers, or None.
            recorded: received when this server has recorded a request.
            changes: reports generations that are claimed and that end.
            poll_interval: seconds between two queries for requests that other servers have recorded.
            close_timeout: seconds to wait at the end for a claim that hangs.
        """
        self._parts = parts
        self._runner = runner
        self._quotas = quotas
        self._limit = limit
        self._lease = lease
        self._limiter = limiter
        self._recorded = recorded
        self._changes = changes
        self._poll_interval = poll_interval
        self._close_timeout = close_timeout
        self._started_at = datetime.now(UTC)
        self._freed = LocalSignal()
        # The threads of submitted generations. A pool would keep what it has no thread for.
        self._submitted: set[threading.Thread] = set()
        self._is_ending = False
        self._is_closed = False
        # Then only a new record, or a retry, gives this worker something to claim.
        self._queue_is_empty = False
        self._retries_at: list[float] = []
        self._doubtful: set[int] = set()
        self._unreadable: set[int] = set()
        # Authors whose generations wait for submitted ones of theirs to end.
        self._waiting_authors: set[int] = set()
        self._served_at: LRUCache[int, float] = LRUCache(_MAX_REMEMBERED_AUTHORS)
        self._lock = threading.Lock()

    def run(self, on_ending: Callable[[], object] = lambda: None) -> None:
        """Claim and run generations until all senders of ``recorded`` have closed it, and call ``on_ending``.

        Then wait for the submitted generations.
        """
        # A daemon, because a claim that hangs in the database must not keep the process from ending.
        claiming = threading.Thread(target=self._claim_on, name="claims", daemon=True)
        claiming.start()
        self._recorded.wait_for_end()
        on_ending()
        self._is_ending = True
        self._freed.send()
        claiming.join(self._close_timeout)
        with self._lock:
            self._is_closed = True
            submitted = tuple(self._submitted)
        for thread in submitted:
            thread.join()
        if not claiming.is_alive():
            self._freed.close()

    # --- Claim ---------------------------------------------------------------------------------------------------

    def _claim_on(self) -> None:
        """Claim generations until the worker ends."""
        has_predecessor = True
        while not self._is_ending:
            try:
                if has_predecessor:
                    in_transaction(
                        self._parts.database,
                        lambda context: GenerationRepository(context).expire_leases(self._parts.owner),
                    )
                    has_predecessor = False
                pause = self._claim_all()
            except PixyProxyException as error:
                _logger.warning("No generation can be claimed: %s", error.message)
                pause = self._parts.retry_interval
            except Exception:  # The thread must go on: nothing else claims.
                _logger.exception("No generation can be claimed.")
                pause = self._poll_interval
            self._wait(pause)
        with suppress(PixyProxyException):  # Recovery ends them as unknown, which is safe, if less true.
            self._return_doubtful()

    def _wait(self, pause: float) -> None:
        """Wait until there may be something to claim."""
        # A full worker leaves the signals of new records to others.
        is_full = len(self._submitted) >= self._limit
        watched = (self._freed,) if is_full else (self._freed, self._recorded)
        wait_for_any(*watched, timeout=None if is_full else pause)
        for signal in watched:
            signal.read()

    def _claim_all(self) -> float:
        """Claim as many generations as possible; return the seconds until the next attempt."""
        self._return_doubtful()
        self._waiting_authors.clear()
        self._queue_is_empty = False
        while len(self._submitted) < self._limit and not self._is_ending:
            pause = self._claim_next()
            if pause is not None:
                return pause
        return self._poll_interval

    def _return_doubtful(self) -> None:
        """Queue generations again whose claim was perhaps committed: they were not submitted."""

        def queue(context: DatabaseContext) -> None:
            for generation_id in self._doubtful:
                GenerationRepository(context).take_back(generation_id, self._parts.owner)

        if self._doubtful:
            in_transaction(self._parts.database, queue)
            self._doubtful.clear()

    def _claim_next(self) -> float | None:
        """Claim and submit one generation, if possible; return None, or the seconds until it may be possible."""
        with self._parts.database.reading() as context:
            oldest, count = GenerationRepository(context).oldest_queued(self._unreadable)
        oldest = {author_id: found for author_id, found in oldest.items() if author_id not in self._waiting_authors}
        self._queue_is_empty = not count
        if not oldest:
            return self._until_retry()
        permit = self._parts.breaker.admit()
        if permit is None:
            # While a trial is under way, there is no time to wait for.
            return min(self._poll_interval, self._parts.breaker.wait() or self._poll_interval)
        is_submitted = False
        self._queue_is_empty = count == 1  # Set before a generation begins, which may end at once.
        try:
            is_submitted = self._begin_one(oldest, permit)
        except _NotSubmitted as reason:
            return min(self._poll_interval, reason.wait) or None
        finally:
            if not is_submitted:
                self._queue_is_empty = False
                self._parts.breaker.withdraw(permit)
        # If none is submitted, no author has quota left, or other servers were faster; there may be more.
        return self._until_retry() if self._queue_is_empty else None

    def _begin_one(self, oldest: Mapping[int, int], permit: Permit) -> bool:
        """Submit the first of these generations that can be submitted; the author served longest ago comes first."""
        for author_id in sorted(oldest, key=lambda author_id: (self._served_at.get(author_id, 0.0), oldest[author_id])):
            queued = self._read(oldest[author_id])
            if queued is not None and self._begin(queued, permit):
                self._served_at[author_id] = time.monotonic()
                return True
        return False

    def _until_retry(self) -> float:
        """Return the seconds until this worker's next retry is due, or until the next poll."""
        now = time.monotonic()
        with self._lock:
            while self._retries_at and self._retries_at[0] <= now:
                heapq.heappop(self._retries_at)
            return min(self._poll_interval, self._retries_at[0] - now if self._retries_at else self._poll_interval)

    def _read(self, generation_id: int) -> QueuedGeneration | None:
        try:
            with self._parts.database.reading() as context:
                return GenerationRepository(context).get_queued(generation_id)
        except ValidationError:
            # Recorded by a later release, while the servers are updated one by one: its own workers understand it.
            self._unreadable.add(generation_id)
            _logger.warning("This release cannot read generation %d; it is left to later ones.", generation_id)
            return None

    def _begin(self, queued: QueuedGeneration, permit: Permit) -> bool:
        """Submit a generation in a thread of its own; return False if that is not possible.

        Raises:
            _NotSubmitted: another worker was faster, or the rate limiter has no slot.
        """
        generation = queued.generation
        if queued.is_author_removed:
            # It was recorded, or queued again after a failure, while its author was being removed.
            self._end_queued(generation, GenerationState.CANCELLED, GenerationCancelledError.of_removed_user())
            return False
        if not self._may_submit(queued):
            return False
        try:
            submitted = in_transaction(self._parts.database, lambda context: self._submit(context, queued))
        except ConstraintViolationError:
            return False  # Another server took the slot of the rate limiter, or locked the quotas for the first time.
        except QuotaReservedError:
            self._waiting_authors.add(generation.author_id)
            return False
        except (QuotaExhaustedError, PriceUnknownError) as error:
            self._end_queued(generation, GenerationState.FAILED, error)
            return False
        except DBConnectionError:
            self._doubtful.add(generation.id)
            raise
        try:
            self._start(replace(queued, generation=submitted), permit)
        except RuntimeError:
            self._doubtful.add(generation.id)
            raise
        self._changes.progressed(generation.id)
        self._parts.observer.generations_changed(1)
        self._parts.observer.claimed(generation.age())
        return True

    def _start(self, submitted: QueuedGeneration, permit: Permit) -> None:
        """Run a generation in a thread.

        Raises:
            RuntimeError: the system has no thread left, or this worker has ended while the claim hung.
        """
        thread = threading.Thread(target=self._run, args=(submitted, permit), name="generation")
        with self._lock:
            if self._is_closed:
                raise RuntimeError("The generation worker has ended.")
            thread.start()
            self._submitted.add(thread)

    def _may_submit(self, queued: QueuedGeneration) -> bool:
        """Check that the image can be stored, and was not generated before; end the generation if not."""
        generation, storing = queued.generation, self._parts.storing
        error: PixyProxyException
        try:
            self._parts.store.require_room(len(self._submitted) + 1)
            # A database restored from a backup can be older than the store.
            is_restored = generation.created_at <= self._started_at and storing.has_content(generation.image_guid)
            if not is_restored:
                return True
            if storing.rescue(generation):
                self._changes.ended(generation.id)
                return False
            state = GenerationState.OUTCOME_UNKNOWN
            error = OutcomeUnknownError.after("The image store already has bytes of this generation.")
        except (DBConnectionError, ConflictError):
            raise
        except PixyProxyException as failure:
            state, error = GenerationState.FAILED, failure
        except Exception:  # Such as a manifest of a later release. It must not stop the claims of other generations.
            self._unreadable.add(generation.id)
            _logger.exception("What is stored of generation %d cannot be read; it is not submitted.", generation.id)
            return False
        self._end_queued(generation, state, error)
        return False

    def _end_queued(self, generation: Generation, state: GenerationState, error: PixyProxyException) -> None:
        in_transaction(
            self._parts.database, lambda context: GenerationRepository(context).end(generation, state, error)
        )
        if state is GenerationState.OUTCOME_UNKNOWN:
            self._parts.observer.outcome_unknown()
        self._changes.ended(generation.id)

    def _submit(self, context: DatabaseContext, queued: QueuedGeneration) -> Generation:
        """Note that a generation is submitted, and return it."""
        generation, reserved = queued.generation, self._quotas.reserve(context, queued)
        wait = 0.0 if self._limiter is None else self._limiter.take(context)
        if wait > 0:
            raise _NotSubmitted(wait)
        model = self._parts.model_of(queued.creation)
        submitted_at = GenerationRepository(context).submit(
            generation.id, self._parts.owner, self._lease, model, reserved
        )
        if submitted_at is None:
            raise _NotSubmitted
        return replace(
            generation,
            state=GenerationState.SUBMITTED,
            attempts=generation.attempts + 1,
            reserved_nano_usd=reserved,
            submitted_at=submitted_at,
        )

    # --- Run -----------------------------------------------------------------------------------------------------

    def _run(self, queued: QueuedGeneration, permit: Permit) -> None:
        retry_after = None
        try:
            retry_after = self._runner.run(queued, permit)
        finally:
            with self._lock:
                was_full = len(self._submitted) >= self._limit
                self._submitted.remove(threading.current_thread())
                if retry_after is not None:
                    heapq.heappush(self._retries_at, time.monotonic() + retry_after)
            self._parts.observer.generations_changed(-1)
            self._changes.ended(queued.generation.id)
            if was_full or not self._queue_is_empty or retry_after is not None:
                self._freed.send()
