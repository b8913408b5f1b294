"""Reading images, which needs no credentials. The caller determines which images are visible."""

from __future__ import annotations

from collections.abc import Sequence

from pixyproxy.core.exceptions import ContentDamagedError, ImageNotFoundError, OffsetOutOfRangeError
from pixyproxy.core.models import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_BYTES,
    Caller,
    ContentRequest,
    Image,
    ImagePage,
    ImagePageRequest,
)
from pixyproxy.core.validation import validated, validated_guid
from pixyproxy.data.database import Database
from pixyproxy.data.gathering import GatheredReads
from pixyproxy.data.repositories.image_conditions import ImagePosition
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.stores.image_store import ContentReader, ImageStore
from pixyproxy.service.content import ImageContent, TrustedContents, damaged
from pixyproxy.service.page_tokens import PageTokens

# Images read by one query. A page of the default size takes one query. So does a page of 200 with the longest prompts,
# which then reads 6 MiB of prompts instead of 25.
_IMAGES_A_QUERY = DEFAULT_PAGE_SIZE + 1
# The size of an image in a serialized page without its prompt, filename, author and tags (at most 361 bytes, with the
# page token), and the overhead of each of these fields.
_FIXED_BYTES = 512
_FIELD_BYTES = 4


class PublicImageService:
    """The reading methods of ``ImageServiceInterface``, which documents them."""

    def __init__(self, database: Database, store: ImageStore, page_tokens: PageTokens) -> None:
        self._database = database
        self._store = store
        self._page_tokens = page_tokens
        self._single_images = GatheredReads(self._get_several)
        self._trusted = TrustedContents()

    def get_image_by_guid(self, guid: str, caller: Caller | None) -> Image:  # noqa: D102
        guid = validated_guid(guid)
        image = self._single_images.get((guid, caller))
        if image is None:
            raise ImageNotFoundError(guid)
        return image

    def get_all_images(self, request: ImagePageRequest, caller: Caller | None) -> ImagePage:  # noqa: D102
        request = validated(ImagePageRequest, request)
        after = None
        if request.page_token is not None:
            after = self._page_tokens.open(request.page_token, request.filter, caller)
        images, has_more = self._read_page(request, caller, after)
        token = None
        if has_more:
            token = self._page_tokens.seal(_position_of(images[-1]), request.filter, caller)
        return ImagePage.model_construct(images=tuple(images), next_page_token=token)

    def get_image_file(self, request: ContentRequest, caller: Caller | None) -> ImageContent:  # noqa: D102
        request = validated(ContentRequest, request)
        image = self.get_image_by_guid(request.guid, caller)
        if (request.if_none_match or "").lower() == image.sha256:
            return ImageContent(image)
        if request.read_offset > image.size_bytes:
            raise OffsetOutOfRangeError(
                f"read_offset is {request.read_offset:,}, beyond the image's {image.size_bytes:,} bytes."
            )
        reader = self._open(image, caller)
        count = image.size_bytes - request.read_offset
        if request.read_limit:
            count = min(count, request.read_limit)
        return ImageContent(image, reader, offset=request.read_offset, count=count, trusted=self._trusted)

    def _get_several(self, wanted: Sequence[tuple[str, Caller | None]]) -> list[Image | None]:
        with self._database.reading() as context:
            return ImageRepository(context).get_several(wanted)

    def _read_page(
        self, request: ImagePageRequest, caller: Caller | None, after: ImagePosition | None
    ) -> tuple[list[Image], bool]:
        """Return the images of a page, and whether there are more."""
        images: list[Image] = []
        size = 0
        with self._database.reading() as context:
            repository = ImageRepository(context)
            while True:
                # One more than requested shows whether there is another page.
                limit = min(_IMAGES_A_QUERY, request.page_size + 1 - len(images))
                found = repository.get_page(request.filter, caller, limit=limit, after=after)
                for image in found:
                    size += _bytes_in_page(image)
                    if len(images) == request.page_size or (images and size > MAX_PAGE_BYTES):
                        return images, True
                    images.append(image)
                if len(found) < limit:
                    return images, False
                after = _position_of(found[-1])

    def _open(self, image: Image, caller: Caller | None) -> ContentReader:
        try:
            reader = self._store.open(image.guid)
        except ContentDamagedError:
            # If the image was deleted meanwhile, this raises ImageNotFoundError; otherwise its bytes are missing.
            self.get_image_by_guid(image.guid, caller)
            raise
        if reader.size != image.size_bytes:
            reader.close()
            raise damaged()
        return reader


def _position_of(image: Image) -> ImagePosition:
    return ImagePosition(image.created_at, image.id)


def _bytes_in_page(image: Image) -> int:
    """Return an upper bound of the size of an image in a serialized page, in bytes."""
    texts = (image.prompt, image.filename, image.author, *image.tags)
    return _FIXED_BYTES + sum(_FIELD_BYTES + len(text.encode()) for text in texts)
