"""Records requests, each once, and waits for the images that generation workers generate.

A request is recorded before anything else is done for it. So after any interruption the record says whether the
provider may have generated and billed an image; if so, nothing is submitted again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pixyproxy.core.call import CallScope
from pixyproxy.core.error_records import from_record
from pixyproxy.core.exceptions import (
    CallerGoneError,
    ConstraintViolationError,
    CredentialsInvalidError,
    FieldViolation,
    InvalidFieldError,
    OutcomeUnknownError,
    PixyProxyException,
    ProviderTimeoutError,
    RequestIdReusedError,
    TooBusyError,
)
from pixyproxy.core.fields import GenerationState
from pixyproxy.core.models import Caller, GenerationDefaults, Image, ImageCreation
from pixyproxy.core.provider_limits import (
    background_problem,
    compression_problem,
    fidelity_problem,
    has_documented_sizes,
    quality_problem,
    size_problem,
)
from pixyproxy.core.request_context import call_id
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.generations import (
    Generation,
    GenerationRepository,
    RequestContext,
)
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.transactions import in_transaction
from pixyproxy.service.creation.inputs import pin_inputs
from pixyproxy.service.creation.rate_limiter import RateLimiter
from pixyproxy.service.creation.storing import ImageStoring
from pixyproxy.service.creation.waiting import WaitingCalls
from pixyproxy.service.quotas import Quotas

_NEEDS_NO_RESCUE = (GenerationState.QUEUED, GenerationState.SUCCEEDED)
_RUNNING = (GenerationState.QUEUED, GenerationState.SUBMITTED)


class ImageCreator:
    """Records requests, each once, and waits for their images."""

    def __init__(
        self,
        database: Database,
        storing: ImageStoring,
        waiting: WaitingCalls,
        *,
        defaults: GenerationDefaults,
        quotas: Quotas,
        require_closed: Callable[[], None],
        limiter: RateLimiter | None,
        trace_headers: Callable[[], Mapping[str, str]],
        on_record: Callable[[], object],
        max_queued: int,
        allows_low_moderation: bool = True,
    ) -> None:
        """Initialize without recording anything.

        Args:
            database: where generations are recorded.
            storing: commits stored images whose worker has ended.
            waiting: waits for generations.
            defaults: the options that a request leaves open.
            quotas: limits what authors spend.
            require_closed: raises while nothing is submitted because the provider is down.
            limiter: limits submissions, or None.
            trace_headers: returns the headers that continue the trace of the running call.
            on_record: called when a request is recorded.
            max_queued: the number of queued generations, in all, at which ``start`` refuses further ones, but for
                authors who have less than their share of it.
            allows_low_moderation: whether a request may ask for low moderation.
        """
        self._database = database
        self._storing = storing
        self._waiting = waiting
        self._defaults = defaults
        self._quotas = quotas
        self._require_closed = require_closed
        self._limiter = limiter
        self._trace_headers = trace_headers
        self._on_record = on_record
        self._max_queued = max_queued
        self._allows_low_moderation = allows_low_moderation

    def create(self, creation: ImageCreation, author: Caller, call: CallScope) -> Image:
        """Return the image of a request once it is committed. Raises as ``ImageServiceInterface.create_image``."""
        fingerprint = _fingerprint(creation)
        while True:
            generation = self._find_rescued(creation, author, fingerprint)
            if generation is None or _may_be_queued(generation):
                pinned = self._checked(creation, author)
                self._require_closed()
                self._require_time(author, call)
                generation = self._record(generation, pinned, author, self._context_of(call), fingerprint)
            if generation is None:
                continue  # Another call recorded it: join its generation.
            if generation.state is GenerationState.SUCCEEDED:
                return self._get(generation, author)
            if generation.state is GenerationState.OUTCOME_UNKNOWN:
                raise OutcomeUnknownError.after(
                    "An earlier request with this request_id was submitted to the provider and interrupted before its "
                    "answer came."
                )
            ended = self._wait_for(generation, call)
            if ended.error is None:
                return self._get(ended, author)
            error = from_record(ended.error)
            if not isinstance(error, CallerGoneError):
                raise error
            # The call that recorded it gave it up, but this one still waits.

    def start(self, creation: ImageCreation, author: Caller) -> Generation:
        """Record a request whose generation is detached, or return the generation of its request id.

        Raises as ``GenerationService.create_generation``.
        """
        fingerprint = _fingerprint(creation)
        while True:
            generation = self._find_rescued(creation, author, fingerprint)
            if generation is None or _may_be_queued(generation):
                pinned = self._checked(creation, author)
                self._require_room(author)
                context = replace(self._context_of(CallScope()), is_detached=True)
                generation = self._record(generation, pinned, author, context, fingerprint)
            elif generation.state in _RUNNING and not self._detach(generation):
                continue  # It has ended meanwhile.
            if generation is not None:
                return generation

    # --- Which generation is it? ---------------------------------------------------------------------------------

    def _find(self, creation: ImageCreation, author: Caller, fingerprint: str) -> Generation | None:
        """Return the generation that was recorded under the request id, or None."""
        if creation.request_id is None:
            return None
        with self._database.reading() as context:
            generation = GenerationRepository(context).find(author.user_id, creation.request_id)
        if generation is not None and generation.fingerprint != fingerprint:
            raise RequestIdReusedError
        return generation

    def _find_rescued(self, creation: ImageCreation, author: Caller, fingerprint: str) -> Generation | None:
        """Return what ``_find`` does, after committing an image that a worker that has ended may have stored."""
        generation = self._find(creation, author, fingerprint)
        if generation is None or generation.is_leased or generation.state in _NEEDS_NO_RESCUE:
            return generation
        # Also if nothing was submitted: a database restored from a backup can be older than the store.
        self._storing.rescue(generation)
        return self._find(creation, author, fingerprint)

    def _get(self, generation: Generation, author: Caller) -> Image:
        with self._database.reading() as context:
            return ImageRepository(context).get(generation.image_guid, author)

    # --- Record --------------------------------------------------------------------------------------------------

    def _checked(self, creation: ImageCreation, author: Caller) -> ImageCreation:
        """Return a request with pinned inputs, if its options go together and its author's quotas are not used up."""
        violations = [FieldViolation(f"options.{name}", problem) for name, problem in self._problems_of(creation)]
        if violations:
            raise InvalidFieldError(violations)
        self._quotas.require_left(creation, author)
        return pin_inputs(self._database, creation, author)

    def _problems_of(self, creation: ImageCreation) -> Iterator[tuple[str, str]]:
        """Yield options by name, with the rules that they break together with the defaults and the inputs."""
        options = creation.options
        chosen = self._defaults.under(options)
        output_format, model = chosen["output_format"], chosen["model"]
        # An option, another one with which it may break a rule, and that rule, or None.
        for name, other, problem in (
            ("background", "output_format", background_problem(chosen["background"], output_format)),
            ("output_compression", "output_format", compression_problem(options.output_compression, output_format)),
            ("size", "model", size_problem(chosen["size"]) if has_documented_sizes(model) else None),
            ("quality", "model", quality_problem(chosen["quality"], model)),
        ):
            if problem is not None:
                defaults = [one for one in (name, other) if getattr(options, one) is None]
                told = [f"; the default {default.replace('_', ' ')} is {chosen[default]}" for default in defaults]
                yield name, problem + "".join(told)
        if options.moderation == "low" and not self._allows_low_moderation:
            yield "moderation", "the operator of this server does not allow low"
        if options.moderation is not None and creation.inputs:
            yield "moderation", "cannot be chosen for edits; leave it out, or the inputs"
        if options.input_fidelity is not None and not creation.inputs:
            yield "input_fidelity", "needs at least one image in inputs"
        problem = fidelity_problem(model)
        if options.input_fidelity is not None and problem is not None:
            yield "input_fidelity", problem

    def _require_room(self, author: Caller) -> None:
        with self._database.reading() as context:
            queued = {author.user_id: 0} | GenerationRepository(context).count_queued()
        has_share = queued[author.user_id] >= self._max_queued // len(queued)
        if sum(queued.values()) >= self._max_queued and has_share:
            raise TooBusyError(f"Too many generations are queued (limit {self._max_queued:,}).", retry_after=60.0)

    def _detach(self, generation: Generation) -> bool:
        return in_transaction(self._database, lambda context: GenerationRepository(context).detach(generation.id))

    def _require_time(self, author: Caller, call: CallScope) -> None:
        """Check that the request can be submitted before the caller stops waiting."""
        if call.is_over:
            raise _not_submitted()
        remaining = call.remaining()
        if self._limiter is None or remaining is None:
            return
        with self._database.reading() as context:
            queued = GenerationRepository(context).count_queued()
        # Authors are served in turn: at most own + 1 requests of each other author precede this one.
        own = queued.pop(author.user_id, 0)
        wait = self._limiter.wait_for(own + sum(min(count, own + 1) for count in queued.values()))
        if wait > remaining:
            raise TooBusyError(
                "Too many images are queued: this one cannot be submitted before the call's deadline.", retry_after=wait
            )

    def _record(
        self,
        generation: Generation | None,
        creation: ImageCreation,
        author: Caller,
        context_of_call: RequestContext,
        fingerprint: str,
    ) -> Generation | None:
        """Record a request, for the first time or again; return None if another call did so first."""

        def record(context: DatabaseContext) -> Generation | None:
            generations = GenerationRepository(context)
            if generation is None:
                return generations.insert(creation, author.user_id, fingerprint, context_of_call)
            return generations.queue_again(generation, creation, context_of_call)

        try:
            recorded = in_transaction(self._database, record)
        except ConstraintViolationError as error:
            if self._find(creation, author, fingerprint) is None:
                raise CredentialsInvalidError("The user has been removed.") from error
            return None
        if recorded is not None:
            self._on_record()
        return recorded

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
            if self._give_up(generation, error) or self._is_queued(generation):
                raise
            # It was claimed, or has ended, since the error: the caller must not be told that it was not submitted.
            return self._wait_for(generation, call)
        if ended is None:
            raise _not_submitted() if self._give_up(generation, _caller_gone()) else _still_generating()
        return ended

    def _give_up(self, generation: Generation, error: PixyProxyException) -> bool:
        """End a generation if it is still queued and no call of this process waits for it; return whether it ended."""
        if self._waiting.is_waited_for(generation.id):
            return False
        queued = replace(generation, state=GenerationState.QUEUED)
        return in_transaction(
            self._database,
            lambda context: GenerationRepository(context).end(
                queued, GenerationState.FAILED, error, unless_detached=True
            ),
        )

    def _is_queued(self, generation: Generation) -> bool:
        with self._database.reading() as context:
            [now] = GenerationRepository(context).get_several([generation.id])
        return now.state is GenerationState.QUEUED


def _may_be_queued(generation: Generation) -> bool:
    """Tell whether a generation may be queued again: it has cost nothing."""
    return generation.state in (GenerationState.FAILED, GenerationState.RECORDED) and not generation.is_leased


def _fingerprint(creation: ImageCreation) -> str:
    """Return a hash of all fields of a request but its id; equal requests have equal ones.

    It is that of the request before its inputs are pinned: a repetition finds its generation although an input was
    deleted since.
    """
    return hashlib.sha256(creation.model_dump_json(exclude={"request_id"}).encode()).hexdigest()


def _caller_gone() -> CallerGoneError:
    return CallerGoneError("The caller stopped waiting before the request was submitted; nothing was generated.")


def _not_submitted() -> ProviderTimeoutError:
    return ProviderTimeoutError("The deadline was reached before the request was submitted; nothing was generated.")


def _still_generating() -> ProviderTimeoutError:
    return ProviderTimeoutError(
        "The image is still being generated, and will be stored. Repeat the request with the same request_id to get it."
    )
