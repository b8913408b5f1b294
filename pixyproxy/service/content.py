"""The bytes of an image on their way to a reader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from pixyproxy.core.exceptions import ContentDamagedError
from pixyproxy.core.models import Image
from pixyproxy.data.image_store import ContentReader

# Measured fastest over gRPC among sizes that keep the memory of many slow readers small; see docs/decisions.md.
CHUNK_SIZE = 64 * 1024


class ImageContent:
    """The bytes of an image, or a part of them, open for reading by one thread; closed by the end of a ``with``.

    Attributes:
        image: whose they are.
        is_modified: False where the caller holds them already; then there are none to read.
    """

    def __init__(self, image: Image, reader: ContentReader | None = None, *, offset: int = 0, count: int = 0) -> None:
        """Read ``count`` bytes from ``offset`` on out of ``reader``; without one, the caller holds them already."""
        self.image = image
        self.is_modified = reader is not None
        self._reader = reader
        self._offset = offset
        self._count = count

    def chunks(self) -> Iterator[bytes]:
        """Read the bytes, a chunk at a time.

        Raises:
            ContentDamagedError: the stored bytes are not those that were stored. A whole image is checked before its
                last chunk is given, so that no damaged picture is ever complete; a part cannot be checked.
        """
        if self._reader is None:
            return iter(())
        if self._count == self.image.size_bytes:
            return _read_whole(self._reader, self.image.sha256)
        return _read_part(self._reader, self._offset, self._count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.close()


def _read_whole(reader: ContentReader, sha256: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    chunk = reader.read(CHUNK_SIZE)
    while chunk:
        digest.update(chunk)
        next_chunk = reader.read(CHUNK_SIZE)
        if not next_chunk and digest.hexdigest() != sha256:
            raise damaged()
        yield chunk
        chunk = next_chunk


def _read_part(reader: ContentReader, offset: int, count: int) -> Iterator[bytes]:
    reader.seek(offset)
    while count > 0:
        chunk = reader.read(min(CHUNK_SIZE, count))
        if not chunk:
            raise damaged()
        count -= len(chunk)
        yield chunk


def damaged() -> ContentDamagedError:
    """Return the error for stored bytes that are not those that were stored."""
    return ContentDamagedError("The stored bytes of the image are damaged.")
