"""The way by which workers hand requests for images to the maker, the process that makes images for all of them.

It consists of sockets without names, which only processes have that were forked from the one that made the first pair.
Nobody else can reach them; so what comes over them may be unpickled.
"""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from pixyproxy.core.models import Caller, ImageCreation

_A_BYTE = b"."  # Without one, no descriptor is passed.
_GONE = (EOFError, OSError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Order:
    """A request for an image, with all that the maker has to know of its call.

    Attributes:
        creation: what to make.
        author: for whom.
        ends_at: until when the caller waits, by ``time.monotonic``, which all processes of a machine share; None where
            it waits for ever.
        request_id: the id for the log.
        trace_id: the id of the call's trace, or "".
        trace_headers: what makes the maker's work a part of that trace.
    """

    creation: ImageCreation
    author: Caller
    ends_at: float | None
    request_id: str
    trace_id: str
    trace_headers: Mapping[str, str]


class LineBrokenError(Exception):
    """The other end of a line is gone, or this one was hung up."""


class Line:
    """One end of the connection for a single order."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._connection = Connection(end.fileno())
        self._lock = threading.Lock()

    def send(self, what: object) -> None:
        """Say something.

        Raises:
            LineBrokenError: nobody can hear it.
        """
        try:
            self._connection.send(what)
        except OSError as error:
            raise LineBrokenError from error

    def receive(self, timeout: float | None = None) -> Any:
        """Return what the other end says next, waiting for up to ``timeout`` seconds, or for ever.

        Raises:
            TimeoutError: it has said nothing.
            LineBrokenError: it will say nothing.
        """
        try:
            if self._connection.poll(timeout):
                return self._connection.recv()
        except _GONE as error:
            raise LineBrokenError from error
        raise TimeoutError

    def hang_up(self) -> None:
        """Let both ends know that nothing more is said; whoever waits here for something wakes up."""
        with self._lock, suppress(OSError):  # It may be over already.
            self._socket.shutdown(socket.SHUT_RDWR)

    def fileno(self) -> int:
        """Return its file descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give it up; the other end learns of it."""
        with self._lock:
            self._socket.detach()
            self._connection.close()


class Handover:
    """A queue of lines to the maker. What is in it outlives the maker, and waits for the next one.

    To be made before workers and maker are forked. The maker's end of it ends when the last process is gone that could
    begin a line.
    """

    def __init__(self) -> None:
        self._giving, self._taking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._giving.setblocking(False)
        self._taking.setblocking(False)

    def keep_giving(self) -> None:
        """Be one of those that begin lines, and no more."""
        self._taking.close()

    def keep_taking(self) -> None:
        """Be the one that takes them, and no more."""
        self._giving.close()

    def close(self) -> None:
        """Be neither."""
        self._giving.close()
        self._taking.close()

    def begin_line(self) -> Line:
        """Begin a line, whose other end the maker takes as soon as it can.

        Raises:
            BlockingIOError: too many are waiting.
            OSError: there is no maker, and there will be none.
        """
        mine, other = socket.socketpair()
        try:
            with other:
                socket.send_fds(self._giving, [_A_BYTE], [other.fileno()])
        except BaseException:
            mine.close()
            raise
        return Line(mine)

    def take_line(self) -> Line | None:
        """Take the end of the next line; None where nobody is left who could begin one.

        Raises:
            BlockingIOError: there is none now.
        """
        said, ends, _, _ = socket.recv_fds(self._taking, len(_A_BYTE), 1)
        if not said:
            return None
        if not ends:
            raise BlockingIOError("There was no file descriptor left for a line, which so is broken.")
        return Line(socket.socket(fileno=ends[0]))

    def fileno(self) -> int:
        """Return the file descriptor that can be read from when there is a line to take."""
        return self._taking.fileno()
