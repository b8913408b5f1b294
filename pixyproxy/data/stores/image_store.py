"""Stores of image bytes: everything is stored under a path, of a file in a folder or of an object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import TYPE_CHECKING, Self

from pixyproxy.core.exceptions import ContentDamagedError
from pixyproxy.core.fields import new_guid

if TYPE_CHECKING:
    from typing_extensions import Buffer

# The names of released stores.
_MANIFESTS = ".notes"
_ASIDE = ".aside"
_GUID = ".guid"


class ContentReader(ABC):
    """The stored bytes of one image, open for reading by one thread; closed by the end of a ``with``.

    Attributes:
        size: the number of bytes.
    """

    size: int

    @abstractmethod
    def seek(self, offset: int) -> None:
        """Continue to read at a byte offset, counted from 0."""

    @abstractmethod
    def read(self, count: int) -> bytes:
        """Return the next ``count`` bytes, fewer only at the end.

        Raises:
            ContentDamagedError: there are fewer bytes than there were, or others.
            ContentUnreadableError: they cannot be read.
            StorageUnavailableError: the store does not answer.
        """

    def state(self) -> Hashable | None:
        """Return a value that any write to the bytes changes, or None if the store has none."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release the file or the connection."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ImageStore(ABC):
    """Stores image bytes under the guids of images. Safe to use from many threads and processes at once.

    The paths are the same in every kind of store.

    Every method may raise StorageUnavailableError: the store does not answer, or refuses the server.

    Attributes:
        listing_interval: the least seconds between two periodic calls of ``list_manifests``.
    """

    listing_interval: float = 0.0

    @abstractmethod
    def require_room(self, images: int) -> None:
        """Check that a number of images can probably be written.

        Raises:
            StorageFullError: there is not enough room for them.
        """

    def write(self, guid: str, data: Buffer) -> None:
        """Store the bytes of an image, durably and atomically.

        Raises:
            StorageFullError: there is no room; nothing is stored.
            StorageUnavailableError: it is unknown whether they are stored; they may be written again.
        """
        self._put(content_path(guid), data)

    def open(self, guid: str) -> ContentReader:
        """Open the bytes of an image.

        Raises:
            ContentDamagedError: there are none.
            ContentUnreadableError: they may not be read.
        """
        return self._open(content_path(guid))

    def delete(self, guid: str) -> None:
        """Delete the bytes of an image, if there are any."""
        self._remove(content_path(guid))

    def write_rendition(self, guid: str, edge: int, data: Buffer) -> None:
        """Store the bytes of a rendition of an image, which fits a square of ``edge`` pixels. Raises as ``write``."""
        self._put(_rendition_path(guid, edge), data)

    def open_rendition(self, guid: str, edge: int) -> ContentReader:
        """Open the bytes of a rendition. Raises as ``open``."""
        return self._open(_rendition_path(guid, edge))

    def delete_rendition(self, guid: str, edge: int) -> None:
        """Delete the bytes of a rendition, if there are any."""
        self._remove(_rendition_path(guid, edge))

    def write_manifest(self, guid: str, manifest: str) -> None:
        """Store the manifest of an image, durably and atomically. Raises as ``write``."""
        self._put(f"{_MANIFESTS}/{guid}", manifest.encode())

    def read_manifest(self, guid: str) -> str | None:
        """Return the manifest of an image, or None if there is none."""
        return self._text_of(f"{_MANIFESTS}/{guid}")

    def delete_manifest(self, guid: str) -> None:
        """Delete the manifest of an image, if there is one."""
        self._remove(f"{_MANIFESTS}/{guid}")

    def list_manifests(self) -> list[str]:
        """Return the guids of all images with a manifest: few, because it is deleted when the detail is committed."""
        return self._names_in(_MANIFESTS)

    def write_aside(self, guid: str, body: Buffer) -> str:
        """Store a provider's answer from which no image could be read, under the guid planned for its image.

        No method deletes it; an operator may. Durable and atomic, and raises as ``write``.

        Returns:
            Its location, for the log only.
        """
        self._put(f"{_ASIDE}/{guid}", body)
        return self._location_of(f"{_ASIDE}/{guid}")

    def read_aside(self, guid: str) -> bytes | None:
        """Return the answer that was set aside under a guid, or None if there is none."""
        return self._get(f"{_ASIDE}/{guid}")

    def list_aside(self) -> list[str]:
        """Return the guids of all answers that were set aside."""
        return self._names_in(_ASIDE)

    def guid(self) -> str:
        """Return the guid of the store itself, which is stored in it at the first call."""
        if self._get(_GUID) is None:
            self._put(_GUID, new_guid().encode())
        return self._text_of(_GUID) or ""

    @abstractmethod
    def delete_partial_writes(self) -> None:
        """Delete what writers that died have left of their writes."""

    # --- Paths ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def _put(self, path: str, data: Buffer) -> None:
        """Store bytes. Raises as ``write``."""

    @abstractmethod
    def _open(self, path: str) -> ContentReader:
        """Open the bytes under a path. Raises as ``open``."""

    @abstractmethod
    def _get(self, path: str) -> bytes | None:
        """Return the bytes under a path, or None if there are none."""

    @abstractmethod
    def _remove(self, path: str) -> None:
        """Delete the bytes under a path, if there are any."""

    @abstractmethod
    def _names_in(self, folder: str) -> list[str]:
        """Return the names of everything that is stored in a folder."""

    @abstractmethod
    def _location_of(self, path: str) -> str:
        """Return the absolute location of a path, for the log."""

    def _text_of(self, path: str) -> str | None:
        data = self._get(path)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise ContentDamagedError("The image store has bytes in place of text.") from error


def content_path(guid: str) -> str:
    """Return the path of image bytes: two levels of 256 folders keep folders small at millions of images."""
    return f"{guid[0:2]}/{guid[2:4]}/{guid}"


def _rendition_path(guid: str, edge: int) -> str:
    return f"{content_path(guid)}.{edge}.webp"
