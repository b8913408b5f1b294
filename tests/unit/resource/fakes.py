"""Stand-ins for the service layer, for tests of the layer above."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import ImageNotFoundError
from pixyproxy.core.fields import Origin, Visibility
from pixyproxy.core.models import (
    Caller,
    ContentRequest,
    Cost,
    GenerationOptions,
    Image,
    ImageChanges,
    ImageCreation,
    ImageImport,
    ImagePage,
    ImagePageRequest,
    Thumbnail,
    Thumbnails,
    ThumbnailsRequest,
    Usage,
)
from pixyproxy.data.stores.image_store import ContentReader
from pixyproxy.service.content import ImageContent
from pixyproxy.service.interfaces import ImageServiceInterface
from tests.support.stored_images import file_of

GUID = "123e4567-e89b-42d3-a456-426614174000"
OTHER_GUID = "223e4567-e89b-42d3-a456-426614174000"
DATA = b"picture" * 20_000


class FakeReader(ContentReader):
    """Reads from memory, and remembers whether it was closed."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self.is_closed = False
        self._data = data
        self._position = 0

    def seek(self, offset: int) -> None:
        self._position = offset

    def read(self, count: int) -> bytes:
        chunk = self._data[self._position : self._position + count]
        self._position += len(chunk)
        return chunk

    def close(self) -> None:
        self.is_closed = True


def make_image(**changes: Any) -> Image:
    values: dict[str, Any] = {
        "id": 7,
        "author_id": 3,
        "guid": GUID,
        "prompt": "A castle 🏰",
        "filename": "castle.png",
        "tags": ("a", "ü"),
        "visibility": Visibility.PUBLIC,
        "author": "alice",
        "content_type": "image/png",
        "size_bytes": len(DATA),
        "sha256": hashlib.sha256(DATA).hexdigest(),
        "width": 640,
        "height": 480,
        "model": "a-model",
        "usage": Usage(input_tokens=1, output_tokens=2, total_tokens=3, input_text_tokens=0, input_image_tokens=1),
        "options": GenerationOptions(model="a-model", quality="low", output_format="webp", output_compression=0),
        "origin": Origin.EDITED,
        "source_guids": (OTHER_GUID,),
        "cost": Cost(nano_usd=31_730_000, price_list="2026-11-21"),
        "placeholder": b"hash",
        "created_at": datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC),
        "updated_at": datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC),
    }
    return Image(**(values | changes))


class FakeImageService(ImageServiceInterface):
    """Remembers what it was asked, and answers with ``image`` or raises ``error``."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.image = make_image()
        self.page = ImagePage(images=(self.image,), next_page_token="more")
        self.reader = FakeReader(DATA)
        self.error: Exception | None = None

    def _answer(self, *asked: Any) -> None:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error

    def create_image(self, creation: ImageCreation, caller: Caller | None, call: CallScope) -> Image:
        self._answer(creation, caller, call)
        return self.image

    def import_image(self, asked: ImageImport, data: Iterator[bytes], caller: Caller | None) -> Image:
        self._answer(asked, b"".join(data), caller)
        return self.image

    def get_image_by_guid(self, guid: str, caller: Caller | None) -> Image:
        self._answer(guid, caller)
        return self.image

    def get_all_images(self, request: ImagePageRequest, caller: Caller | None) -> ImagePage:
        self._answer(request, caller)
        return self.page

    def get_image_file(self, request: ContentRequest, caller: Caller | None, call: CallScope) -> ImageContent:
        self._answer(request, caller, call)
        return ImageContent(file_of(self.image), self.reader, count=self.image.size_bytes)

    def get_thumbnails(self, request: ThumbnailsRequest, caller: Caller | None, call: CallScope) -> Thumbnails:
        self._answer(request, caller, call)
        return Thumbnails([Thumbnail(GUID, DATA, 256, 192), Thumbnail(OTHER_GUID, error=ImageNotFoundError(GUID))], [])

    def update_image(self, changes: ImageChanges, caller: Caller | None) -> Image:
        self._answer(changes, caller)
        return self.image

    def delete_image(self, guid: str, caller: Caller | None) -> None:
        self._answer(guid, caller)
