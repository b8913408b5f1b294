"""Sends the bytes of an image to a server."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.client.download import OnProgress

Source = str | Path | bytes | BinaryIO
"""A path, bytes, or a binary file, which is read from its current position to its end."""

_PIECE_BYTES = 256 * 1024


class Upload:
    """The bytes of an image, as the messages that import it.

    Attributes:
        size: in bytes; 0 if it is unknown, because the file cannot be read again.
        is_seekable: whether it can be read again.
    """

    def __init__(self, source: Source, on_progress: OnProgress | None) -> None:
        """Open the source.

        Args:
            source: the bytes.
            on_progress: called with the number of sent bytes and of all bytes.

        Raises:
            OSError: it cannot be opened.
        """
        self._is_own = isinstance(source, (str, Path, bytes))
        self._file = _opened(source)
        self._on_progress = on_progress
        self.is_seekable = self._file.seekable()
        self._start = self._file.tell() if self.is_seekable else 0
        self.size = self._file.seek(0, os.SEEK_END) - self._start if self.is_seekable else 0
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_own:
            self._file.close()

    def messages(self, info: pb.ImportImageInfo) -> Iterator[pb.ImportImageRequest]:
        """Yield the messages of one attempt; gRPC may read on while the next attempt has begun."""
        yield pb.ImportImageRequest(info=info)
        sent = 0
        try:
            while data := self._read(sent):
                yield pb.ImportImageRequest(data=data)
                sent += len(data)
                if self._on_progress is not None:
                    self._on_progress(sent, self.size)
        except Exception as failure:  # gRPC would hide it; `check` raises it in the thread of the caller.
            self._failure = failure
            # The server refuses a message without data; the end of the messages would be that of the image.
            yield pb.ImportImageRequest()

    def check(self) -> None:
        """Raise the exception with which reading the bytes, or ``on_progress``, has failed."""
        if self._failure is not None:
            raise self._failure

    def _read(self, position: int) -> bytes:
        with self._lock:
            if self.is_seekable:
                self._file.seek(self._start + position)
            return self._file.read(_PIECE_BYTES)


def _opened(source: Source) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, (str, Path)):
        return Path(source).open("rb")
    return source
