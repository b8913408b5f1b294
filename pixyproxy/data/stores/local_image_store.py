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

from pixyproxy.core.exceptions import (
    ConfigurationError,
    ContentDamagedError,
    ContentUnreadableError,
    PixyProxyException,
    StorageFullError,
    StorageMisconfiguredError,
    StorageUnavailableError,
)
from pixyproxy.core.fields import new_guid
from pixyproxy.data.stores.image_store import ContentReader, ImageStore

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Images of providers have up to 8 MiB.
_ROOM_PER_IMAGE = 16 * 1024 * 1024
_STEADY_SECONDS = 2.0
_WRITE_SIZE = 256 * 1024
# Does not follow a symbolic link, and does not wait for the writer of a FIFO.
_READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# The errors for a symbolic link, for a socket, and for a path below something that is no folder.
_NOT_REGULAR = frozenset({errno.ELOOP, errno.ENXIO, errno.EOPNOTSUPP, errno.ENOTDIR})
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
# The errors that concern one file, and not the whole store.
_UNREADABLE = _REFUSED | {errno.EIO}
# The errors for a path where something else is, such as a folder in place of a file.
_IN_THE_WAY = frozenset({errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOTDIR})


class LocalImageStore(ImageStore):
    """Stores everything in files of a folder."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, and make it if it does not exist.

        Raises:
            ConfigurationError: it cannot be made, or is no folder.
        """
        self._folder = folder
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
        if room.f_flag & os.ST_RDONLY or not os.access(self._folder, os.W_OK):
            raise StorageMisconfiguredError("The image store cannot be written to; nothing was generated.")
        if room.f_bavail * room.f_frsize < images * _ROOM_PER_IMAGE:
            raise StorageFullError("There is no room left for images; nothing was generated.")

    def delete_partial_writes(self) -> None:  # noqa: D102  inherited
        for name in self._names_in(self._parts.name):
            _delete_if_abandoned(self._parts / name)

    def _put(self, path: str, data: Buffer) -> None:
        file = self._folder / path
        try:
            for folder in (self._parts, file.parent):
                _make_durable_folder(folder, self._folder)
            while not _write_whole(self._parts / new_guid(), file, data):
                pass
            fsync_folder(file.parent)
        except OSError as error:
            raise _translated(error) from error

    def _open(self, path: str) -> ContentReader:
        try:
            return _LocalReader(_opened(self._folder / path))
        except FileNotFoundError as error:
            raise ContentDamagedError("The stored bytes of the image are missing.") from error

    def _get(self, path: str) -> bytes | None:
        try:
            with _opened(self._folder / path) as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unavailable() from error

    def _remove(self, path: str) -> None:
        try:
            (self._folder / path).unlink()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise _translated(error) from error

    def _names_in(self, folder: str) -> list[str]:
        try:
            return os.listdir(self._folder / folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _translated(error) from error

    def _location_of(self, path: str) -> str:
        return str((self._folder / path).resolve())


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
            # A network file system may read them again soon.
            raise ContentUnreadableError("The stored bytes of the image cannot be read.") from error

    def state(self) -> Hashable | None:
        status = os.fstat(self._file.fileno())
        # The time of change has a coarse resolution: two changes in quick succession may have the same.
        if time.time() - status.st_ctime < _STEADY_SECONDS:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns

    def close(self) -> None:
        self._file.close()


def _opened(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        FileNotFoundError: there is none.
        ContentDamagedError: it is no regular file.
        ContentUnreadableError: it may not be read, or its disk fails.
        StorageUnavailableError: it cannot be opened for now.
    """
    try:
        descriptor = os.open(path, _READING)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            # Unbuffered, because a buffer would only copy each chunk.
            return open(descriptor, "rb", buffering=0)
        os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _UNREADABLE:
            raise ContentUnreadableError("The stored bytes of the image cannot be read.") from error
        if error.errno not in _NOT_REGULAR:
            raise _unavailable() from error
    raise ContentDamagedError("The image store has something other than a regular file.")


def _write_whole(part: Path, path: Path, data: Buffer) -> bool:
    """Write a part and rename it to the file; return False if the part was deleted before it was locked."""
    try:
        with part.open("xb") as file:
            # The lock keeps others from deleting the part. It is released when the process ends.
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
    """Split data, because a kernel without full preemption runs nothing else on the core during a write."""
    view = memoryview(data).cast("B")
    for start in range(0, len(view), _WRITE_SIZE):
        yield view[start : start + _WRITE_SIZE]


def _delete_if_abandoned(part: Path) -> None:
    """Delete a part unless its writer holds the lock on it."""
    # An error means that it is deleted already, locked, or of another user.
    with suppress(OSError, PixyProxyException), _opened(part) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()


def _make_durable_folder(folder: Path, top: Path) -> None:
    """Make a folder below ``top``, and the folders between them, durably."""
    if folder.is_dir():
        return
    if folder != top:
        _make_durable_folder(folder.parent, top)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names of new and renamed files in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _translated(error: OSError) -> PixyProxyException:
    if error.errno in NO_ROOM:
        return StorageFullError("There is no room left for images.")
    if error.errno in _REFUSED:
        return StorageMisconfiguredError("The image store cannot be written to.")
    if error.errno in _IN_THE_WAY:
        return PixyProxyException("The image store failed.")
    return _unavailable()


def _unavailable() -> StorageUnavailableError:
    # A network file system may work again soon, and so may a process with too many open files.
    return StorageUnavailableError("The image store failed.")
