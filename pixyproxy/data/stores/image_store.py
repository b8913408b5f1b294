"""Where the bytes of images are kept: the interface of a store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from typing_extensions import Buffer


STORE_GUID_NAME = ".guid"
"""Where a store keeps its own guid."""


class ContentReader(ABC):
    """The stored bytes of one image, open for reading by one thread; closed by the end of a ``with``.

    Attributes:
        size: their number.
    """

    size: int

    @abstractmethod
    def seek(self, offset: int) -> None:
        """Go to a byte, counted from 0."""

    @abstractmethod
    def read(self, count: int) -> bytes:
        """Return the next ``count`` bytes, fewer only at the end.

        Raises:
            ContentDamagedError: they cannot be read, now or later.
            StorageUnavailableError: they cannot be read now.
        """

    def state(self) -> Hashable | None:
        """Return what a write to the bytes would change, or None where the store cannot tell."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Give back what the reader holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ImageStore(ABC):
    """Keeps the bytes of images under their guids. Safe to use from many threads and processes at once.

    Every method may raise StorageUnavailableError: the store cannot be reached, or does not let us in.

    Attributes:
        listing_interval: the fewest seconds between two calls of ``noted`` that are worth what they cost.
    """

    listing_interval: float = 0.0

    @abstractmethod
    def require_room(self, images: int) -> None:
        """Check, as far as that can be known before, that so many images can be written.

        Raises:
            StorageFullError: they cannot.
        """

    @abstractmethod
    def write(self, guid: str, data: Buffer) -> None:
        """Store the bytes of an image; when this returns, they outlive a crash. Half an image is never visible.

        Raises:
            StorageFullError: there is no room; nothing is left behind.
            StorageUnavailableError: whether they are stored is not known; they may be written again.
        """

    @abstractmethod
    def open(self, guid: str) -> ContentReader:
        """Open the bytes of an image.

        Raises:
            ContentDamagedError: they are not there.
        """

    @abstractmethod
    def delete(self, guid: str) -> None:
        """Delete the bytes of an image, if they are there."""

    @abstractmethod
    def write_note(self, guid: str, note: str) -> None:
        """Store a note beside the bytes of an image, to be found by ``noted``. Raises and lasts as ``write``."""

    @abstractmethod
    def read_note(self, guid: str) -> str | None:
        """Return the note beside an image, or None where there is none."""

    @abstractmethod
    def delete_note(self, guid: str) -> None:
        """Delete the note beside an image, if there is one."""

    @abstractmethod
    def noted(self) -> list[str]:
        """Return the guids of all images with a note. There are few: a note goes once an image is entered."""

    @abstractmethod
    def write_aside(self, guid: str, body: Buffer) -> str:
        """Keep a provider's answer from which no image could be read, under the guid that its image would have.

        Nothing but a person removes it. Raises and lasts as ``write``.

        Returns:
            Where it is, for the log alone.
        """

    @abstractmethod
    def read_aside(self, guid: str) -> bytes | None:
        """Return what was kept aside under a guid, or None where nothing was."""

    @abstractmethod
    def list_aside(self) -> list[str]:
        """Return the guids under which something was kept aside."""

    @abstractmethod
    def guid(self) -> str:
        """Return the store's own guid, which is made at the first call and kept in the store."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what writers that died have left half-written."""
