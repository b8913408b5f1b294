"""Keeps the connections of a process within limits: closes idle ones, the longest idle first.

gRPC's Python API tells nothing of connections, and gRPC's own limit only refuses new ones. So a thread lists the
sockets of the process, and shuts down those that have no call in flight.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol
from urllib.parse import quote

import grpc

from pixyproxy.resource.tally import Tally

_INTERVAL_SECONDS = 0.25
# This share of the limit is kept free for those who connect within the interval; at the limit itself gRPC refuses them.
_FREE_SHARE = 8
# To look at 3,000 connections takes 20 ms of processor time; it is to be a twentieth of a core at the most.
_REST = 20
_DESCRIPTORS = "/dev/fd"


@dataclass(frozen=True)
class ConnectionLimits:
    """The most connections that a process has open at a time.

    Attributes:
        total: of all callers.
        per_address: of one address.
    """

    total: int
    per_address: int


class ConnectionCounter(Protocol):
    """Where connections are counted."""

    def set_limit(self, count: int) -> None:
        """Note the most connections that may be open."""

    def opened(self, count: int) -> None:
        """Note how many are open."""

    def closed(self, limit: str) -> None:
        """Note that one was closed because of a limit, ``total`` or ``per_address``."""


@dataclass(eq=False)
class _Connection:
    """A socket of a caller.

    Attributes:
        peer: its other end, as gRPC writes it.
        host: the address in it.
        used_at: when its last call ended or, without any, when it was first seen.
    """

    descriptor: int
    status: os.stat_result
    peer: str
    host: str
    used_at: float = field(default_factory=time.monotonic)
    is_shut: bool = False


class ConnectionLimiter:
    """Looks at all connections, four times a second or less often, and closes what is over the limits."""

    def __init__(
        self,
        limits: ConnectionLimits,
        counter: ConnectionCounter | None = None,
        *,
        is_exempt: Callable[[str], bool],
    ) -> None:
        """Do nothing yet.

        Args:
            limits: how many may be open.
            counter: what counts them for metrics.
            is_exempt: tells whether an address may have any number of them, as that of a proxy.
        """
        self._limits = limits
        self._counter = counter
        self._is_exempt = is_exempt
        self._tally = Tally(
            "Connections closed, idle ones first, because of PIXYPROXY_MAX_CONNECTIONS (total) or "
            "PIXYPROXY_MAX_CONNECTIONS_PER_ADDRESS (per_address)",
            None if counter is None else counter.closed,
            level=logging.WARNING,
        )
        if counter is not None:
            counter.set_limit(limits.total)
        self._calls: Counter[str] = Counter()
        self._ended_at: dict[str, float] = {}
        self._lock = threading.Lock()
        # All sockets seen the last time; None stands for one that is no caller's.
        self._sockets: dict[tuple[int, int], _Connection | None] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, port: int) -> None:
        """Begin to look after those who are connected to a port."""
        self._thread = threading.Thread(target=self._run, args=(port,), name="connections", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def begin_call(self, context: grpc.ServicerContext) -> None:
        """Know that a call is in flight on its connection, until it ends."""
        peer = context.peer()
        with self._lock:
            self._calls[peer] += 1
        if not context.add_callback(partial(self._end_call, peer)):
            self._end_call(peer)

    def _end_call(self, peer: str) -> None:
        with self._lock:
            self._calls[peer] -= 1
            if not self._calls[peer]:
                del self._calls[peer]
            self._ended_at[peer] = time.monotonic()

    def _run(self, port: int) -> None:
        took = 0.0
        while not self._closing.wait(max(_INTERVAL_SECONDS, _REST * took)):
            began = time.thread_time()
            try:
                connections = self._open_connections(port)
            except OSError:
                continue  # No descriptor is free to look with.
            if self._counter is not None:
                self._counter.opened(len(connections))
            self._enforce(connections)
            self._tally.report()
            took = time.thread_time() - began

    def _open_connections(self, port: int) -> list[_Connection]:
        """Return all callers' sockets."""
        found: dict[tuple[int, int], _Connection | None] = {}
        for name in os.listdir(_DESCRIPTORS):
            descriptor = int(name)
            try:
                status = os.fstat(descriptor)
            except OSError:
                continue  # Closed meanwhile.
            if stat.S_ISSOCK(status.st_mode):
                # Each socket has a number of its own, unlike its descriptor.
                key = (descriptor, status.st_ino)
                found[key] = self._sockets[key] if key in self._sockets else _identify(descriptor, status, port)
        self._sockets = found
        return [connection for connection in found.values() if connection is not None]

    def _enforce(self, connections: list[_Connection]) -> None:
        """Close what is over the limits."""
        with self._lock:
            busy = set(self._calls)
            ended_at, self._ended_at = self._ended_at, {}
        for connection in connections:
            connection.used_at = ended_at.get(connection.peer, connection.used_at)
        idle = sorted(
            (connection for connection in connections if connection.peer not in busy),
            key=lambda connection: connection.used_at,
        )
        by_host = Counter(connection.host for connection in connections)
        for host, count in by_host.items():
            excess = count - self._limits.per_address
            if excess > 0 and not self._is_exempt(host):
                latest = sorted(
                    (one for one in connections if one.host == host and one.peer in busy),
                    key=lambda connection: connection.used_at,
                    reverse=True,
                )
                for connection in [*(one for one in idle if one.host == host), *latest][:excess]:
                    self._shut(connection, "per_address")
        excess = len(connections) - (self._limits.total - self._limits.total // _FREE_SHARE)
        for connection in idle[: max(0, excess)]:
            self._shut(connection, "total")

    def _shut(self, connection: _Connection, limit: str) -> None:
        """End a connection, of which gRPC then closes the socket."""
        if connection.is_shut:
            return
        connection.is_shut = True
        socket_ = _duplicate(connection.descriptor, connection.status)
        if socket_ is None:
            return
        with socket_:
            try:
                socket_.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # The caller was faster.
        self._tally.add(limit)


def _duplicate(descriptor: int, status: os.stat_result) -> socket.socket | None:
    """Return a socket of our own for a descriptor, unless that has come to stand for something else meanwhile."""
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return None
    if not os.path.samestat(os.fstat(duplicate), status):
        os.close(duplicate)
        return None
    return socket.socket(fileno=duplicate)


def _identify(descriptor: int, status: os.stat_result, port: int) -> _Connection | None:
    """Return the connection that a socket is, or None if nobody is connected to the port by it."""
    socket_ = _duplicate(descriptor, status)
    if socket_ is None:
        return None
    with socket_:
        if socket_.family not in (socket.AF_INET, socket.AF_INET6) or socket_.getsockname()[1] != port:
            return None
        try:
            host, peer_port, _, scope = (*socket_.getpeername(), 0, 0)[:4]
        except OSError:
            return None  # It listens, or its caller has gone.
    host = host.removeprefix("::ffff:")
    if ":" not in host:
        return _Connection(descriptor, status, f"ipv4:{host}:{peer_port}", host)
    zone = f"%{scope}" if scope else ""
    return _Connection(descriptor, status, f"ipv6:{quote(f'[{host}{zone}]:{peer_port}', safe=':')}", host)
