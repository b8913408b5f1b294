"""Connections to a server: to each of several RPC workers, and idle ones."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.support.rpc import TIMEOUT, call_id_of
from tests.support.servers import RunningServer, image_stub
from tests.support.waiting import wait_until

_CONNECT_TIMEOUT = 30.0
_LOOPBACK = ("127.0.0.1",)


class Connections:
    """Several connections to RPC workers, which the system shares out as it likes."""

    def __init__(self, server: RunningServer, *options: tuple[str, Any]) -> None:
        self._server = server
        self._options = options
        self._open = ExitStack()

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def another(self) -> tuple[int, Any]:
        """Connect, and return whom to and the image service there."""
        stub = image_stub(self._open.enter_context(self._server.new_channel(*self._options)))
        _, call = stub.ListImages.with_call(pb.ListImagesRequest(), timeout=TIMEOUT)
        return self._server.rpc_worker_of(call_id_of(call)), stub

    def one_to_each(self) -> dict[int, Any]:
        """Connect until there is a connection to each RPC worker, and return one of each."""
        found: dict[int, Any] = {}

        def is_complete() -> bool:
            worker, stub = self.another()
            found.setdefault(worker, stub)
            return len(found) == len(self._server.rpc_workers)

        wait_until(is_complete, TIMEOUT, "a connection to each RPC worker")
        return found


class IdleConnections:
    """Connections of somebody who sends the same few bytes on each and then nothing; closed at the end."""

    def __init__(self, server: RunningServer, first_bytes: bytes = b"", *, sources: Sequence[str] = _LOOPBACK) -> None:
        """Connect to ``server`` from each of ``sources`` in turn, which may be all addresses of 127.0.0.0/8."""
        host, _, port = server.address.rpartition(":")
        self._address = (host, int(port))
        self._first_bytes = first_bytes
        self._sources = itertools.cycle(sources)
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> IdleConnections:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._sockets:
            connection.close()

    def open(self, number: int) -> None:
        """Open so many more."""
        for _ in range(number):
            connection = socket.create_connection(
                self._address, timeout=_CONNECT_TIMEOUT, source_address=(next(self._sources), 0)
            )
            self._sockets.append(connection)
            with suppress(ConnectionError):  # The server may have closed it already.
                connection.sendall(self._first_bytes)

    @property
    def alive(self) -> list[int]:
        """Which of them, in the order in which they were opened, the server has left open."""
        return [number for number, connection in enumerate(self._sockets) if not _is_closed(connection)]


def _is_closed(connection: socket.socket) -> bool:
    """Read what there is, and tell whether that is the end."""
    connection.setblocking(False)
    try:
        while connection.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True
