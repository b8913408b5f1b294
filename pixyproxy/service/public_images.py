"""Reading images, which needs no credentials. The caller determines which images are visible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import ContentUnreadableError, ImageNotFoundError, OffsetOutOfRangeError
from pixyproxy.core.models import (
    Caller,
    ContentRequest,
    Image,
    ImageFile,
    ImagePage,
    ImagePageRequest,
    PagePosition,
    Thumbnails,
    ThumbnailsRequest,
)
from pixyproxy.core.validation import validated, validated_guid
from pixyproxy.data.database import Database
from pixyproxy.data.gathering import GatheredReads
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.renditions import Rendition
from pixyproxy.data.stores.image_store import ContentReader, ImageStore
from pixyproxy.service.content import ImageContent, TrustedContents, damaged, log_damage
from pixyproxy.service.page_tokens import PageTokens
from pixyproxy.service.pages import read_page
from pixyproxy.service.renditions.requesting import RENDITION_TYPE, RenditionRequests, open_rendition
from pixyproxy.service.renditions.thumbnails import ThumbnailReader

# The size of an image in a serialized page without its prompt, filename, author, tags and sources (at most 600 bytes,
# with the page token), and the overhead of each of these fields.
_FIXED_BYTES = 768
_FIELD_BYTES = 4

_Wanted = tuple[str, Caller | None]
"""A guid, and who asks for it."""
Found = TypeVar("Found")


class PublicImageService:
    """The reading methods of ``ImageServiceInterface``, which documents them."""

    def __init__(
        self, database: Database, store: ImageStore, page_tokens: PageTokens, renditions: RenditionRequests
    ) -> None:
        self._database = database
        self._store = store
        self._renditions = renditions
        self._thumbnails = ThumbnailReader(database, store, renditions)
        self._page_tokens = page_tokens
        self._single_images = self._gathered(ImageRepository.get_several)
        self._single_files = self._gathered(ImageRepository.get_files)
        self._trusted = TrustedContents()

    def get_image_by_guid(self, guid: str, caller: Caller | None) -> Image:  # noqa: D102
        return _found(self._single_images, validated_guid(guid), caller)

    def get_all_images(self, request: ImagePageRequest, caller: Caller | None) -> ImagePage:  # noqa: D102
        request = validated(ImagePageRequest, request)
        token = request.page_token
        start = None if token is None else self._page_tokens.open(token, request.filter, caller)
        with self._database.reading() as context:
            images = ImageRepository(context)
            page, end = read_page(
                lambda limit, after: images.get_page(request.filter, caller, limit=limit, after=after),
                page_size=request.page_size,
                after=start,
                position_of=lambda image: PagePosition(image.created_at, image.id),
                bytes_of=_bytes_in_page,
            )
        token = None if end is None else self._page_tokens.seal(end, request.filter, caller)
        return ImagePage.model_construct(images=tuple(page), next_page_token=token)

    def get_image_file(self, request: ContentRequest, caller: Caller | None, call: CallScope) -> ImageContent:  # noqa: D102
        request = validated(ContentRequest, request)
        image = _found(self._single_files, request.guid, caller)
        if request.rendition is not None:
            return self._get_rendition(image, request, request.rendition, call)
        if _has_already(request, image):
            return ImageContent(image)
        count = _count_of(request, image)
        reader = self._open(image, caller)
        return ImageContent(image, reader, offset=request.read_offset, count=count, trusted=self._trusted)

    def _get_rendition(self, image: ImageFile, request: ContentRequest, edge: int, call: CallScope) -> ImageContent:
        rendition = self._renditions.get(image.guid, edge, call)
        shown = _shown(image, rendition)
        if _has_already(request, shown):
            return ImageContent(shown, rendition=edge)
        count = _count_of(request, shown)
        reader = open_rendition(self._store, rendition)
        if reader is None:
            rendition = self._renditions.get_again(rendition, call)
            shown = _shown(image, rendition)
            # A later release may make other bytes from the same image.
            count = _count_of(request, shown)
            reader = open_rendition(self._store, rendition)
            if reader is None:
                raise damaged()
        return ImageContent(
            shown,
            reader,
            offset=request.read_offset,
            count=count,
            trusted=self._trusted,
            rendition=edge,
            on_damage=partial(self._renditions.request_again, rendition),
        )

    def get_thumbnails(self, request: ThumbnailsRequest, caller: Caller | None, call: CallScope) -> Thumbnails:  # noqa: D102
        return self._thumbnails.read(validated(ThumbnailsRequest, request), caller, call)

    def _gathered(
        self, read: Callable[[ImageRepository, Sequence[_Wanted]], list[Found | None]]
    ) -> GatheredReads[_Wanted, Found | None]:
        def read_several(wanted: Sequence[_Wanted]) -> list[Found | None]:
            with self._database.reading() as context:
                return read(ImageRepository(context), wanted)

        return GatheredReads(read_several)

    def _open(self, image: ImageFile, caller: Caller | None) -> ContentReader:
        try:
            reader = self._store.open(image.guid)
            if reader.size != image.size_bytes:
                reader.close()
                raise damaged()
        except ContentUnreadableError as error:
            # If the image was deleted meanwhile, this raises ImageNotFoundError.
            _found(self._single_files, image.guid, caller)
            log_damage(image.guid, error)
            raise
        return reader


def _found(reads: GatheredReads[_Wanted, Found | None], guid: str, caller: Caller | None) -> Found:
    found = reads.get((guid, caller))
    if found is None:
        raise ImageNotFoundError(guid)
    return found


def _shown(image: ImageFile, rendition: Rendition) -> ImageFile:
    """Return an image with what differs in a rendition."""
    changes = {name: getattr(rendition, name) for name in ("size_bytes", "sha256", "width", "height")}
    return image.model_copy(update={**changes, "content_type": RENDITION_TYPE})


def _has_already(request: ContentRequest, image: ImageFile) -> bool:
    return (request.if_none_match or "").lower() == image.sha256


def _count_of(request: ContentRequest, image: ImageFile) -> int:
    """Return the number of bytes to read.

    Raises:
        OffsetOutOfRangeError: the offset is beyond the last byte.
    """
    if request.read_offset > image.size_bytes:
        raise OffsetOutOfRangeError(request.read_offset, image.size_bytes)
    count = image.size_bytes - request.read_offset
    return min(count, request.read_limit) if request.read_limit else count


def _bytes_in_page(image: Image) -> int:
    """Return an upper bound of the size of an image in a serialized page, in bytes."""
    texts = (image.prompt, image.filename, image.author, *image.tags, *image.source_guids)
    return _FIXED_BYTES + sum(_FIELD_BYTES + len(text.encode()) for text in texts)
