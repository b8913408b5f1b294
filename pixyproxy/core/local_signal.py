"""Signals between the processes of one server: a number that wakes whoever waits for it.

Author: djjay
Date: 2026-11-21
"""

from __future__ import annotations

import os
import select
import struct
from contextlib import suppress

_NUMBER = struct.Struct("=q")
_READ_BYTES = 512 * _NUMBER.size


class LocalSignal:
    """A pipe of numbers; to be made before the processes are forked.

    A signal may be lost where nobody reads for long. It only wakes early those who also poll.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def send(self, number: int = 0) -> None:
        """Wake whoever waits."""
        with suppress(OSError):  # The pipe is full, so that somebody is woken anyway, or nobody is left to be woken.
            os.write(self._writer, _NUMBER.pack(number))

    def read(self) -> list[int]:
        """Return the numbers that were sent since the last call."""
        try:
            data = os.read(self._reader, _READ_BYTES)
        except BlockingIOError:
            return []
        return [number for (number,) in _NUMBER.iter_unpack(data)]

    def wait_for_end(self) -> None:
        """Wait until all senders have closed their end, or have died."""
        poll = select.poll()
        poll.register(self._reader, 0)
        poll.poll()

    def fileno(self) -> int:
        """Return the file descriptor that becomes readable with a signal."""
        return self._reader

    def close_sender(self) -> None:
        """Send no more from this process."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    def close(self) -> None:
        """Close both ends."""
        self.close_sender()
        os.close(self._reader)


def wait_for_any(*signals: LocalSignal, timeout: float | None) -> None:
    """Wait until one of the signals can be read, for up to ``timeout`` seconds, or for ever."""
    poll = select.poll()
    for signal in signals:
        poll.register(signal.fileno(), select.POLLIN)
    poll.poll(None if timeout is None else timeout * 1000)
