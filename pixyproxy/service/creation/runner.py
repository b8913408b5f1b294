"""Runs a claimed generation: submits it once, stores its image and commits it, or records why there is none."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

from pixyproxy.core import request_context
from pixyproxy.core.exceptions import (
    ConflictError,
    DBConnectionError,
    InputUnreadableError,
    PixyProxyException,
    ProviderError,
    ProviderModelUnknownError,
    ProviderRequestInvalidError,
    ProviderUnavailableError,
    UnreadableAnswerError,
    for_log,
)
from pixyproxy.core.fields import GenerationState, Origin
from pixyproxy.core.models import GenerationDefaults, Image, ImageCreation, ImageDetail, PartialImage
from pixyproxy.core.text import default_filename
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, QueuedGeneration
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.data.transactions import in_transaction
from pixyproxy.generation.circuit_breaker import CircuitBreaker, Permit
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, ImageGenerator
from pixyproxy.generation.observer import GenerationObserver
from pixyproxy.generation.price_list import PriceList
from pixyproxy.generation.retry import delay_before_retry
from pixyproxy.service.creation.inputs import EditInputs
from pixyproxy.service.creation.recovery import Recovery
from pixyproxy.service.creation.retrying import retried
from pixyproxy.service.creation.storing import ImageStoring

Result = TypeVar("Result")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerParts:
    """What both the claiming and the running of generations need.

    Attributes:
        database: the queue, the generations and the images.
        store: has the inputs of edits, and must have room for each new image.
        storing: stores and commits images.
        defaults: the options that a request leaves open.
        owner: the name of the worker. A predecessor of the same name must have ended.
        breaker: stops submissions while the provider is down.
        observer: counts generations.
        retry_interval: seconds between two attempts while the database is unavailable.
    """

    database: Database
    store: ImageStore
    storing: ImageStoring
    defaults: GenerationDefaults
    owner: str
    breaker: CircuitBreaker
    observer: GenerationObserver
    retry_interval: float = 0.5

    def model_of(self, creation: ImageCreation) -> str:
        """Return the model that a request is submitted to."""
        return creation.options.model or self.defaults.model


class GenerationRunner:
    """Runs claimed generations, each in the thread of its caller."""

    def __init__(
        self,
        parts: WorkerParts,
        generator: ImageGenerator,
        *,
        prices: PriceList,
        recovery: Recovery,
        on_progress: Callable[[int], object],
        continuing: Callable[[Mapping[str, str]], AbstractContextManager[None]],
        retry_delay: Callable[[ProviderError, int], float | None] = delay_before_retry,
        give_up_after: float = 60.0,
    ) -> None:
        """Initialize without running anything.

        Args:
            parts: the parts of the worker.
            generator: generates images.
            prices: what images cost.
            recovery: commits images, and records ends, where that was not possible at once.
            on_progress: called with the id of each generation that has a new partial image.
            continuing: enters the trace that headers name.
            retry_delay: as ``delay_before_retry``.
            give_up_after: seconds after which attempts to reach the database end.
        """
        self._parts = parts
        self._inputs = EditInputs(self._find_images, parts.store)
        self._generator = generator
        self._prices = prices
        self._recovery = recovery
        self._on_progress = on_progress
        self._continuing = continuing
        self._retry_delay = retry_delay
        self._give_up_after = give_up_after

    def run(self, queued: QueuedGeneration, permit: Permit) -> float | None:
        """Run a generation that is claimed; return None, or the seconds after which it is to be claimed again."""
        request_context.call_id.set(queued.context.call_id)
        try:
            with self._continuing(queued.context.trace_headers):
                return self._generate(queued, permit)
        except Exception:  # Without a recorded end, it would last as long as this worker, which renews its lease.
            _logger.exception("Generation %d failed.", queued.generation.id)
            self._record_end(queued.generation, GenerationState.OUTCOME_UNKNOWN, _unexpected())
            return None

    def _generate(self, queued: QueuedGeneration, permit: Permit) -> float | None:
        request = self._request_for(queued)
        try:
            with self._inputs.opened(request, queued.creation) as opened:
                image = self._generator.generate(opened, partial(self._show, queued))
        except InputUnreadableError as failure:
            self._parts.breaker.withdraw(permit)
            self._end(queued, GenerationState.FAILED, failure.cause)
        except UnreadableAnswerError as error:
            self._parts.breaker.record(permit, error)
            is_kept = self._parts.storing.keep_aside(queued.generation.image_guid, error.body)
            self._end(queued, GenerationState.OUTCOME_UNKNOWN, _unreadable(queued.generation, is_kept=is_kept))
        except ProviderError as error:
            return self._settle(queued, permit, error)
        except Exception as error:  # The provider may have executed the request, which must not be submitted again.
            _logger.exception("Generation failed: %s", type(error).__name__)
            self._parts.breaker.record(permit, error)
            self._end(queued, GenerationState.OUTCOME_UNKNOWN, _unexpected())
        else:
            self._parts.breaker.record(permit, None)
            self._store_and_commit(queued, image)
        return None

    def _show(self, queued: QueuedGeneration, partial_image: PartialImage) -> None:
        """Let watchers on all servers see a partial image."""
        generation_id = queued.generation.id
        try:
            in_transaction(
                self._parts.database,
                lambda context: GenerationRepository(context).add_partial(
                    generation_id, self._parts.owner, partial_image
                ),
            )
        except Exception as error:  # Without the partial image, the image still comes.
            _logger.warning("A partial image could not be stored: %s", for_log(error))
        else:
            self._on_progress(generation_id)

    def _find_images(self, guids: Collection[str]) -> dict[str, Image]:
        return self._persist(lambda context: ImageRepository(context).find_any(guids))

    def _request_for(self, queued: QueuedGeneration) -> GenerationRequest:
        return GenerationRequest(
            prompt=queued.creation.detail.prompt,
            author_guid=queued.author.guid,
            **self._parts.defaults.under(queued.creation.options),
        )

    def _settle(self, queued: QueuedGeneration, permit: Permit, error: ProviderError) -> float | None:
        """Queue a failed generation again if it cost nothing and its caller still waits then; otherwise end it.

        Returns:
            The seconds until it may be claimed again, or None.
        """
        delay = self._retry_delay(error, queued.generation.attempts)
        if permit.is_trial:
            self._parts.breaker.record(permit, error)
        if delay is None or not self._queue_again(queued.generation, delay):
            if not permit.is_trial:
                # A request counts once for the circuit breaker, with all its attempts.
                self._parts.breaker.record(permit, error)
            self._end_failed(queued, error)
            return None
        _logger.info(
            "Attempt %d failed: %s; retrying in %.1f s.", queued.generation.attempts, type(error).__name__, delay
        )
        self._parts.observer.retrying(error)
        return delay

    def _queue_again(self, generation: Generation, delay: float) -> bool:
        """Queue a generation again after ``delay`` seconds; return False if it must end instead.

        That is if nobody waits for it then, or if it counts as unknown by now.
        """
        not_before = datetime.now(UTC) + timedelta(seconds=delay)

        def queue(context: DatabaseContext) -> bool:
            generations = GenerationRepository(context)
            # The deadline of the claim may be out of date: CreateGeneration may have joined since.
            deadline = generations.deadline_of(generation.id)
            if deadline is not None and not_before >= deadline:
                return False
            if generations.queue_later(generation, not_before):
                return True
            # Its lease may have expired, so that it ended as OUTCOME_UNKNOWN. Otherwise this is a repetition.
            [current] = generations.get_several([generation.id])
            return current.state is not GenerationState.OUTCOME_UNKNOWN

        try:
            return self._persist(queue)
        except PixyProxyException:  # Also if the database is full: the failure cost nothing, which `end` can say later.
            return False

    def _end_failed(self, queued: QueuedGeneration, error: ProviderError) -> None:
        outcome = error
        state = GenerationState.OUTCOME_UNKNOWN if error.may_have_billed else GenerationState.FAILED
        if isinstance(error, ProviderModelUnknownError) and queued.creation.options.model:
            error = ProviderRequestInvalidError("options.model", "The provider has no such model.")
        elif isinstance(error, ProviderUnavailableError) and error.retry_after is None and not error.may_have_billed:
            # If this request has opened the circuit, its error has the same delay as those of later requests.
            error.retry_after = self._parts.breaker.wait() or None
        self._end(queued, state, error, outcome)

    def _end(
        self,
        queued: QueuedGeneration,
        state: GenerationState,
        error: PixyProxyException,
        outcome: PixyProxyException | None = None,
    ) -> None:
        self._parts.observer.ended(self._parts.model_of(queued.creation), queued.generation.age(), outcome or error)
        self._record_end(queued.generation, state, error)

    def _record_end(self, generation: Generation, state: GenerationState, error: PixyProxyException) -> None:
        """Record how a generation ended, or leave that to recovery."""

        def end(context: DatabaseContext) -> None:
            generations = GenerationRepository(context)
            if not generations.end(generation, state, error) and state is GenerationState.FAILED:
                # Its lease has expired, so that it ended as OUTCOME_UNKNOWN. But this failure cost nothing.
                generations.end(replace(generation, state=GenerationState.OUTCOME_UNKNOWN), state, error)

        if state is GenerationState.OUTCOME_UNKNOWN:
            self._parts.observer.outcome_unknown()
        try:
            in_transaction(self._parts.database, end)
        except Exception as failure:  # Recovery tries again, and logs the traceback of what was not foreseen.
            _logger.warning("The end of generation %d is not recorded yet: %s", generation.id, for_log(failure))
            self._recovery.finish_later(generation, lambda: in_transaction(self._parts.database, end))

    # --- Store and commit ----------------------------------------------------------------------------------------

    def _store_and_commit(self, queued: QueuedGeneration, image: GeneratedImage) -> None:
        with closing(image):
            try:
                detail = _detail_of(queued, image, self._prices)
                self._parts.storing.store(detail, image.data)
            except PixyProxyException as error:
                self._end(queued, GenerationState.OUTCOME_UNKNOWN, error)
                return
            except Exception:  # The image was billed, and callers must not wait for it.
                _logger.exception("The image of generation %d was not stored.", queued.generation.id)
                self._parts.storing.keep_aside(queued.generation.image_guid, image.data)
                self._end(queued, GenerationState.OUTCOME_UNKNOWN, PixyProxyException("The image was not stored."))
                return
        model = self._parts.model_of(queued.creation)
        self._parts.observer.ended(model, queued.generation.age(), image)
        self._parts.observer.spent(model, detail.cost)
        try:
            self._parts.storing.commit(queued.generation, detail)
        except Exception as error:  # The image is safe: recovery commits it, and logs the traceback of any other error.
            _logger.warning("The image %s is stored, but not committed yet: %s", detail.guid, for_log(error))
            self._recovery.finish_later(
                queued.generation, lambda: self._parts.storing.commit(queued.generation, detail)
            )

    def _persist(self, work: Callable[[DatabaseContext], Result]) -> Result:
        """Run a transaction of a submitted generation; retry while the database is unavailable."""
        return retried(
            lambda: in_transaction(self._parts.database, work),
            DBConnectionError,
            ConflictError,
            interval=self._parts.retry_interval,
            give_up_at=time.monotonic() + self._give_up_after,
        )


def _unexpected() -> PixyProxyException:
    return PixyProxyException("The generation failed; the log says why.")


def _unreadable(generation: Generation, *, is_kept: bool) -> ProviderUnavailableError:
    # Not the generator's error: its body is not for callers.
    message = "The image provider's answer has no readable image."
    if is_kept:
        message += (
            f" The answer is kept for the server's operator under the guid {generation.image_guid}; "
            "pixyproxy generations salvage saves it as a file."
        )
    return ProviderUnavailableError(message, may_have_billed=True)


def _detail_of(queued: QueuedGeneration, image: GeneratedImage, prices: PriceList) -> ImageDetail:
    now = datetime.now(UTC)
    asked = queued.creation.detail
    return ImageDetail(
        guid=queued.generation.image_guid,
        prompt=asked.prompt,
        filename=asked.filename or default_filename(asked.prompt, image.content_type),
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
        options=image.options,
        origin=Origin.EDITED if queued.creation.inputs else Origin.GENERATED,
        source_guids=tuple(source.guid for source in queued.creation.inputs),
        cost=prices.cost_of(image.model, image.usage, has_inputs=bool(queued.creation.inputs)),
        created_at=now,
        updated_at=now,
    )
