"""The interface of a store of image bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from typing_extensions import Buffer


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
            ContentDamagedError: the stored bytes cannot be read.
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

    Every method may raise StorageUnavailableError: the store does not answer, or refuses the credentials.

    Attributes:
        listing_interval: the least seconds between two periodic calls of ``list_manifests``.
    """

    listing_interval: float = 0.0

    @abstractmethod
    def require_room(self, images: int) -> None:
        """Check that a number of images can probably be written.

        Raises:
            StorageFullError: there is not enough room for them, or the store is read-only.
        """

    @abstractmethod
    def write(self, guid: str, data: Buffer) -> None:
        """Store the bytes of an image, durably and atomically.

        Raises:
            StorageFullError: there is no room; nothing is stored.
            StorageUnavailableError: it is unknown whether they are stored; they may be written again.
        """

    @abstractmethod
    def open(self, guid: str) -> ContentReader:
        """Open the bytes of an image.

        Raises:
            ContentDamagedError: there are none.
        """

    @abstractmethod
    def delete(self, guid: str) -> None:
        """Delete the bytes of an image, if there are any."""

    @abstractmethod
    def write_rendition(self, guid: str, edge: int, data: Buffer) -> None:
        """Store the bytes of a rendition of an image, which fits a square of ``edge`` pixels. Raises as ``write``."""

    @abstractmethod
    def open_rendition(self, guid: str, edge: int) -> ContentReader:
        """Open the bytes of a rendition. Raises as ``open``."""

    @abstractmethod
    def delete_rendition(self, guid: str, edge: int) -> None:
        """Delete the bytes of a rendition, if there are any."""

    @abstractmethod
    def write_manifest(self, guid: str, manifest: str) -> None:
        """Store the manifest of an image, durably and atomically. Raises as ``write``."""

    @abstractmethod
    def read_manifest(self, guid: str) -> str | None:
        """Return the manifest of an image, or None if there is none."""

    @abstractmethod
    def delete_manifest(self, guid: str) -> None:
        """Delete the manifest of an image, if there is one."""

    @abstractmethod
    def list_manifests(self) -> list[str]:
        """Return the guids of all images with a manifest: few, because it is deleted when the detail is committed."""

    @abstractmethod
    def write_aside(self, guid: str, body: Buffer) -> str:
        """Store a provider's answer from which no image could be read, under the guid planned for its image.

        No method deletes it; an operator may. Durable and atomic, and raises as ``write``.

        Returns:
            Its location, for the log only.
        """

    @abstractmethod
    def read_aside(self, guid: str) -> bytes | None:
        """Return the answer that was set aside under a guid, or None if there is none."""

    @abstractmethod
    def list_aside(self) -> list[str]:
        """Return the guids of all answers that were set aside."""

    @abstractmethod
    def guid(self) -> str:
        """Return the guid of the store itself, which is stored in it at the first call."""

    @abstractmethod
    def delete_partial_writes(self) -> None:
        """Delete what writers that died have left of their writes."""
