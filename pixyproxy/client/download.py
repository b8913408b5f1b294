"""Downloads an image to a file, atomically."""

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

# Symbolic links are not followed. Windows has other flags than POSIX.
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
# Windows locks a range of a file, which others cannot read then: one byte beyond the end of any image.
_LOCKED_BYTE = 2**31 - 2


class Download:
    """A hidden file, which is renamed once all bytes are received and verified.

    It is named ``.pixyproxy-GUID.part``, or ``.pixyproxy-GUID-PIXELS.part`` for a rendition.
    It is locked within this context. After an interruption it stays, and the next download continues with it.

    Attributes:
        held: its size in bytes.
    """

    def __init__(self, guid: str, path: str | Path, *, overwrite: bool, rendition: int | None = None) -> None:
        """Open or create the file.

        Raises:
            FileExistsError: ``path`` exists, and is not to be replaced; see ``file_to_write``.
            OSError: the file cannot be written.
            TryLaterError: another download of the same image to the same folder is in progress.
            InvalidRequestError: the guid is invalid.
        """
        self._path = file_to_write(path, overwrite=overwrite)
        self._overwrite = overwrite
        kind = "" if rendition is None else f"-{rendition}"
        self._part = self._path.with_name(f".pixyproxy-{_checked_guid(guid)}{kind}.part")
        self._file = _open_locked(self._part)
        self.held = self._file.seek(0, os.SEEK_END)
        self._is_resumed = self.held > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is not None and not self.held:
                self._close_on_windows()
                self._part.unlink(missing_ok=True)
        finally:
            self._file.close()

    def begin(self) -> None:
        """Hash the bytes in the file, before more are written. This reads the whole file."""
        self._file.seek(0)
        self._hash = hashlib.file_digest(self._file, "sha256")

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)
        self._hash.update(data)
        self.held += len(data)

    def start_over(self, error: PixyProxyClientError) -> None:
        """Discard the bytes in the file; raise ``error`` unless an earlier download may be its cause."""
        self._file.truncate(0)
        self.held = 0
        if not self._is_resumed:
            raise error
        self._is_resumed = False

    def finish(self, info: ContentInfo) -> None:
        """Verify the bytes, sync them to the disk, and rename the file.

        Raises:
            ContentDamagedError: the bytes are not those of the image.
            FileExistsError: its path exists now.
            OSError: the file cannot be written.
        """
        if self._hash.hexdigest() != info.sha256:
            raise ContentDamagedError("The saved bytes are not those of the image.")
        self._file.flush()
        os.fsync(self._file.fileno())
        file_to_write(self._path, overwrite=self._overwrite)
        self._close_on_windows()
        self._part.replace(self._path)

    def _close_on_windows(self) -> None:
        """Close the file, because Windows cannot rename or delete open files. Elsewhere it stays locked."""
        if sys.platform == "win32":
            self._file.close()


def file_to_write(path: str | Path, *, overwrite: bool) -> Path:
    """Return the file that is written for ``path``: not a symbolic link, but what it names.

    Raises:
        FileExistsError: ``path`` exists, and ``overwrite`` is not set or it is not a regular file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is not a regular file.")
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} exists already.")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _open_locked(part: Path) -> BufferedRandom:
    while True:
        with ExitStack() as closing:
            file = closing.enter_context(open(os.open(part, _FLAGS, 0o666), "r+b"))
            try:
                _lock(file.fileno())
            except (BlockingIOError, PermissionError):
                raise TryLaterError("Another download of this image to this folder is in progress.") from None
            # Another download may have renamed it just before it released the lock.
            if _is_still(part, file):
                closing.pop_all()
                return file


def _lock(descriptor: int) -> None:
    """Lock a file until it is closed; raise BlockingIOError, or PermissionError on Windows, if it is locked."""
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
    """Return a valid guid, which is safe in a file name."""
    try:
        return str(uuid.UUID(guid))
    except ValueError:
        raise InvalidRequestError("guid: must be a UUID of 36 characters.") from None
