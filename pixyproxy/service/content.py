"""Reads the bytes of images in chunks, and checks them."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Self

from cachetools import TTLCache

from pixyproxy.core.exceptions import ContentDamagedError, ContentUnreadableError
from pixyproxy.core.models import ImageFile
from pixyproxy.data.stores.image_store import ContentReader, ImageStore

_logger = logging.getLogger(__name__)

# Measured fastest over gRPC among sizes that keep the memory of many slow readers small; see docs/decisions/api.md.
CHUNK_SIZE = 64 * 1024
_READ_BYTES = 1024 * 1024
_MAX_TRUSTED = 10_000


class TrustedContents:
    """Stored bytes that were checked a moment ago and not written to since. They are not hashed again.

    During that time, only bits that flip beneath the file system go unnoticed. docs/performance.md measures the gain.
    Safe for use by many threads.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        """Trust bytes for ``seconds`` after a check."""
        self._states: TTLCache[Hashable, None] = TTLCache(_MAX_TRUSTED, ttl=seconds)
        self._lock = threading.Lock()

    def __contains__(self, state: Hashable) -> bool:
        with self._lock:
            return state in self._states

    def add(self, state: Hashable) -> None:
        """Trust bytes in this state from now on."""
        with self._lock:
            self._states[state] = None


class ImageContent:
    """The bytes of an image, or a part of them, open for reading by one thread; closed by the end of a ``with``.

    Attributes:
        image: what is read; for a rendition, with the size, hash, type, width and height of that.
        offset: the first byte that is read.
        count: the number of bytes that are read.
        rendition: the edge of the rendition in pixels, or None for the original.
        is_modified: False if the caller has the bytes already; then there are none to read.
    """

    def __init__(
        self,
        image: ImageFile,
        reader: ContentReader | None = None,
        *,
        offset: int = 0,
        count: int = 0,
        trusted: TrustedContents | None = None,
        rendition: int | None = None,
        on_damage: Callable[[], object] = lambda: None,
    ) -> None:
        """Read bytes of an image or of a rendition.

        Args:
            image: the image; for a rendition, with the values of that.
            reader: the bytes, or None if the caller has them already.
            offset: the first byte to read.
            count: the number of bytes to read.
            trusted: what was checked a moment ago.
            rendition: the edge of the rendition in pixels, or None for the original.
            on_damage: called when the bytes turn out to be damaged.
        """
        self.image = image
        self.rendition = rendition
        self._on_damage = on_damage
        self.is_modified = reader is not None
        self._trusted = TrustedContents() if trusted is None else trusted
        self._reader = reader
        self.offset = offset
        self.count = count
        self._left = count

    def chunks(self) -> Iterator[bytes]:
        """Read the bytes in chunks.

        Raises:
            ContentDamagedError: the bytes are not those that were stored. A whole image is checked before its last
                chunk is returned, so that no damaged image is ever complete; a part cannot be checked.
            ContentUnreadableError: they cannot be read.
        """
        if self._reader is None:
            return
        check = _Check(self.image, self._reader, self._trusted) if self._left == self.image.size_bytes else None
        if self.offset:
            self._reader.seek(self.offset)
        try:
            while self._left > 0:
                # Not in a variable, which would keep the chunk while it is sent.
                yield self._next_chunk(self._reader, check)
        except ContentUnreadableError as error:
            log_damage(self.image.guid, error, self.rendition)
            self._on_damage()
            raise

    def _next_chunk(self, reader: ContentReader, check: _Check | None) -> bytes:
        chunk = reader.read(min(CHUNK_SIZE, self._left))
        if not chunk:
            raise damaged()
        self._left -= len(chunk)
        if check is not None:
            check.add(chunk)
            if self._left == 0:
                check.finish()
        return chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.close()


class _Check:
    """Compares the bytes of a whole image with its hash."""

    def __init__(self, image: ImageFile, reader: ContentReader, trusted: TrustedContents) -> None:
        self._sha256 = image.sha256
        self._reader = reader
        self._trusted = trusted
        self._state = reader.state(), image.sha256
        self._digest = None if self._state in trusted else hashlib.sha256()

    def add(self, chunk: bytes) -> None:
        if self._digest is not None:
            self._digest.update(chunk)

    def finish(self) -> None:
        is_same = self._state == (self._reader.state(), self._sha256)
        if self._digest is None:
            if not is_same:
                raise damaged()  # PixyProxy never writes to stored bytes.
        elif self._digest.hexdigest() != self._sha256:
            raise damaged()
        elif is_same and self._state[0] is not None:
            self._trusted.add(self._state)


def sha256_of(store: ImageStore, guid: str) -> str | None:
    """Return the SHA-256 of the stored bytes of an image in hexadecimal, or None if they are missing."""
    digest = hashlib.sha256()
    try:
        with store.open(guid) as reader:
            while chunk := reader.read(_READ_BYTES):
                digest.update(chunk)
    except ContentDamagedError:
        return None
    return digest.hexdigest()


def log_damage(guid: str, error: ContentUnreadableError, rendition: int | None = None) -> None:
    """Log which image is damaged or cannot be read, for the operator."""
    _logger.error("Image %s%s: %s", guid, "" if rendition is None else f", rendition {rendition}", error.message)


def damaged() -> ContentDamagedError:
    """Return the error for bytes that are not those that were stored."""
    return ContentDamagedError("The stored bytes of the image are damaged.")
