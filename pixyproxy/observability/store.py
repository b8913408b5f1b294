"""An image store whose operations are recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from pixyproxy.data.stores.image_store import ContentReader, ImageStore
from pixyproxy.observability.recording import Record, recorded

if TYPE_CHECKING:
    from typing_extensions import Buffer


class ObservedImageStore(ImageStore):
    """Wraps a store, and records how long operations take and how many bytes they move."""

    def __init__(
        self, store: ImageStore, record: Record, moved: Callable[[str, int], object] = lambda *_: None
    ) -> None:
        """Wrap a store.

        Args:
            store: the wrapped one.
            record: called for each operation; for all reads of a reader once, as ``read``, when it is closed.
            moved: called with ``read`` or ``write`` and a number of bytes.
        """
        self._store = store
        self._record = record
        self._moved = moved
        self.listing_interval = store.listing_interval

    def require_room(self, images: int) -> None:  # noqa: D102  inherited
        recorded(self._record, "require_room", "", self._store.require_room, images)

    def write(self, guid: str, data: Buffer) -> None:  # noqa: D102  inherited
        recorded(self._record, "write", "", self._store.write, guid, data)
        self._moved("write", memoryview(data).nbytes)

    def open(self, guid: str) -> ContentReader:  # noqa: D102  inherited
        return _ObservedReader(recorded(self._record, "open", "", self._store.open, guid), self._record, self._moved)

    def delete(self, guid: str) -> None:  # noqa: D102  inherited
        recorded(self._record, "delete", "", self._store.delete, guid)

    def write_rendition(self, guid: str, edge: int, data: Buffer) -> None:  # noqa: D102  inherited
        recorded(self._record, "write_rendition", "", self._store.write_rendition, guid, edge, data)
        self._moved("write", memoryview(data).nbytes)

    def open_rendition(self, guid: str, edge: int) -> ContentReader:  # noqa: D102  inherited
        reader = recorded(self._record, "open_rendition", "", self._store.open_rendition, guid, edge)
        return _ObservedReader(reader, self._record, self._moved)

    def delete_rendition(self, guid: str, edge: int) -> None:  # noqa: D102  inherited
        recorded(self._record, "delete_rendition", "", self._store.delete_rendition, guid, edge)

    def write_manifest(self, guid: str, manifest: str) -> None:  # noqa: D102  inherited
        recorded(self._record, "write_manifest", "", self._store.write_manifest, guid, manifest)

    def read_manifest(self, guid: str) -> str | None:  # noqa: D102  inherited
        return recorded(self._record, "read_manifest", "", self._store.read_manifest, guid)

    def delete_manifest(self, guid: str) -> None:  # noqa: D102  inherited
        recorded(self._record, "delete_manifest", "", self._store.delete_manifest, guid)

    def list_manifests(self) -> list[str]:  # noqa: D102  inherited
        return recorded(self._record, "list_manifests", "", self._store.list_manifests)

    def write_aside(self, guid: str, body: Buffer) -> str:  # noqa: D102  inherited
        return recorded(self._record, "write_aside", "", self._store.write_aside, guid, body)

    def read_aside(self, guid: str) -> bytes | None:  # noqa: D102  inherited
        return recorded(self._record, "read_aside", "", self._store.read_aside, guid)

    def list_aside(self) -> list[str]:  # noqa: D102  inherited
        return recorded(self._record, "list_aside", "", self._store.list_aside)

    def guid(self) -> str:  # noqa: D102  inherited
        return self._store.guid()

    def delete_partial_writes(self) -> None:  # noqa: D102  inherited
        recorded(self._record, "delete_partial_writes", "", self._store.delete_partial_writes)


class _ObservedReader(ContentReader):
    def __init__(self, reader: ContentReader, record: Record, moved: Callable[[str, int], object]) -> None:
        self.size = reader.size
        self._reader = reader
        self._record = record
        self._moved = moved
        self._opened = time.perf_counter()
        # The time of the reads only: between them, the reader waits for its caller.
        self._seconds = 0.0
        self._bytes = 0
        self._error: BaseException | None = None

    def seek(self, offset: int) -> None:
        self._reader.seek(offset)

    def read(self, count: int) -> bytes:
        began = time.perf_counter()
        try:
            data = self._reader.read(count)
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._seconds += time.perf_counter() - began
        self._bytes += len(data)
        return data

    def state(self) -> Hashable | None:
        return self._reader.state()

    def close(self) -> None:
        self._reader.close()
        self._record("read", self._opened, self._opened + self._seconds, self._error)
        self._moved("read", self._bytes)
