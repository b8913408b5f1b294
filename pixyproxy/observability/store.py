"""An image store whose operations are recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from pixyproxy.data.stores.image_store import ContentReader, ImageStore
from pixyproxy.observability.recording import Record, recorded

if TYPE_CHECKING:
    from typing_extensions import Buffer


def observed_store(
    store: ImageStore, record: Record, moved: Callable[[str, int], object] = lambda *_: None
) -> ImageStore:
    """Wrap a store, and record how long operations take and how many bytes they move.

    Args:
        store: the store.
        record: called for each operation; for all reads of a reader once, as ``read``, when it is closed.
        moved: called with ``read`` or ``write`` and a number of bytes.
    """
    # It has the methods of the store by their names.
    return cast(ImageStore, _ObservedStore(store, record, moved))


class _ObservedStore:
    def __init__(self, store: ImageStore, record: Record, moved: Callable[[str, int], object]) -> None:
        self._store = store
        self._record = record
        self._moved = moved

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return partial(recorded, self._record, name, "", found) if callable(found) else found

    def write(self, guid: str, data: Buffer) -> None:
        recorded(self._record, "write", "", self._store.write, guid, data)
        self._moved("write", memoryview(data).nbytes)

    def open(self, guid: str) -> ContentReader:
        return _ObservedReader(recorded(self._record, "open", "", self._store.open, guid), self._record, self._moved)

    def write_rendition(self, guid: str, edge: int, data: Buffer) -> None:
        recorded(self._record, "write_rendition", "", self._store.write_rendition, guid, edge, data)
        self._moved("write", memoryview(data).nbytes)

    def open_rendition(self, guid: str, edge: int) -> ContentReader:
        reader = recorded(self._record, "open_rendition", "", self._store.open_rendition, guid, edge)
        return _ObservedReader(reader, self._record, self._moved)


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
        self._record("read", self._opened, self._opened + self._seconds, self._error, "")
        self._moved("read", self._bytes)
