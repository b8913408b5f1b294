"""Recording requests, and waiting for the images that generation workers make of them; once for each request.

A request is recorded before anything else is done for it. So whatever is cut off where, the record says whether the
provider may have generated, and billed, an image; and then nothing is submitted again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pixyproxy.core.call import CallScope
from pixyproxy.core.error_records import from_record
from pixyproxy.core.exceptions import (
    CallerGoneError,
    ConstraintViolationError,
    InvalidFieldError,
    OutcomeUnknownError,
    PixyProxyException,
    ProviderTimeoutError,
    RequestIdReusedError,
    TooBusyError,
)
from pixyproxy.core.models import (
    TRANSPARENT_RULE,
    Caller,
    GenerationDefaults,
    GenerationOptions,
    Image,
    ImageCreation,
    can_show,
)
from pixyproxy.core.request_context import call_id
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.generations import (
    Generation,
    GenerationRepository,
    GenerationState,
    RequestContext,
)
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.transactions import in_transaction
from pixyproxy.service.creation.rate_limiter import RateLimiter
from pixyproxy.service.creation.storing import ImageStoring
from pixyproxy.service.creation.waiting import WaitingCalls

_MAY_BE_QUEUED = (GenerationState.FAILED, GenerationState.RECORDED)


class ImageCreator:
    """Records requests, each once, and waits for their images."""

    def __init__(
        self,
        database: Database,
        storing: ImageStoring,
        waiting: WaitingCalls,
        *,
        defaults: GenerationDefaults,
        require_hope: Callable[[], None],
        limiter: RateLimiter | None,
        trace_headers: Callable[[], Mapping[str, str]],
        on_record: Callable[[], object],
    ) -> None:
        """Record nothing yet.

        Args:
            database: where generations are recorded.
            storing: commits what a process that died has stored.
            waiting: waits for generations.
            defaults: what to generate where a request leaves it open.
            require_hope: raises where nothing is submitted for a while.
            limiter: limits submissions, or None.
            trace_headers: gives what makes others' work a part of the running call's trace.
            on_record: is called when there is something to claim.
        """
        self._database = database
        self._storing = storing
        self._waiting = waiting
        self._defaults = defaults
        self._require_hope = require_hope
        self._limiter = limiter
        self._trace_headers = trace_headers
        self._on_record = on_record

    def create(self, creation: ImageCreation, author: Caller, call: CallScope) -> Image:
        """Return the image of a request, once it is there. Raises as ``ImageServiceInterface.create_image``."""
        fingerprint = _fingerprint(creation)
        while True:
            generation = self._find(creation, author, fingerprint)
            if generation is None or self._may_be_queued(generation):
                generation = self._queue(generation, creation, author, call, fingerprint)
            if generation is None:
                continue  # Another call was faster: join its generation.
            if generation.state is GenerationState.SUCCEEDED:
                return self._get(generation, author)
            ended = self._wait_for(generation, call)
            if ended.error is None:
                return self._get(ended, author)
            error = from_record(ended.error)
            if not isinstance(error, CallerGoneError):
                raise error
            # It was given up by the call that had recorded it, and this one still waits.

    # --- Which generation is it? ---------------------------------------------------------------------------------

    def _find(self, creation: ImageCreation, author: Caller, fingerprint: str) -> Generation | None:
        """Return the generation that was recorded under the request id, or None."""
        if creation.request_id is None:
            return None
        with self._database.reading() as context:
            generation = GenerationRepository(context).find(author.user_id, creation.request_id)
        if generation is not None and generation.fingerprint != fingerprint:
            raise RequestIdReusedError("This request_id was used for another request; use a new one for a new request.")
        return generation

    def _get(self, generation: Generation, author: Caller) -> Image:
        with self._database.reading() as context:
            return ImageRepository(context).get(generation.image_guid, author)

    def _may_be_queued(self, generation: Generation) -> bool:
        """Tell whether a generation is to be queued again.

        Raises:
            OutcomeUnknownError: it must not be, ever.
        """
        if generation.is_leased or generation.state in (GenerationState.QUEUED, GenerationState.SUCCEEDED):
            return False
        # Also where nothing was submitted: a database that was restored from a backup knows less than the store.
        if self._storing.rescue(generation):
            return False
        if generation.state is GenerationState.OUTCOME_UNKNOWN:
            raise _outcome_unknown()
        return generation.state in _MAY_BE_QUEUED

    # --- Record --------------------------------------------------------------------------------------------------

    def _queue(
        self, generation: Generation | None, creation: ImageCreation, author: Caller, call: CallScope, fingerprint: str
    ) -> Generation | None:
        """Queue a request, for the first time or again; return None where another call was faster."""
        self._check_with_defaults(creation.options)
        self._require_hope()
        self._require_time(author, call)
        recorded = self._record(generation, creation, author, self._context_of(call), fingerprint)
        if recorded is not None:
            self._on_record()
        return recorded

    def _check_with_defaults(self, options: GenerationOptions) -> None:
        """Check what no request can be blamed for alone: its choices together with the defaults."""
        output_format = options.output_format or self._defaults.output_format
        if not can_show(options.background or self._defaults.background, output_format):
            raise InvalidFieldError.of(
                "options.background", f"{TRANSPARENT_RULE}; what is left open here is the server's default"
            )

    def _require_time(self, author: Caller, call: CallScope) -> None:
        """Check that the request can be submitted before the caller stops waiting."""
        if call.is_over:
            raise _not_submitted()
        remaining = call.remaining()
        if self._limiter is None or remaining is None:
            return
        with self._database.reading() as context:
            queued = GenerationRepository(context).count_queued()
        # Authors are served in turn: each other one has at most as many before this request as its author.
        own = queued.pop(author.user_id, 0)
        wait = self._limiter.wait_for(own + sum(min(count, own + 1) for count in queued.values()))
        if wait > remaining:
            raise TooBusyError(
                "More images are queued than may be submitted within the call's deadline.", retry_after=wait
            )

    def _record(
        self,
        generation: Generation | None,
        creation: ImageCreation,
        author: Caller,
        context_of_call: RequestContext,
        fingerprint: str,
    ) -> Generation | None:
        if generation is None:
            try:
                return in_transaction(
                    self._database,
                    lambda context: GenerationRepository(context).insert(
                        creation, author.user_id, fingerprint, context_of_call
                    ),
                )
            except ConstraintViolationError:
                if creation.request_id is None:
                    raise
                return None
        return in_transaction(
            self._database,
            lambda context: GenerationRepository(context).queue_again(generation, creation, context_of_call),
        )

    def _context_of(self, call: CallScope) -> RequestContext:
        remaining = call.remaining()
        return RequestContext(
            call_id=call_id.get(),
            trace_headers=self._trace_headers(),
            deadline_at=None if remaining is None else datetime.now(UTC) + timedelta(seconds=remaining),
        )

    # --- Wait ----------------------------------------------------------------------------------------------------

    def _wait_for(self, generation: Generation, call: CallScope) -> Generation:
        try:
            ended = self._waiting.wait_for(generation, call)
        except PixyProxyException as error:
            self._give_up(generation, error)
            raise
        if ended is None:
            raise _not_submitted() if self._give_up(generation, _caller_gone()) else _still_generating()
        return ended

    def _give_up(self, generation: Generation, error: PixyProxyException) -> bool:
        """End a generation that nobody waits for any more and that was not submitted yet; return whether it is so."""
        if self._waiting.is_waited_for(generation.id):
            return False
        queued = replace(generation, state=GenerationState.QUEUED)
        return in_transaction(
            self._database, lambda context: GenerationRepository(context).end(queued, GenerationState.FAILED, error)
        )


def _fingerprint(creation: ImageCreation) -> str:
    """Hash everything that makes a request the same request, which is all of it but its id."""
    return hashlib.sha256(creation.model_dump_json(exclude={"request_id"}).encode()).hexdigest()


def _outcome_unknown() -> OutcomeUnknownError:
    return OutcomeUnknownError(
        "An earlier request under this request_id was submitted to the provider and cut off before its answer came. "
        "Whether it generated and billed an image is unknown; to try again, and perhaps pay again, use a new "
        "request_id."
    )


def _caller_gone() -> CallerGoneError:
    return CallerGoneError("The caller stopped waiting before the request was submitted; nothing was generated.")


def _not_submitted() -> ProviderTimeoutError:
    return ProviderTimeoutError("The deadline was reached before the request was submitted; nothing was generated.")


def _still_generating() -> ProviderTimeoutError:
    return ProviderTimeoutError(
        "The image is still being generated. It will be stored; the same request with the same request_id fetches it."
    )
