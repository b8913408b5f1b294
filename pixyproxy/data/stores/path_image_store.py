"""What the stores have in common: everything is stored under a path, of a file in a folder or of an object."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from pixyproxy.core.exceptions import ContentDamagedError
from pixyproxy.core.fields import new_guid
from pixyproxy.data.stores.image_store import ContentReader, ImageStore

if TYPE_CHECKING:
    from typing_extensions import Buffer

# The names of released stores.
_MANIFESTS = ".notes"
_ASIDE = ".aside"
_GUID = ".guid"


class PathImageStore(ImageStore):
    """Stores image bytes, manifests and answers set aside under paths that are the same in every kind of store."""

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

    def write(self, guid: str, data: Buffer) -> None:  # noqa: D102  inherited
        self._put(content_path(guid), data)

    def open(self, guid: str) -> ContentReader:  # noqa: D102  inherited
        return self._open(content_path(guid))

    def delete(self, guid: str) -> None:  # noqa: D102  inherited
        self._remove(content_path(guid))

    def write_rendition(self, guid: str, edge: int, data: Buffer) -> None:  # noqa: D102  inherited
        self._put(_rendition_path(guid, edge), data)

    def open_rendition(self, guid: str, edge: int) -> ContentReader:  # noqa: D102  inherited
        return self._open(_rendition_path(guid, edge))

    def delete_rendition(self, guid: str, edge: int) -> None:  # noqa: D102  inherited
        self._remove(_rendition_path(guid, edge))

    def write_manifest(self, guid: str, manifest: str) -> None:  # noqa: D102  inherited
        self._put(f"{_MANIFESTS}/{guid}", manifest.encode())

    def read_manifest(self, guid: str) -> str | None:  # noqa: D102  inherited
        return self._text_of(f"{_MANIFESTS}/{guid}")

    def delete_manifest(self, guid: str) -> None:  # noqa: D102  inherited
        self._remove(f"{_MANIFESTS}/{guid}")

    def list_manifests(self) -> list[str]:  # noqa: D102  inherited
        return self._names_in(_MANIFESTS)

    def write_aside(self, guid: str, body: Buffer) -> str:  # noqa: D102  inherited
        self._put(f"{_ASIDE}/{guid}", body)
        return self._location_of(f"{_ASIDE}/{guid}")

    def read_aside(self, guid: str) -> bytes | None:  # noqa: D102  inherited
        return self._get(f"{_ASIDE}/{guid}")

    def list_aside(self) -> list[str]:  # noqa: D102  inherited
        return self._names_in(_ASIDE)

    def guid(self) -> str:  # noqa: D102  inherited
        if self._get(_GUID) is None:
            self._put(_GUID, new_guid().encode())
        return self._text_of(_GUID) or ""

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
