"""Waiting for signals."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

END_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def receiving_signals(*numbers: signal.Signals) -> Iterator[socket.socket]:
    """Yield a socket from which a byte can be read for each signal: its number.

    A lock or an event would not do: Python runs handlers in the main thread only, which may go on sleeping if the
    system delivers the signal to another thread, or may hold that lock itself.
    """
    received, sender = socket.socketpair()
    with received, sender:
        sender.setblocking(False)
        signal.set_wakeup_fd(sender.fileno())
        for number in numbers:
            signal.signal(number, _ignore)
        try:
            yield received
        finally:
            restore_handlers(*numbers)


def restore_handlers(*numbers: signal.Signals) -> None:
    """Restore the default handlers."""
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing. Only a signal that has a handler is written to the socket."""
