"""The bytes of an image on their way to a reader."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Hashable, Iterator
from types import TracebackType
from typing import Self

from cachetools import TTLCache

from pixyproxy.core.exceptions import ContentDamagedError
from pixyproxy.core.models import Image
from pixyproxy.data.image_store import ContentReader

# Measured fastest over gRPC among sizes that keep the memory of many slow readers small; see docs/decisions.md.
CHUNK_SIZE = 64 * 1024


# For so long a file that was found right, and not written to since, is taken to be right. Only what changes bits
# beneath the file system can make it wrong meanwhile, and then the bytes mostly come from memory anyway.
_TRUSTED_SECONDS = 60.0
_MAX_TRUSTED = 10_000


class TrustedContents:
    """Which stored bytes were found right a moment ago: to hash them takes half of the time that it takes to send them.

    Safe to use from many threads at once.
    """

    def __init__(self) -> None:
        self._found_right: TTLCache[Hashable, None] = TTLCache(_MAX_TRUSTED, ttl=_TRUSTED_SECONDS)
        self._lock = threading.Lock()

    def __contains__(self, state: Hashable) -> bool:
        with self._lock:
            return state in self._found_right

    def add(self, state: Hashable) -> None:
        """Trust bytes in this state from now on."""
        with self._lock:
            self._found_right[state] = None


class ImageContent:
    """The bytes of an image, or a part of them, open for reading by one thread; closed by the end of a ``with``.

    Attributes:
        image: whose they are.
        is_modified: False where the caller holds them already; then there are none to read.
    """

    def __init__(
        self,
        image: Image,
        reader: ContentReader | None = None,
        *,
        offset: int = 0,
        count: int = 0,
        trusted: TrustedContents | None = None,
    ) -> None:
        """Read ``count`` bytes from ``offset`` on out of ``reader``; without one, the caller holds them already."""
        self.image = image
        self._trusted = TrustedContents() if trusted is None else trusted
        self.is_modified = reader is not None
        self._reader = reader
        self._offset = offset
        self._count = count

    def chunks(self) -> Iterator[bytes]:
        """Read the bytes, a chunk at a time.

        Raises:
            ContentDamagedError: the stored bytes are not those that were stored. A whole image is checked before its
                last chunk is given, so that no damaged picture is ever complete; a part cannot be checked. One that
                was found right in the last minute is hashed again only if it was written to since.
        """
        if self._reader is None:
            return iter(())
        if self._count == self.image.size_bytes:
            return self._read_whole(self._reader)
        return _read_part(self._reader, self._offset, self._count)

    def _read_whole(self, reader: ContentReader) -> Iterator[bytes]:
        state = reader.state(), self.image.sha256
        digest = None if state in self._trusted else hashlib.sha256()
        chunk = reader.read(CHUNK_SIZE)
        while chunk:
            if digest is not None:
                digest.update(chunk)
            next_chunk = reader.read(CHUNK_SIZE)
            if not next_chunk:
                self._check_end(reader, state, digest)
            yield chunk
            chunk = next_chunk

    def _check_end(self, reader: ContentReader, state: tuple[Hashable, str], digest: hashlib._Hash | None) -> None:
        is_same = state == (reader.state(), self.image.sha256)
        if digest is None:
            if not is_same:
                raise damaged()  # Written to while it was read; nothing of ours does that.
        elif digest.hexdigest() != self.image.sha256:
            raise damaged()
        elif is_same and state[0] is not None:
            self._trusted.add(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.close()


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
