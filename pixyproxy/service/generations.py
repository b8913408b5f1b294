"""Generations as a resource: the progress and the outcome of recorded requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    AlreadySubmittedError,
    GenerationCancelledError,
    GenerationNotFoundError,
    InvalidFieldError,
    ProviderTimeoutError,
)
from pixyproxy.core.fields import GenerationState
from pixyproxy.core.models import (
    Caller,
    GenerationDetail,
    GenerationKey,
    GenerationPage,
    GenerationPageRequest,
    ImageCreation,
    PagePosition,
    PartialImage,
)
from pixyproxy.core.validation import validated, validated_guid
from pixyproxy.data.database import Database
from pixyproxy.data.gathering import GatheredReads
from pixyproxy.data.repositories.generation_details import GenerationDetailRepository
from pixyproxy.data.repositories.generations import GenerationRepository
from pixyproxy.data.transactions import in_transaction
from pixyproxy.service.creation.recording import ImageCreator
from pixyproxy.service.creation.waiting import WaitingCalls
from pixyproxy.service.page_tokens import PageTokens
from pixyproxy.service.pages import read_page
from pixyproxy.service.private_images import signed_in

# What a generation takes in a serialized page beside its prompts, names and error: guids, times, options.
_FIXED_BYTES = 4096


class GenerationService:
    """All that can be done with generations. Requests are validated again, even if the caller already did.

    Every method may raise ``InvalidFieldError``, ``DBConnectionError``, ``CredentialsMissingError`` where nobody is
    signed in, and ``GenerationNotFoundError`` where there is no such generation or the caller may not see it.
    """

    def __init__(
        self,
        database: Database,
        creator: ImageCreator,
        waiting: WaitingCalls,
        page_tokens: PageTokens,
        on_cancel: Callable[[int], object],
    ) -> None:
        """Initialize; ``on_cancel`` is called with the id of each generation that was cancelled."""
        self._database = database
        self._creator = creator
        self._waiting = waiting
        self._page_tokens = page_tokens
        self._on_cancel = on_cancel
        # Any number of watchers of a generation share queries.
        self._details = GatheredReads(self._get_details)
        self._partials = GatheredReads(self._get_partials)

    def create_generation(self, creation: ImageCreation, caller: Caller | None) -> GenerationDetail:
        """Record a request, and return its generation at once.

        Raises:
            ImageNotFoundError: an input does not exist, or the caller may not see it.
            PriceUnknownError: the costs of the author are limited, and that of the request is unknown.
            QuotaExhaustedError: a quota of the author is used up.
            RequestIdReusedError: the request id was used for another request.
            TooBusyError: too many generations are queued.
        """
        author = signed_in(caller)
        return self._detail(self._creator.start(validated(ImageCreation, creation), author).id)

    def get_generation(self, key: GenerationKey, caller: Caller | None) -> GenerationDetail:
        """Return one generation."""
        return self._find(key, signed_in(caller))

    def get_all_generations(self, request: GenerationPageRequest, caller: Caller | None) -> GenerationPage:
        """Return a page of the generations that match a filter, newest first."""
        author = signed_in(caller)
        request = validated(GenerationPageRequest, request)
        token = request.page_token
        start = None if token is None else self._page_tokens.open(token, request.filter, author)
        with self._database.reading() as context:
            generations = GenerationDetailRepository(context)
            page, end = read_page(
                lambda limit, after: (generations.get_page(request.filter, author, limit=limit, after=after), None),
                page_size=request.page_size,
                after=start,
                position_of=lambda found: PagePosition(found.created_at, found.id),
                bytes_of=_bytes_in_page,
            )
        token = None if end is None else self._page_tokens.seal(end, request.filter, author)
        return GenerationPage.model_construct(generations=tuple(page), next_page_token=token)

    def watch_generation(
        self, key: GenerationKey, caller: Caller | None, call: CallScope
    ) -> Iterator[GenerationDetail | PartialImage]:
        """Return what becomes of a generation: as it is now, then after every change, to the end, and partial images.

        Raises:
            ProviderTimeoutError: the call's deadline comes before the generation has ended.
        """
        found = self._find(key, signed_in(caller))
        return self._watch(found.id, call)

    def cancel_generation(self, guid: str, caller: Caller | None) -> GenerationDetail:
        """Cancel a queued generation, and return it.

        Raises:
            AlreadySubmittedError: it is no longer queued.
        """
        canceller = signed_in(caller)
        found = self._find(GenerationKey(guid=validated_guid(guid)), canceller)
        error = GenerationCancelledError("The generation was cancelled before it was submitted; nothing was generated.")
        is_cancelled = in_transaction(
            self._database,
            lambda context: GenerationRepository(context).cancel(found.id, error, canceller.username),
        )
        if is_cancelled:
            self._on_cancel(found.id)
        detail = self._detail(found.id)
        if detail.state is not GenerationState.CANCELLED:
            raise AlreadySubmittedError("The generation is no longer queued, so it cannot be cancelled.")
        return detail

    def end_watches(self) -> None:
        """End all watches, which fail with ``ServerStoppingError``."""
        self._waiting.end_watches()

    # --- Read ----------------------------------------------------------------------------------------------------

    def _find(self, key: GenerationKey, caller: Caller) -> GenerationDetail:
        key = validated(GenerationKey, key)
        if (key.guid is None) == (key.request_id is None):
            raise InvalidFieldError.of("key", "must be either a guid or a request_id")
        with self._database.reading() as context:
            found = GenerationDetailRepository(context).find(key, caller)
        if found is None:
            raise GenerationNotFoundError(key.guid or key.request_id or "")
        return found

    def _detail(self, generation_id: int) -> GenerationDetail:
        found = self._details.get(generation_id)
        if found is None:
            raise GenerationNotFoundError("")
        return found

    def _get_details(self, ids: Sequence[int]) -> list[GenerationDetail | None]:
        with self._database.reading() as context:
            return GenerationDetailRepository(context).get_several(ids)

    def _get_partials(self, wanted: Sequence[tuple[int, int]]) -> list[PartialImage | None]:
        with self._database.reading() as context:
            return GenerationDetailRepository(context).get_partials(wanted)

    # --- Watch ---------------------------------------------------------------------------------------------------

    def _watch(self, generation_id: int, call: CallScope) -> Iterator[GenerationDetail | PartialImage]:
        shown: tuple[GenerationState, int] | None = None
        next_partial = 0
        with self._waiting.watching(generation_id, call) as watcher:
            while True:
                detail = self._detail(generation_id)
                if shown is None and not detail.state.is_final:
                    shown = _progress_of(detail)
                    yield detail
                if shown is not None:
                    places = [(generation_id, index) for index in range(next_partial, detail.partials)]
                    yield from filter(None, map(self._partials.get, places))
                    next_partial = detail.partials
                if shown != _progress_of(detail):
                    shown = _progress_of(detail)
                    yield detail
                if detail.state.is_final:
                    return
                if not watcher.wait():
                    if call.remaining() == 0.0:
                        raise ProviderTimeoutError(
                            "The deadline was reached before the generation ended. It goes on; watch it again."
                        )
                    return  # The caller has gone.


def _progress_of(detail: GenerationDetail) -> tuple[GenerationState, int]:
    return detail.state, detail.attempts


def _bytes_in_page(detail: GenerationDetail) -> int:
    """Return how many bytes a generation takes in a serialized page at most: its prompt may be there twice."""
    shown = [detail.creation.detail] if detail.creation is not None else []
    shown += [detail.image] if detail.image is not None else []
    texts = [text for one in shown for text in (one.prompt, one.filename or "", *one.tags)]
    return _FIXED_BYTES + len(detail.error or "") + sum(len(text.encode()) + 4 for text in texts)
