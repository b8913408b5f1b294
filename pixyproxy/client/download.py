"""An image's bytes as a file, which is there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from io import BufferedRandom
from pathlib import Path
from typing import Self

from pixyproxy.client.errors import ContentDamagedError, InvalidRequestError, PixyProxyClientError, TryLaterError
from pixyproxy.client.models import ContentInfo

OnProgress = Callable[[int, int], None]

# Nobody's link leads the bytes elsewhere. Windows has other flags than POSIX.
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
# Windows locks a part of a file, and keeps others from reading it: one beyond the end of any image.
_LOCKED_BYTE = 2**31 - 2


class Download:
    """A hidden file, ``.pixyproxy-GUID.part``, beside the path that it gets once all bytes are there and right.

    It is locked for as long as this context lasts. Where the download breaks off it stays, and the next one goes on
    with it.

    Attributes:
        held: the number of bytes in it.
    """

    def __init__(self, guid: str, path: str | Path, *, overwrite: bool) -> None:
        """Open the file, or make it.

        Raises:
            FileExistsError: there is something at ``path`` already, and ``overwrite`` is not set.
            OSError: the file cannot be written.
            TryLaterError: another download of the same image into the same folder is under way.
            InvalidRequestError: the guid is not one.
        """
        self._path = Path(path)
        self._overwrite = overwrite
        self._refuse_existing()
        self._part = self._path.with_name(f".pixyproxy-{_checked_guid(guid)}.part")
        self._file = _open_locked(self._part)
        self.held = self._file.seek(0, os.SEEK_END)
        self._is_resumed = self.held > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is not None and not self.held:
                self._let_go_on_windows()
                self._part.unlink(missing_ok=True)
        finally:
            self._file.close()

    def begin(self) -> None:
        """Read what is held, after which more can be written. This may take as long as reading an image."""
        self._file.seek(0)
        self._hash = hashlib.file_digest(self._file, "sha256")

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)
        self._hash.update(data)
        self.held += len(data)

    def start_over(self, error: PixyProxyClientError) -> None:
        """Throw away what is held; raise ``error`` unless that may be the fault of what an earlier download left."""
        self._file.truncate(0)
        self.held = 0
        if not self._is_resumed:
            raise error
        self._is_resumed = False

    def finish(self, info: ContentInfo) -> None:
        """Check the bytes, have them on the disk, and give the file its name.

        Raises:
            ContentDamagedError: the bytes are not those of the image.
            FileExistsError: there is something at its path by now.
            OSError: it cannot be written.
        """
        if self._hash.hexdigest() != info.sha256:
            raise ContentDamagedError("The bytes that were saved are not those that the image was stored with.")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._refuse_existing()
        self._let_go_on_windows()
        self._part.replace(self._path)

    def _let_go_on_windows(self) -> None:
        """Windows neither renames nor deletes an open file. Elsewhere nobody else may have it in between."""
        if sys.platform == "win32":
            self._file.close()

    def _refuse_existing(self) -> None:
        if not self._overwrite and os.path.lexists(self._path):
            raise FileExistsError(f"{self._path} is there already.")


def _open_locked(part: Path) -> BufferedRandom:
    while True:
        with ExitStack() as closing:
            file = closing.enter_context(open(os.open(part, _FLAGS, 0o666), "r+b"))
            try:
                _lock(file.fileno())
            except (BlockingIOError, PermissionError):
                raise TryLaterError("Another download of this image into this folder is under way.") from None
            # Whoever had it locked may have renamed it just now.
            if _is_still(part, file):
                closing.pop_all()
                return file


def _lock(descriptor: int) -> None:
    """Lock a file until it is closed; raise BlockingIOError, on Windows PermissionError, where it is locked already."""
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415

        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl  # noqa: PLC0415

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_still(part: Path, file: BufferedRandom) -> bool:
    try:
        return os.path.samestat(part.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _checked_guid(guid: str) -> str:
    """Return a guid as it can be part of a file's name."""
    try:
        return str(uuid.UUID(guid))
    except ValueError:
        raise InvalidRequestError("guid: must be a UUID of 36 characters.") from None
