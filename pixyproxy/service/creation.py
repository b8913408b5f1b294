"""How an image comes about: recorded, generated, kept, entered; once for each request, whoever repeats it.

The generation is recorded before the provider is asked, and again when the request is sent. So whatever is cut off
where, what is written says whether the provider may have made, and billed, an image; and then nothing is sent again.

A generation runs in a thread of its own, which outlives its caller: what was sent is finished and stored even when the
caller has gone, and the same request id fetches it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from concurrent.futures import Future
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    ConflictError,
    ConstraintViolationError,
    DBConnectionError,
    InvalidFieldError,
    OutcomeUnknownError,
    PixyProxyException,
    ProviderError,
    ProviderModelUnknownError,
    ProviderRequestInvalidError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RequestIdReusedError,
    UnreadableAnswerError,
)
from pixyproxy.core.models import (
    TRANSPARENT_RULE,
    Caller,
    GenerationOptions,
    Image,
    ImageCreation,
    ImageDetail,
    can_show,
)
from pixyproxy.core.text import slug
from pixyproxy.data.database import Database
from pixyproxy.data.image_store import ImageStore
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, GenerationState
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.transactions import in_transaction
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, ImageGenerator
from pixyproxy.service.entry import ImageEntry
from pixyproxy.service.generation_slots import GenerationSlots
from pixyproxy.service.interfaces import ImageCreatorInterface
from pixyproxy.service.leases import LEASE, Leases
from pixyproxy.service.sweeper import Sweeper

_logger = logging.getLogger(__name__)

_EXTENSIONS = {"image/png": "png", "image/webp": "webp", "image/jpeg": "jpg"}
# Waiting for a generation that another thread or server works on: how often to look, at first and at most.
_FIRST_LOOK_SECONDS = 0.05
_LAST_LOOK_SECONDS = 1.0
# Entering a picture that is stored while the database is away: how often to try, and for how long with the caller
# waiting. After that the sweeper goes on trying.
_ENTER_RETRY_SECONDS = 0.25
_ENTER_SECONDS = 30.0


@dataclass(frozen=True)
class GenerationDefaults:
    """What to generate where a request leaves it open; see ``GenerationRequest``."""

    model: str
    size: str
    quality: str
    output_format: str
    background: str


@dataclass(frozen=True)
class _Job:
    """A generation that this process has taken on."""

    generation: Generation
    creation: ImageCreation
    author: Caller
    call: CallScope


class ImageCreator(ImageCreatorInterface):
    """Makes images in this process, each request once."""

    def __init__(
        self,
        database: Database,
        store: ImageStore,
        generator: ImageGenerator,
        *,
        defaults: GenerationDefaults,
        slots: GenerationSlots,
    ) -> None:
        """Start nothing yet.

        Args:
            database: where generations and images are entered.
            store: where the bytes go.
            generator: what makes pictures.
            defaults: what to make where a request leaves it open.
            slots: how many generations may be under way at a time; further ones are refused.
        """
        self._database = database
        self._store = store
        self._generator = generator
        self._defaults = defaults
        self._slots = slots
        self._entry = ImageEntry(database, store)
        self._leases = Leases(database)
        self._sweeper = Sweeper(self._entry)

    def start(self) -> None:
        """Begin to keep leases, and to finish what was left unfinished."""
        self._leases.start()
        self._sweeper.start()

    def create(self, creation: ImageCreation, author: Caller, call: CallScope) -> Image:  # noqa: D102  inherited
        fingerprint = _fingerprint(creation)
        look_again_in = _FIRST_LOOK_SECONDS
        while True:
            generation = self._find(creation, author, fingerprint)
            if generation is not None and generation.state is GenerationState.STORED:
                return self._get(generation, author)
            if generation is None or self._is_free(generation):
                job = self._take_on(generation, creation, author, call, fingerprint)
                if job is not None:
                    return self._wait_for(job, call)
            elif not call.wait(look_again_in):
                raise still_under_way()
            look_again_in = min(look_again_in * 1.5, _LAST_LOOK_SECONDS)

    def close(self) -> None:
        """Wait for the generations that are under way, then end."""
        self._slots.wait_until_free()
        self._sweeper.close()
        self._leases.close()

    # --- Which generation is it? ---------------------------------------------------------------------------------

    def _find(self, creation: ImageCreation, author: Caller, fingerprint: str) -> Generation | None:
        """Return the generation that was begun under the request id, or None."""
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

    def _is_free(self, generation: Generation) -> bool:
        """Whether a generation may be begun again.

        Raises:
            OutcomeUnknownError: it may not, ever.
        """
        if generation.is_under_way:
            return False
        # Also where nothing was sent: a database that was restored from a backup knows less than the store.
        if self._entry.rescue(generation):
            return False  # It is stored after all: look again.
        if generation.state in (GenerationState.SENT, GenerationState.UNKNOWN):
            if generation.state is GenerationState.SENT:
                self._move(generation, GenerationState.UNKNOWN)
            raise _outcome_unknown()
        return True

    def _take_on(
        self, generation: Generation | None, creation: ImageCreation, author: Caller, call: CallScope, fingerprint: str
    ) -> _Job | None:
        """Claim a generation for this thread; return None where another one was faster."""
        self._check_with_defaults(creation.options)
        self._slots.take()
        try:
            claimed = self._record(generation, creation, author, fingerprint)
        except BaseException:
            self._slots.give_back()
            raise
        if claimed is None:
            self._slots.give_back()
            return None
        return _Job(claimed, creation, author, call)

    def _check_with_defaults(self, options: GenerationOptions) -> None:
        """Check what no request can be blamed for alone: its choices together with the defaults."""
        output_format = options.output_format or self._defaults.output_format
        if not can_show(options.background or self._defaults.background, output_format):
            raise InvalidFieldError.of(
                "options.background", f"{TRANSPARENT_RULE}; what is left open here is the server's default"
            )

    def _record(
        self, generation: Generation | None, creation: ImageCreation, author: Caller, fingerprint: str
    ) -> Generation | None:
        try:
            return in_transaction(
                self._database,
                lambda context: (
                    GenerationRepository(context).insert(
                        author_id=author.user_id, request_id=creation.request_id, fingerprint=fingerprint, lease=LEASE
                    )
                    if generation is None
                    else GenerationRepository(context).take_over(generation, lease=LEASE)
                ),
            )
        except ConstraintViolationError:
            if creation.request_id is None:
                raise
            return None

    # --- Make it -------------------------------------------------------------------------------------------------

    def _wait_for(self, job: _Job, call: CallScope) -> Image:
        future = self._begin(job)
        is_over = threading.Event()
        future.add_done_callback(lambda _: is_over.set())
        call.on_leaving(is_over.set)
        is_over.wait(call.remaining())
        if not future.done():
            raise still_under_way()
        return future.result()

    def _begin(self, job: _Job) -> Future[Image]:
        future: Future[Image] = Future()
        # In a copy of this thread's context, so that its log lines carry the request's id. A daemon, because a process
        # that is told to end for the second time must end.
        context = copy_context()
        thread = threading.Thread(target=context.run, args=(self._run, job, future), name="generation", daemon=True)
        try:
            thread.start()
        except BaseException:
            self._slots.give_back()
            raise
        return future

    def _run(self, job: _Job, future: Future[Image]) -> None:
        try:
            image = self._make_in_slot(job)
        except BaseException as error:
            future.set_exception(error)
            if job.call.is_over:
                _logger.info("The generation ended without its caller: %s", type(error).__name__)
        else:
            future.set_result(image)

    def _make_in_slot(self, job: _Job) -> Image:
        try:
            with self._leases.held(job.generation.owner):
                return self._make(job)
        finally:
            self._slots.give_back()

    def _make(self, job: _Job) -> Image:
        generation = job.generation
        try:
            self._store.require_room(self._slots.taken)
            generation = self._sent(generation)
            picture = self._generator.generate(self._request_for(job), job.call)
        except UnreadableAnswerError as error:
            is_kept = self._entry.keep_aside(generation.image_guid, error.body)
            self._settle(generation, GenerationState.UNKNOWN)
            raise _unreadable(generation.image_guid, is_kept=is_kept) from error
        except ProviderError as error:
            self._settle(generation, GenerationState.UNKNOWN if error.may_have_billed else GenerationState.FAILED)
            if isinstance(error, ProviderModelUnknownError) and job.creation.options.model:
                raise ProviderRequestInvalidError("options.model", "The provider has no such model.") from error
            raise
        except PixyProxyException:
            # Refused by us, before anything reached the provider.
            self._settle(generation, GenerationState.FAILED)
            raise
        except Exception:
            # Not foreseen, so after sending nothing is known.
            is_sent = generation.state is GenerationState.SENT
            self._settle(generation, GenerationState.UNKNOWN if is_sent else GenerationState.FAILED)
            raise
        return self._keep(job, generation, picture)

    def _sent(self, generation: Generation) -> Generation:
        sent = self._move(generation, GenerationState.SENT)
        if sent is None:
            raise ConflictError("Another server has taken over this request; try again.", retry_after=1.0)
        return sent

    def _request_for(self, job: _Job) -> GenerationRequest:
        options: GenerationOptions = job.creation.options
        return GenerationRequest(
            prompt=job.creation.detail.prompt,
            model=options.model or self._defaults.model,
            size=options.size or self._defaults.size,
            quality=options.quality or self._defaults.quality,
            output_format=options.output_format or self._defaults.output_format,
            background=options.background or self._defaults.background,
            author_guid=job.author.guid,
        )

    def _keep(self, job: _Job, generation: Generation, picture: GeneratedImage) -> Image:
        """Keep a picture that was paid for, and enter it."""
        try:
            with closing(picture):
                detail = _detail_of(job, generation, picture)
                self._entry.keep(detail, picture.data)
        except Exception:
            self._settle(generation, GenerationState.UNKNOWN)
            raise
        give_up_at = time.monotonic() + _ENTER_SECONDS
        while True:
            try:
                return self._entry.enter(generation, detail)
            except (DBConnectionError, ConflictError) as error:
                _logger.warning("The database is away; the image %s is stored and waits to be entered.", detail.guid)
                if time.monotonic() > give_up_at or not job.call.wait(_ENTER_RETRY_SECONDS):
                    self._sweeper.sweep_soon()
                    raise _stored_but_not_entered() from error

    # --- Write down how far it has come --------------------------------------------------------------------------

    def _move(self, generation: Generation, state: GenerationState) -> Generation | None:
        """Bring a generation into another state with a new lease; return None where it is not as it was read."""
        return in_transaction(
            self._database, lambda context: GenerationRepository(context).move(generation, state, lease=LEASE)
        )

    def _settle(self, generation: Generation, state: GenerationState) -> None:
        """Write down how a generation ended, as well as that can be done: its lease ends it in any case."""
        try:
            if self._move(generation, state) is None and generation.state is GenerationState.RECORDED:
                # Noted as sent by a commit whose answer was lost; but nothing was sent.
                self._move(replace(generation, state=GenerationState.SENT), state)
        except PixyProxyException as error:
            _logger.warning("The end of generation %d could not be written down: %s", generation.id, error.message)


def _detail_of(job: _Job, generation: Generation, picture: GeneratedImage) -> ImageDetail:
    now = datetime.now(UTC)
    asked = job.creation.detail
    return ImageDetail(
        guid=generation.image_guid,
        prompt=asked.prompt,
        filename=asked.filename or _filename_for(asked.prompt, picture.content_type),
        tags=asked.tags,
        visibility=asked.visibility,
        author=job.author.username,
        content_type=picture.content_type,
        size_bytes=len(picture.data),
        sha256=hashlib.sha256(picture.data).hexdigest(),
        width=picture.width,
        height=picture.height,
        model=picture.model,
        usage=picture.usage,
        created_at=now,
        updated_at=now,
    )


def _filename_for(prompt: str, content_type: str) -> str:
    return f"{slug(prompt) or 'image'}.{_EXTENSIONS[content_type]}"


def _fingerprint(creation: ImageCreation) -> str:
    """Hash everything that makes a request the same request, which is all of it but its id."""
    return hashlib.sha256(creation.model_dump_json(exclude={"request_id"}).encode()).hexdigest()


def _outcome_unknown() -> OutcomeUnknownError:
    return OutcomeUnknownError(
        "An earlier request under this request_id was sent to the provider and cut off before its answer came. "
        "Whether it made and billed an image is not known; to try again, and perhaps pay again, use a new request_id."
    )


def _unreadable(guid: str, *, is_kept: bool) -> ProviderUnavailableError:
    # Another one than the generator's, whose body is not for callers.
    where = f" The answer is kept for the server's operator under the guid {guid}." if is_kept else ""
    return ProviderUnavailableError(
        f"The image provider's answer holds no image that can be read.{where}", may_have_billed=True
    )


def _stored_but_not_entered() -> DBConnectionError:
    return DBConnectionError(
        "The image is made and stored, and will be found once the database is back; the same request with the same "
        "request_id fetches it.",
        retry_after=1.0,
    )


def still_under_way() -> ProviderTimeoutError:
    """Return the error for callers whose time is over before the image is there."""
    return ProviderTimeoutError(
        "The image is still being generated. It will be stored; the same request with the same request_id fetches it."
    )
