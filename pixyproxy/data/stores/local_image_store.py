"""The store of image bytes in a local folder."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Hashable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pixyproxy.core.exceptions import ConfigurationError, ContentDamagedError, PixyProxyException, StorageFullError
from pixyproxy.core.models import new_guid
from pixyproxy.data.stores.image_store import STORE_GUID_NAME, ContentReader, ImageStore

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Pictures of providers have up to 8 MiB; a generation is begun only where there is room for all under way, and more.
_ROOM_PER_IMAGE = 16 * 1024 * 1024
_STEADY_SECONDS = 2.0
_PIECE = 256 * 1024
# Without following a symbolic link, and without waiting for whoever writes to a FIFO.
_READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What systems say of a symbolic link, of a socket, and where a folder should be and is none.
_NO_FILE = frozenset({errno.ELOOP, errno.ENXIO, errno.EOPNOTSUPP, errno.ENOTDIR})
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM})


class LocalImageStore(ImageStore):
    """Keeps each image in a file of its own, named by its guid, in two levels of folders."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, and make it where it is missing.

        Raises:
            ConfigurationError: it cannot be made, or is no folder.
        """
        self._folder = folder
        self._notes = folder / ".notes"
        self._aside = folder / ".aside"
        self._parts = folder / ".parts"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"The image folder {folder} cannot be used: {error.strerror}.") from error

    def require_room(self, images: int) -> None:  # noqa: D102  inherited
        try:
            room = os.statvfs(self._folder)
        except OSError as error:
            raise _translated(error) from error
        is_writable = os.access(self._folder, os.W_OK) and not room.f_flag & os.ST_RDONLY
        if not is_writable or room.f_bavail * room.f_frsize < images * _ROOM_PER_IMAGE:
            raise StorageFullError("There is no room left for images; nothing was generated.")

    def write(self, guid: str, data: Buffer) -> None:  # noqa: D102  inherited
        self._write(self._path_of(guid), data)

    def open(self, guid: str) -> ContentReader:  # noqa: D102  inherited
        try:
            return _LocalReader(_opened(self._path_of(guid)))
        except FileNotFoundError as error:
            raise ContentDamagedError("The stored bytes of the image are missing.") from error

    def delete(self, guid: str) -> None:  # noqa: D102  inherited
        _unlink(self._path_of(guid))

    def write_note(self, guid: str, note: str) -> None:  # noqa: D102  inherited
        self._write(self._notes / guid, note.encode())

    def read_note(self, guid: str) -> str | None:  # noqa: D102  inherited
        return _text_of(self._notes / guid)

    def delete_note(self, guid: str) -> None:  # noqa: D102  inherited
        _unlink(self._notes / guid)

    def noted(self) -> list[str]:  # noqa: D102  inherited
        return _names_in(self._notes)

    def write_aside(self, guid: str, body: Buffer) -> str:  # noqa: D102  inherited
        path = self._aside / guid
        self._write(path, body)
        return str(path.resolve())

    def read_aside(self, guid: str) -> bytes | None:  # noqa: D102  inherited
        return _read(self._aside / guid)

    def list_aside(self) -> list[str]:  # noqa: D102  inherited
        return _names_in(self._aside)

    def guid(self) -> str:  # noqa: D102  inherited
        path = self._folder / STORE_GUID_NAME
        if _text_of(path) is None:
            self._write(path, new_guid().encode())
        return _text_of(path) or ""

    def sweep(self) -> None:  # noqa: D102  inherited
        for name in _names_in(self._parts):
            _remove_if_abandoned(self._parts / name)

    def _write(self, path: Path, data: Buffer) -> None:
        """Write a file that is either not there or whole, and that outlives a crash once this returns."""
        try:
            for folder in (self._parts, path.parent):
                _make_lasting_folder(folder, self._folder)
            while not _write_whole(self._parts / new_guid(), path, data):
                pass
            _fsync_folder(path.parent)
        except OSError as error:
            raise _translated(error) from error

    def _path_of(self, guid: str) -> Path:
        """Two levels of 256 folders each keep folders small at millions of images."""
        return self._folder.joinpath(guid[0:2], guid[2:4], guid)


class _LocalReader(ContentReader):
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def seek(self, offset: int) -> None:
        self._file.seek(offset)

    def read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except OSError as error:
            raise ContentDamagedError("The stored bytes of the image cannot be read.") from error

    def state(self) -> Hashable | None:
        status = os.fstat(self._file.fileno())
        # A time of change is told in steps: for a moment, a second change would leave it as it is.
        if time.time() - status.st_ctime < _STEADY_SECONDS:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns

    def close(self) -> None:
        self._file.close()


def _opened(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        FileNotFoundError: there is none.
        ContentDamagedError: something else lies there.
        PixyProxyException: it cannot be opened.
    """
    try:
        descriptor = os.open(path, _READING)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            # Unbuffered: every read is one chunk, which a buffer would only copy once more.
            return open(descriptor, "rb", buffering=0)
        os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise _failed() from error
    raise ContentDamagedError("What is stored there is no regular file.")


def _read(path: Path) -> bytes | None:
    """Return what a file holds, or None where there is none. Raises as ``_opened``."""
    try:
        with _opened(path) as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed() from error


def _text_of(path: Path) -> str | None:
    """Return the text that a file holds, or None where there is none. Raises as ``_opened``."""
    data = _read(path)
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError as error:
        raise ContentDamagedError("What is stored there is no text.") from error


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _failed() from error


def _unlink(path: Path) -> None:
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise _translated(error) from error


def _write_whole(part: Path, path: Path, data: Buffer) -> bool:
    """Write a part and make it the file; return False where a sweeper took it away before it was locked."""
    try:
        with part.open("xb") as file:
            # Says to those who sweep that the writer is alive; the lock goes with the process.
            fcntl.flock(file, fcntl.LOCK_EX)
            for piece in _pieces(data):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            if not part.exists():
                return False
            part.replace(path)
            return True
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _pieces(data: Buffer) -> Iterator[memoryview]:
    """Cut data up: a kernel that is no real-time one lets nobody else run until it has carried out a write."""
    view = memoryview(data).cast("B")
    for start in range(0, len(view), _PIECE):
        yield view[start : start + _PIECE]


def _remove_if_abandoned(part: Path) -> None:
    """Remove a half-written file unless its writer holds the lock on it."""
    # Gone meanwhile, locked, or not ours to remove.
    with suppress(OSError, PixyProxyException), _opened(part) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()


def _make_lasting_folder(folder: Path, top: Path) -> None:
    """Make ``folder``, some levels below ``top``, so that its entries outlive a crash."""
    if folder.is_dir():
        return
    if folder != top:
        _make_lasting_folder(folder.parent, top)
    folder.mkdir(exist_ok=True)
    _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _translated(error: OSError) -> PixyProxyException:
    if error.errno in _NO_ROOM:
        return StorageFullError("There is no room left for images.")
    return _failed()


def _failed() -> PixyProxyException:
    return PixyProxyException("The image store failed.")
