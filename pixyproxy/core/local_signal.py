"""Signals between the processes of one server.

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
    """A pipe of numbers. Create it before forking.

    A signal is lost while the pipe is full. So receivers must poll as well; a signal only wakes them early.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def send(self, number: int = 0) -> None:
        """Wake the receiver."""
        with suppress(OSError):  # The pipe is full, so that the receiver wakes anyway, or there is no receiver.
            os.write(self._writer, _NUMBER.pack(number))

    def read(self) -> list[int]:
        """Return the numbers that were sent since the last call, without waiting."""
        try:
            data = os.read(self._reader, _READ_BYTES)
        except BlockingIOError:
            return []
        return [number for (number,) in _NUMBER.iter_unpack(data)]

    def wait_for_end(self) -> None:
        """Wait until all senders have closed the pipe or have ended."""
        poll = select.poll()
        poll.register(self._reader, 0)
        poll.poll()

    def fileno(self) -> int:
        """Return the file descriptor, which is readable when there is a signal."""
        return self._reader

    def close_sender(self) -> None:
        """Close the sending end of this process."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    def close(self) -> None:
        """Close both ends."""
        self.close_sender()
        os.close(self._reader)


def wait_for_any(*signals: LocalSignal, timeout: float | None) -> None:
    """Wait until one of the signals is readable, for up to ``timeout`` seconds, or without a limit."""
    poll = select.poll()
    for signal in signals:
        poll.register(signal.fileno(), select.POLLIN)
    poll.poll(None if timeout is None else timeout * 1000)
