"""The generation worker: claims generations when there may be some, and runs each in a thread of its own."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from pixyproxy.core.exceptions import PixyProxyException
from pixyproxy.core.local_signal import LocalSignal, wait_for_any
from pixyproxy.data.repositories.generations import QueuedGeneration
from pixyproxy.generation.circuit_breaker import Permit
from pixyproxy.service.creation.changes import GenerationChanges
from pixyproxy.service.creation.claims import GenerationClaims, NotClaimedError
from pixyproxy.service.creation.runner import GenerationRunner, WorkerParts

_logger = logging.getLogger(__name__)


class GenerationWorker:
    """Claims and runs generations until no process of this server can record any more."""

    def __init__(
        self,
        parts: WorkerParts,
        claims: GenerationClaims,
        runner: GenerationRunner,
        *,
        limit: int,
        recorded: LocalSignal,
        changes: GenerationChanges,
        poll_interval: float = 1.0,
        close_timeout: float = 10.0,
    ) -> None:
        """Initialize without claiming anything.

        Args:
            parts: the parts of the worker.
            claims: claims generations.
            runner: runs the generations that are claimed.
            limit: the most submitted generations at a time.
            recorded: received when this server has recorded a request.
            changes: reports generations that are claimed and that end.
            poll_interval: seconds between two queries for requests that other servers have recorded.
            close_timeout: seconds to wait at the end for a claim that hangs.
        """
        self._parts = parts
        self._claims = claims
        self._runner = runner
        self._limit = limit
        self._recorded = recorded
        self._changes = changes
        self._poll_interval = poll_interval
        self._close_timeout = close_timeout
        self._freed = LocalSignal()
        # The threads of submitted generations. A pool would keep what it has no thread for.
        self._submitted: set[threading.Thread] = set()
        self._is_ending = False
        self._is_closed = False
        # Then only a new record, or a retry, gives this worker something to claim.
        self._queue_is_empty = False
        self._retries_at: list[float] = []
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
                    self._claims.end_predecessor()
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
            self._claims.return_doubtful()

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
        self._claims.begin_round()
        self._queue_is_empty = False
        while len(self._submitted) < self._limit and not self._is_ending:
            pause = self._claim_next()
            if pause is not None:
                return pause
        return self._poll_interval

    def _claim_next(self) -> float | None:
        """Claim and submit one generation, if possible; return None, or the seconds until it may be possible."""
        oldest, count = self._claims.find()
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
            is_submitted = self._submit_one(oldest, permit)
        except NotClaimedError as reason:
            return min(self._poll_interval, reason.wait) or None
        finally:
            if not is_submitted:
                self._queue_is_empty = False
                self._parts.breaker.withdraw(permit)
        # If none is submitted, no author has quota left, or other servers were faster; there may be more.
        return self._until_retry() if self._queue_is_empty else None

    def _submit_one(self, oldest: Mapping[int, int], permit: Permit) -> bool:
        """Claim one of these generations and submit it in a thread of its own, if that is possible for any."""
        claimed = self._claims.claim_one(oldest, len(self._submitted))
        if claimed is None:
            return False
        try:
            self._start(claimed, permit)
        except RuntimeError:
            self._claims.take_back_later(claimed.generation)
            raise
        self._changes.progressed(claimed.generation.id)
        self._parts.observer.generations_changed(1)
        self._parts.observer.claimed(claimed.generation.age())
        return True

    def _until_retry(self) -> float:
        """Return the seconds until this worker's next retry is due, or until the next poll."""
        now = time.monotonic()
        with self._lock:
            while self._retries_at and self._retries_at[0] <= now:
                heapq.heappop(self._retries_at)
            return min(self._poll_interval, self._retries_at[0] - now if self._retries_at else self._poll_interval)

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
