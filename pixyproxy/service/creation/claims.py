"""Claims queued generations: decides which is submitted next, and records that."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
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
from pixyproxy.data.database import DatabaseContext
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, QueuedGeneration
from pixyproxy.data.transactions import in_transaction
from pixyproxy.service.creation.changes import GenerationChanges
from pixyproxy.service.creation.rate_limiter import RateLimiter
from pixyproxy.service.creation.runner import WorkerParts
from pixyproxy.service.quotas import QuotaReservedError, Quotas

_logger = logging.getLogger(__name__)

_MAX_REMEMBERED_AUTHORS = 10_000


class NotClaimedError(Exception):
    """A claim was rolled back: another worker was faster, or the rate limiter has no slot for ``wait`` seconds."""

    def __init__(self, wait: float = 0.0) -> None:
        self.wait = wait


class GenerationClaims:
    """The claims of one generation worker."""

    def __init__(
        self,
        parts: WorkerParts,
        *,
        quotas: Quotas,
        lease: timedelta,
        limiter: RateLimiter | None,
        changes: GenerationChanges,
    ) -> None:
        """Initialize without claiming anything.

        Args:
            parts: the parts of the worker.
            quotas: limits what authors spend.
            lease: how long a lease lasts. Others renew it, as long as the worker runs.
            limiter: limits the submissions of all servers, or None.
            changes: reports generations that end instead of being claimed.
        """
        self._parts = parts
        self._quotas = quotas
        self._lease = lease
        self._limiter = limiter
        self._changes = changes
        self._started_at = datetime.now(UTC)
        self._doubtful: set[int] = set()
        self._unreadable: set[int] = set()
        # Authors whose generations wait for submitted ones of theirs to end.
        self._waiting_authors: set[int] = set()
        self._served_at: LRUCache[int, float] = LRUCache(_MAX_REMEMBERED_AUTHORS)

    def end_predecessor(self) -> None:
        """End the leases of the worker that this one replaces."""
        in_transaction(
            self._parts.database, lambda context: GenerationRepository(context).expire_leases(self._parts.owner)
        )

    def begin_round(self) -> None:
        """Forget what may have changed since the last claims."""
        self.return_doubtful()
        self._waiting_authors.clear()

    def return_doubtful(self) -> None:
        """Queue generations again whose claim was perhaps committed: they were not submitted."""

        def queue(context: DatabaseContext) -> None:
            for generation_id in self._doubtful:
                GenerationRepository(context).take_back(generation_id, self._parts.owner)

        if self._doubtful:
            in_transaction(self._parts.database, queue)
            self._doubtful.clear()

    def take_back_later(self, generation: Generation) -> None:
        """Queue a claimed generation again at the next round: it cannot be submitted."""
        self._doubtful.add(generation.id)

    def find(self) -> tuple[dict[int, int], int]:
        """Find the generations that may be claimed now.

        Returns:
            The id of the oldest one of each author who has any, and the number of all, also of those that wait for
            others of their authors.
        """
        with self._parts.database.reading() as context:
            oldest, count = GenerationRepository(context).oldest_queued(self._unreadable)
        return {author: found for author, found in oldest.items() if author not in self._waiting_authors}, count

    def claim_one(self, oldest: Mapping[int, int], submitted: int) -> QueuedGeneration | None:
        """Claim the first of these generations that can be submitted; the author served longest ago comes first.

        Args:
            oldest: the id of a generation of each author, as ``find`` returns them.
            submitted: how many generations of this worker are submitted.

        Raises:
            NotClaimedError: another worker was faster, or the rate limiter has no slot.
        """
        for author_id in sorted(oldest, key=lambda author_id: (self._served_at.get(author_id, 0.0), oldest[author_id])):
            queued = self._read(oldest[author_id])
            claimed = None if queued is None else self._claim(queued, submitted)
            if claimed is not None:
                self._served_at[author_id] = time.monotonic()
                return claimed
        return None

    def _read(self, generation_id: int) -> QueuedGeneration | None:
        try:
            with self._parts.database.reading() as context:
                return GenerationRepository(context).get_queued(generation_id)
        except ValidationError:
            # Recorded by a later release, while the servers are updated one by one: its own workers understand it.
            self._unreadable.add(generation_id)
            _logger.warning("This release cannot read generation %d; it is left to later ones.", generation_id)
            return None

    def _claim(self, queued: QueuedGeneration, submitted: int) -> QueuedGeneration | None:
        """Claim a generation; return None if it has ended, or must wait for others of its author."""
        generation = queued.generation
        if queued.is_author_removed:
            # It was recorded, or queued again after a failure, while its author was being removed.
            self._end_queued(generation, GenerationState.CANCELLED, GenerationCancelledError.of_removed_user())
            return None
        if not self._may_submit(queued, submitted):
            return None
        try:
            return in_transaction(self._parts.database, lambda context: self._submit(context, queued))
        except ConstraintViolationError:
            return None  # Another server took the slot of the rate limiter, or locked the quotas for the first time.
        except QuotaReservedError:
            self._waiting_authors.add(generation.author_id)
            return None
        except (QuotaExhaustedError, PriceUnknownError) as error:
            self._end_queued(generation, GenerationState.FAILED, error)
            return None
        except DBConnectionError:
            self._doubtful.add(generation.id)
            raise

    def _may_submit(self, queued: QueuedGeneration, submitted: int) -> bool:
        """Check that the image can be stored, and was not generated before; end the generation if not."""
        generation, storing = queued.generation, self._parts.storing
        error: PixyProxyException
        try:
            self._parts.store.require_room(submitted + 1)
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

    def _submit(self, context: DatabaseContext, queued: QueuedGeneration) -> QueuedGeneration:
        """Note that a generation is submitted, and return it as it is then."""
        generation, reserved = queued.generation, self._quotas.reserve(context, queued)
        wait = 0.0 if self._limiter is None else self._limiter.take(context)
        if wait > 0:
            raise NotClaimedError(wait)
        model = self._parts.model_of(queued.creation)
        submitted_at = GenerationRepository(context).submit(
            generation.id, self._parts.owner, self._lease, model, reserved
        )
        if submitted_at is None:
            raise NotClaimedError
        submitted = replace(
            generation,
            state=GenerationState.SUBMITTED,
            attempts=generation.attempts + 1,
            reserved_nano_usd=reserved,
            submitted_at=submitted_at,
        )
        return replace(queued, generation=submitted)
