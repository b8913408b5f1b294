"""The generation worker: claims queued generations, has each generated once, stores the images and commits them."""

from __future__ import annotations

import hashlib
import heapq
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from pixyproxy.core import request_context
from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    ConflictError,
    ConstraintViolationError,
    DBConnectionError,
    OutcomeUnknownError,
    PixyProxyException,
    ProviderError,
    ProviderModelUnknownError,
    ProviderRequestInvalidError,
    ProviderUnavailableError,
    StorageFullError,
    StorageUnavailableError,
    UnreadableAnswerError,
)
from pixyproxy.core.local_signal import LocalSignal, wait_for_any
from pixyproxy.core.models import GenerationDefaults, ImageDetail
from pixyproxy.core.text import slug
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.generations import (
    Generation,
    GenerationRepository,
    GenerationState,
    QueuedGeneration,
)
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.data.transactions import in_transaction
from pixyproxy.generation.circuit_breaker import CircuitBreaker, Permit
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, ImageGenerator
from pixyproxy.generation.observer import GenerationObserver
from pixyproxy.generation.retry import RetryPolicy
from pixyproxy.service.creation.leases import Leases
from pixyproxy.service.creation.rate_limiter import RateLimiter
from pixyproxy.service.creation.recovery import Recovery
from pixyproxy.service.creation.storing import ImageStoring

_logger = logging.getLogger(__name__)

_EXTENSIONS = {"image/png": "png", "image/webp": "webp", "image/jpeg": "jpg"}
_MAX_REMEMBERED_AUTHORS = 10_000
_CLOSE_SECONDS = 10.0


class _NotSubmitted(Exception):
    """Rolls a claim back: another worker was faster, or the rate limiter has no slot for some seconds."""

    def __init__(self, wait: float | None = None) -> None:
        self.wait = wait


