"""The audit log: a file, or standard output, to which lines are only ever appended."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from pixyproxy.core.exceptions import ConfigurationError, PixyProxyException
from pixyproxy.data.stores.local_image_store import fsync_folder

STANDARD_OUTPUT = "-"

_STDOUT = 1
# Reading is for the last byte. A FIFO is not waited for.
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK


class AuditLog:
    """Any number of processes may append to the same file. It is opened each time, so that it may be renamed."""

    def __init__(self, name: str) -> None:
        """Use a file, which is made if it does not exist, or standard output.

        Args:
            name: the path, or ``STANDARD_OUTPUT``.

        Raises:
            ConfigurationError: it cannot be written.
        """
        self._path = None if name == STANDARD_OUTPUT else Path(name)
        try:
            self._append([])
        except FileNotFoundError as error:
            raise ConfigurationError(f"there is no folder {Path(name).parent} for the audit log.") from error
        except OSError as error:
            place = "standard output" if self._path is None else name
            raise ConfigurationError(f"{place} cannot be written: {error.strerror}.") from error

    def append(self, lines: Sequence[bytes]) -> int:
        """Append lines, which have no line ends, and return how many are durable: at least the first one.

        What a pipe has taken counts as durable. A line has at most ``select.PIPE_BUF`` bytes, its end included.

        Raises:
            PixyProxyException: it cannot be written.
        """
        try:
            return self._append(lines)
        except OSError as error:
            raise PixyProxyException("The audit log cannot be written; its lines stay in the database.") from error

    def _append(self, lines: Sequence[bytes]) -> int:
        if self._path is None:
            if sys.stdout is None:
                raise OSError(errno.EBADF, "it is closed")
            return _write_all(_STDOUT, lines)
        # The mode of a file that the operator has made stays.
        with open(os.open(self._path, _FLAGS, 0o600), "r+b", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "it is no regular file")
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file.fileno()).st_size
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                # A crash or a full disk has cut off a line, which is appended again.
                file.write(b"\n")
            count = _write_all(file.fileno(), lines)
            fsync_folder(self._path.parent)
            return count


def _write_all(descriptor: int, lines: Sequence[bytes]) -> int:
    """Write lines, and return how many are durable. Ends early where the disk gets full or a pipe's reader waits."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    count = 0
    try:
        for line in lines:
            # To wait here would keep the database locked. A pipe that is ready takes PIPE_BUF bytes.
            if not poll.poll(0):
                raise BlockingIOError(errno.EAGAIN, "its reader does not read")
            rest = line + b"\n"
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            count += 1
    except OSError:
        if count == 0:
            raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.fsync(descriptor)
    return count
