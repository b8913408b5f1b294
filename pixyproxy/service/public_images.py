"""What anybody may ask: to see images. How many each caller sees depends on who that is."""

from __future__ import annotations

from collections.abc import Sequence

from pixyproxy.core.exceptions import ContentDamagedError, ImageNotFoundError, OffsetOutOfRangeError
from pixyproxy.core.models import Caller, ContentRequest, Image, ImagePage, ImagePageRequest
from pixyproxy.core.validation import validated, validated_guid
from pixyproxy.data.database import Database
from pixyproxy.data.gathering import GatheredReads
from pixyproxy.data.image_store import ContentReader, ImageStore
from pixyproxy.data.repositories.image_conditions import ImagePosition
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.service.content import ImageContent, TrustedContents, damaged
from pixyproxy.service.page_tokens import PageTokens


class PublicImageService:
    """The reading half of ``ImageServiceInterface``, which documents the methods."""

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
        with self._database.reading() as context:
            # One more than asked for tells whether there is another page.
            images = ImageRepository(context).get_page(request.filter, caller, limit=request.page_size + 1, after=after)
        return ImagePage.model_construct(
            images=tuple(images[: request.page_size]),
            next_page_token=self._next_page_token(images, request, caller),
        )

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

    def _next_page_token(self, images: list[Image], request: ImagePageRequest, caller: Caller | None) -> str | None:
        if len(images) <= request.page_size:
            return None
        last = images[request.page_size - 1]
        return self._page_tokens.seal(ImagePosition(last.created_at, last.id), request.filter, caller)

    def _open(self, image: Image, caller: Caller | None) -> ContentReader:
        try:
            reader = self._store.open(image.guid)
        except ContentDamagedError:
            # Deleted since we looked? Then it is not found; if it is still there, its bytes really are missing.
            self.get_image_by_guid(image.guid, caller)
            raise
        if reader.size != image.size_bytes:
            reader.close()
            raise damaged()
        return reader