class GenerationWorker:
    """Runs generations, in threads of its own, until nobody is left who could record any on this server."""

    def __init__(
        self,
        database: Database,
        store: ImageStore,
        storing: ImageStoring,
        generator: ImageGenerator,
        *,
        owner: str,
        defaults: GenerationDefaults,
        limit: int,
        leases: Leases,
        lease: timedelta,
        recovery: Recovery,
        breaker: CircuitBreaker,
        retry: RetryPolicy,
        limiter: RateLimiter | None,
        recorded: LocalSignal,
        on_end: Callable[[int], object],
        observer: GenerationObserver,
        continuing: Callable[[Mapping[str, str]], AbstractContextManager[None]],
        poll_interval: float = 1.0,
        retry_interval: float = 0.5,
        give_up_after: float = 60.0,
    ) -> None:
        """Claim nothing yet.

        Args:
            database: the queue.
            store: where bytes go.
            storing: stores and commits images.
            generator: asks the provider.
            owner: the name of this worker, and of the one before it in its place, which must be dead.
            defaults: what to generate where a request leaves it open.
            limit: how many generations may be submitted at a time.
            leases: renews the leases of what is submitted.
            lease: how long a lease lasts.
            recovery: commits what could not be committed at once.
            breaker: stops submissions while the provider is down.
            retry: says which failures are tried again.
            limiter: limits the submissions of all servers, or None.
            recorded: is sent when this server has recorded a request.
            on_end: is told the id of each generation that has ended.
            observer: is told what becomes of generations.
            continuing: returns what is entered to work on a part of the trace that headers name.
            poll_interval: seconds between two looks for what other servers have recorded.
            retry_interval: seconds before a database that is away is tried again.
            give_up_after: seconds after which it is left to the lease to end a generation.
        """
        self._database = database
        self._store = store
        self._storing = storing
        self._generator = generator
        self._owner = owner
        self._defaults = defaults
        self._limit = limit
        self._leases = leases
        self._lease = lease
        self._recovery = recovery
        self._breaker = breaker
        self._retry = retry
        self._limiter = limiter
        self._recorded = recorded
        self._on_end = on_end
        self._observer = observer
        self._continuing = continuing
        self._poll_interval = poll_interval
        self._retry_interval = retry_interval
        self._give_up_after = give_up_after
        self._started_at = datetime.now(UTC)
        self._freed = LocalSignal()
        self._threads = ThreadPoolExecutor(limit, thread_name_prefix="generation")
        self._submitted = 0
        self._is_ending = False
        self._retries_at: list[float] = []
        self._doubtful: set[int] = set()
        self._unreadable: set[int] = set()
        self._served_at: dict[int, int] = {}
        self._serial = 0
        self._lock = threading.Lock()

    def run(self, on_ending: Callable[[], object] = lambda: None) -> None:
        """Claim and generate until all senders of ``recorded`` are gone, then finish what was submitted.

        Args:
            on_ending: is called between the two.
        """
        self._leases.start()
        self._recovery.start()
        # A daemon, because a claim may hang in the database, and must not keep the process from ending.
        claiming = threading.Thread(target=self._claim_on, name="claims", daemon=True)
        claiming.start()
        self._recorded.wait_for_end()
        on_ending()
        self._is_ending = True
        self._freed.send()
        claiming.join(_CLOSE_SECONDS)
        self._threads.shutdown()
        self._recovery.close()
        self._leases.close()

    # --- Claim ---------------------------------------------------------------------------------------------------

    def _claim_on(self) -> None:
        """Claim whenever there may be something to claim, until the worker ends."""
        has_predecessor = True
        while not self._is_ending:
            try:
                if has_predecessor:
                    in_transaction(
                        self._database, lambda context: GenerationRepository(context).expire_leases(self._owner)
                    )
                    has_predecessor = False
                pause = self._claim_all()
            except PixyProxyException as error:
                _logger.warning("No generation can be claimed: %s", error.message)
                pause = self._retry_interval
            except Exception:
                _logger.exception("No generation can be claimed.")
                pause = self._poll_interval
            self._wait(pause)

    def _wait(self, pause: float) -> None:
        """Wait until there may be something to claim."""
        # A full worker leaves the signals of new records to others.
        is_full = self._submitted >= self._limit
        watched = (self._freed,) if is_full else (self._freed, self._recorded)
        wait_for_any(*watched, timeout=None if is_full else pause)
        for signal in watched:
            signal.read()

    def _claim_all(self) -> float:
        """Claim what there is and may be claimed; return the seconds until there may be more."""
        self._return_doubtful()
        while self._submitted < self._limit and not self._is_ending:
            pause = self._claim_next()
            if pause is not None:
                return pause
        return self._poll_interval

    def _return_doubtful(self) -> None:
        """Queue again what was claimed by a commit whose answer was lost: nothing of it was submitted."""
        for generation_id in tuple(self._doubtful):
            in_transaction(
                self._database,
                lambda context, generation_id=generation_id: GenerationRepository(context).queue_later(  # type: ignore[misc]
                    generation_id, self._owner, datetime.now(UTC)
                ),
            )
            self._doubtful.discard(generation_id)

    def _claim_next(self) -> float | None:
        """Claim one generation and begin it; return None where that was done, else the seconds until the next try."""
        with self._database.reading() as context:
            oldest = GenerationRepository(context).oldest_queued()
        oldest = {author_id: found for author_id, found in oldest.items() if found not in self._unreadable}
        if not oldest:
            return self._until_retry()
        permit = self._breaker.admit()
        if permit is None:
            # While a trial is under way, there is no time to wait for.
            return min(self._poll_interval, self._breaker.wait() or self._poll_interval)
        try:
            for author_id in sorted(
                oldest, key=lambda author_id: (self._served_at.get(author_id, 0), oldest[author_id])
            ):
                queued = self._read(oldest[author_id])
                if queued is not None and self._begin(queued, permit):
                    self._note_served(author_id)
                    return None
        except _NotSubmitted as paced:
            self._breaker.withdraw(permit)
            return min(self._poll_interval, paced.wait or 0.0)
        except BaseException:
            self._breaker.withdraw(permit)
            raise
        self._breaker.withdraw(permit)
        return 0.0  # Others were faster; there may be more.

    def _until_retry(self) -> float:
        """Return the seconds until this worker's next retry is due, or until the next poll."""
        now = time.monotonic()
        with self._lock:
            while self._retries_at and self._retries_at[0] <= now:
                heapq.heappop(self._retries_at)
            return min(self._poll_interval, self._retries_at[0] - now if self._retries_at else self._poll_interval)

    def _read(self, generation_id: int) -> QueuedGeneration | None:
        try:
            with self._database.reading() as context:
                return GenerationRepository(context).get_queued(generation_id)
        except ValidationError:
            # Recorded by a later release, while the servers are updated one by one: its own workers understand it.
            self._unreadable.add(generation_id)
            _logger.warning("Generation %d cannot be read by this release; it is left to later ones.", generation_id)
            return None

    def _begin(self, queued: QueuedGeneration, permit: Permit) -> bool:
        """Submit a generation, in a thread of its own; return False where that must not be, or another was faster.

        Raises:
            _NotSubmitted: the rate limiter has no slot.
        """
        if not self._may_submit(queued):
            return False
        generation = queued.generation
        try:
            in_transaction(self._database, lambda context: self._submit(context, generation))
        except ConstraintViolationError:
            return False  # Another server has taken the rate limiter's slot.
        except _NotSubmitted as reason:
            if reason.wait is not None:
                raise
            return False
        except DBConnectionError:
            self._doubtful.add(generation.id)
            raise
        submitted = replace(generation, state=GenerationState.SUBMITTED, attempts=generation.attempts + 1)
        with self._lock:
            self._submitted += 1
        self._observer.generations_changed(1)
        self._observer.claimed(_age(generation))
        self._threads.submit(self._run, replace(queued, generation=submitted), permit)
        return True

    def _may_submit(self, queued: QueuedGeneration) -> bool:
        """Check, as far as that can be known before, that the image can be stored; end the generation if not."""
        generation = queued.generation
        error: PixyProxyException
        try:
            self._store.require_room(self._submitted + 1)
            # A database that was restored from a backup knows less than the store.
            is_restored = generation.created_at <= self._started_at and self._storing.has_content(generation.image_guid)
            if not is_restored:
                return True
            if self._storing.rescue(generation):
                self._on_end(generation.id)
                return False
            state, error = GenerationState.OUTCOME_UNKNOWN, OutcomeUnknownError("The image was generated before.")
        except (StorageFullError, StorageUnavailableError) as failure:
            state, error = GenerationState.FAILED, failure
        self._persist(lambda context: GenerationRepository(context).end(generation, state, error))
        self._on_end(generation.id)
        return False

    def _submit(self, context: DatabaseContext, generation: Generation) -> None:
        wait = 0.0 if self._limiter is None else self._limiter.take(context)
        if wait > 0:
            raise _NotSubmitted(wait)
        if not GenerationRepository(context).submit(generation.id, self._owner, self._lease):
            raise _NotSubmitted

    def _note_served(self, author_id: int) -> None:
        """Let all other authors come before this one."""
        self._serial += 1
        if len(self._served_at) >= _MAX_REMEMBERED_AUTHORS:
            self._served_at.clear()
        self._served_at[author_id] = self._serial

    # --- Generate ------------------------------------------------------------------------------------------------

    def _run(self, queued: QueuedGeneration, permit: Permit) -> None:
        request_context.request_id.set(queued.context.call_id)
        try:
            with self._leases.held(queued.generation.id), self._continuing(queued.context.trace_headers):
                self._generate(queued, permit)
        except Exception:
            _logger.exception("The end of generation %d could not be recorded.", queued.generation.id)
        finally:
            with self._lock:
                self._submitted -= 1
            self._observer.generations_changed(-1)
            self._on_end(queued.generation.id)
            self._freed.send()

    def _generate(self, queued: QueuedGeneration, permit: Permit) -> None:
        request = self._request_for(queued)
        try:
            image = self._generator.generate(request, CallScope())
        except UnreadableAnswerError as error:
            self._breaker.record(permit, error)
            is_kept = self._storing.keep_aside(queued.generation.image_guid, error.body)
            self._end(queued, request, GenerationState.OUTCOME_UNKNOWN, _unreadable(queued.generation, is_kept=is_kept))
        except ProviderError as error:
            self._settle(queued, request, permit, error)
        except Exception as error:
            _logger.exception("Generation failed: %s", type(error).__name__)
            self._breaker.record(permit, error)
            unknown = PixyProxyException("The generation failed; the log says why.")
            self._end(queued, request, GenerationState.OUTCOME_UNKNOWN, unknown)
        else:
            self._breaker.record(permit, None)
            self._store_and_commit(queued, request, image)

    def _request_for(self, queued: QueuedGeneration) -> GenerationRequest:
        options = {name: value for name, value in queued.creation.options if value is not None}
        return GenerationRequest(
            prompt=queued.creation.detail.prompt, author_guid=queued.author.guid, **{**dict(self._defaults), **options}
        )

    def _settle(
        self, queued: QueuedGeneration, request: GenerationRequest, permit: Permit, error: ProviderError
    ) -> None:
        """Queue a failed generation again where that can neither bill twice nor outlast its caller, or end it."""
        delay = self._retry.delay(error, queued.generation.attempts)
        deadline = queued.context.deadline_at
        not_before = datetime.now(UTC) + timedelta(seconds=delay or 0.0)
        if delay is None or (deadline is not None and not_before >= deadline):
            self._breaker.record(permit, error)
            self._end_failed(queued, request, error)
            return
        if permit.is_trial:
            self._breaker.record(permit, error)
        else:
            # A request counts once for the circuit breaker, with all its attempts.
            self._breaker.withdraw(permit)
        _logger.info(
            "Attempt %d failed: %s; retrying in %.1f s.", queued.generation.attempts, type(error).__name__, delay
        )
        self._observer.retrying(error)
        self._persist(
            lambda context: GenerationRepository(context).queue_later(queued.generation.id, self._owner, not_before)
        )
        with self._lock:
            heapq.heappush(self._retries_at, time.monotonic() + delay)

    def _end_failed(self, queued: QueuedGeneration, request: GenerationRequest, error: ProviderError) -> None:
        outcome = error
        state = GenerationState.OUTCOME_UNKNOWN if error.may_have_billed else GenerationState.FAILED
        if isinstance(error, ProviderModelUnknownError) and queued.creation.options.model:
            error = ProviderRequestInvalidError("options.model", "The provider has no such model.")
        elif isinstance(error, ProviderUnavailableError) and error.retry_after is None and not error.may_have_billed:
            # The request that has opened the circuit knows as well as those that come after it.
            error.retry_after = self._breaker.wait() or None
        self._end(queued, request, state, error, outcome)

    def _end(
        self,
        queued: QueuedGeneration,
        request: GenerationRequest,
        state: GenerationState,
        error: PixyProxyException,
        outcome: PixyProxyException | None = None,
    ) -> None:
        generation = queued.generation
        self._observer.ended(request, _age(generation), outcome or error)

        def end(context: DatabaseContext) -> None:
            generations = GenerationRepository(context)
            if not generations.end(generation, state, error) and state is GenerationState.FAILED:
                # Taken for dead meanwhile; but what failed has certainly cost nothing.
                generations.end(replace(generation, state=GenerationState.OUTCOME_UNKNOWN), state, error)

        self._persist(end)

    # --- Store and commit ----------------------------------------------------------------------------------------

    def _store_and_commit(self, queued: QueuedGeneration, request: GenerationRequest, image: GeneratedImage) -> None:
        try:
            with closing(image):
                detail = _detail_of(queued, image)
                self._storing.store(detail, image.data)
        except PixyProxyException as error:
            self._end(queued, request, GenerationState.OUTCOME_UNKNOWN, error)
            return
        except Exception as error:
            self._end(queued, request, GenerationState.OUTCOME_UNKNOWN, PixyProxyException("The image was not stored."))
            raise error
        self._observer.ended(request, _age(queued.generation), image)
        try:
            self._storing.commit(queued.generation, detail)
        except (DBConnectionError, ConflictError) as error:
            _logger.warning("The image %s is stored, and committed later: %s", detail.guid, error.message)
            self._recovery.commit_later(detail.guid)

    def _persist(self, work: Callable[[DatabaseContext], object]) -> None:
        """Write down what became of a generation, once the database is there; its lease ends it in any case."""
        give_up_at = time.monotonic() + self._give_up_after
        while True:
            try:
                in_transaction(self._database, work)
            except (DBConnectionError, ConflictError):
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(self._retry_interval)
            else:
                return


def _unreadable(generation: Generation, *, is_kept: bool) -> ProviderUnavailableError:
    # Another one than the generator's, whose body is not for callers.
    where = f" The answer is kept for the server's operator under the guid {generation.image_guid}." if is_kept else ""
    return ProviderUnavailableError(
        f"The image provider's answer holds no image that can be read.{where}", may_have_billed=True
    )


def _age(generation: Generation) -> float:
    return (datetime.now(UTC) - generation.created_at).total_seconds()


def _detail_of(queued: QueuedGeneration, image: GeneratedImage) -> ImageDetail:
    now = datetime.now(UTC)
    asked = queued.creation.detail
    return ImageDetail(
        guid=queued.generation.image_guid,
        prompt=asked.prompt,
        filename=asked.filename or f"{slug(asked.prompt) or 'image'}.{_EXTENSIONS[image.content_type]}",
        tags=asked.tags,
        visibility=asked.visibility,
        author=queued.author.username,
        content_type=image.content_type,
        size_bytes=len(image.data),
        sha256=hashlib.sha256(image.data).hexdigest(),
        width=image.width,
        height=image.height,
        model=image.model,
        usage=image.usage,
        created_at=now,
        updated_at=now,
    )
