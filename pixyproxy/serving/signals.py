"""Signals that are waited for."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

END_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def heard(*numbers: signal.Signals) -> Iterator[socket.socket]:
    """Give a socket from which a byte can be read for each signal that comes: its number.

    A lock or an event will not do: Python runs handlers in the main thread only, which may sleep on while another
    thread is handed the signal, or may hold that very lock.
    """
    told, tell = socket.socketpair()
    with told, tell:
        tell.setblocking(False)
        signal.set_wakeup_fd(tell.fileno())
        for number in numbers:
            signal.signal(number, _leave_to_the_socket)
        try:
            yield told
        finally:
            forget(*numbers)


def forget(*numbers: signal.Signals) -> None:
    """Leave signals to the system again."""
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)


def _leave_to_the_socket(number: int, frame: FrameType | None) -> None:
    """Handle a signal: only one that has a handler is written to the socket."""
