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
from pixyproxy.data.stores.image_store import ContentReader

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
        self._left = count

    def chunks(self) -> Iterator[bytes]:
        """Read the bytes, a chunk at a time.

        Raises:
            ContentDamagedError: the stored bytes are not those that were stored. A whole image is checked before its
                last chunk is given, so that no damaged picture is ever complete; a part cannot be checked. One that
                was found right in the last minute is hashed again only if it was written to since.
        """
        if self._reader is None:
            return
        is_whole = self._left == self.image.size_bytes
        check = _Check(self.image, self._reader, self._trusted) if is_whole else None
        if self._offset:
            self._reader.seek(self._offset)
        while self._left > 0:
            # In no variable: a chunk is not kept while it is sent, which may take long.
            yield self._next_chunk(self._reader, check)

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.close()


class _Check:
    """Finds out whether all bytes of an image are those that were stored."""

    def __init__(self, image: Image, reader: ContentReader, trusted: TrustedContents) -> None:
        self._sha256 = image.sha256
        self._reader = reader
        self._trusted = trusted
        self._state = reader.state(), image.sha256
        self._digest = None if self._state in trusted else hashlib.sha256()

    def add(self, chunk: bytes) -> None:
        """Take note of the next bytes."""
        if self._digest is not None:
            self._digest.update(chunk)

    def finish(self) -> None:
        """Check them all.

        Raises:
            ContentDamagedError: they are others.
        """
        is_same = self._state == (self._reader.state(), self._sha256)
        if self._digest is None:
            if not is_same:
                raise damaged()  # Written to while it was read; nothing of ours does that.
        elif self._digest.hexdigest() != self._sha256:
            raise damaged()
        elif is_same and self._state[0] is not None:
            self._trusted.add(self._state)


def damaged() -> ContentDamagedError:
    """Return the error for stored bytes that are not those that were stored."""
    return ContentDamagedError("The stored bytes of the image are damaged.")
