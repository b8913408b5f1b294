"""Limits the connections of a process by closing idle ones, the longest idle first.

gRPC's Python API has no access to connections, and gRPC's own limit only refuses new ones. So a thread lists the
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
from typing import TYPE_CHECKING
from urllib.parse import quote

import grpc

from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.resource.tally import Tally

if TYPE_CHECKING:
    from pixyproxy.observability.metrics import ConnectionMetrics

_INTERVAL_SECONDS = 0.25
# An eighth of the limit stays free for new connections within the interval; at the limit itself gRPC refuses them.
_FREE_SHARE = 8
# A check of 3,000 connections takes 20 ms of CPU time. Checks may take a twentieth of a core.
_REST = 20
_DESCRIPTORS = "/dev/fd"


@dataclass(frozen=True)
class ConnectionLimits:
    """The most connections that a process may have open, of all clients and of one address."""

    total: int
    per_address: int


@dataclass(eq=False)
class _Connection:
    """A socket of a client.

    Attributes:
        peer: the client, as gRPC writes it.
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
    """Checks all connections, at most four times a second, and closes those over the limits."""

    def __init__(
        self,
        limits: ConnectionLimits,
        metrics: ConnectionMetrics | None = None,
        *,
        is_exempt: Callable[[str], bool],
    ) -> None:
        """Check from ``start`` on; ``is_exempt`` tells whether an address, such as a proxy's, has no own limit."""
        self._limits = limits
        self._metrics = metrics
        self._is_exempt = is_exempt
        self._tally = Tally(
            "Connections closed, idle ones first, because of PIXYPROXY_MAX_CONNECTIONS (total) or "
            "PIXYPROXY_MAX_CONNECTIONS_PER_ADDRESS (per_address)",
            None if metrics is None else metrics.closed,
            level=logging.WARNING,
        )
        if metrics is not None:
            metrics.set_limit(limits.total)
        self._calls: Counter[str] = Counter()
        self._ended_at: dict[str, float] = {}
        self._lock = threading.Lock()
        # All sockets of the last check; None stands for one that is no client's.
        self._sockets: dict[tuple[int, int], _Connection | None] = {}
        self._port = 0
        self._task = PeriodicTask("connections", self._check, retry_interval=_INTERVAL_SECONDS)

    def start(self, port: int) -> None:
        """Check the connections to a port from now on."""
        self._port = port
        self._task.start()

    def close(self) -> None:
        """Stop checking."""
        self._task.close()

    def begin_call(self, context: grpc.ServicerContext) -> None:
        """Count a call as in flight on its connection until it ends."""
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

    def _check(self) -> float:
        began = time.thread_time()
        try:
            connections = self._open_connections()
        except OSError:
            return _INTERVAL_SECONDS  # No descriptor is free to list them with.
        if self._metrics is not None:
            self._metrics.opened(len(connections))
        self._enforce(connections)
        self._tally.report()
        return max(_INTERVAL_SECONDS, _REST * (time.thread_time() - began))

    def _open_connections(self) -> list[_Connection]:
        """Return the sockets of all clients."""
        found: dict[tuple[int, int], _Connection | None] = {}
        for name in os.listdir(_DESCRIPTORS):
            descriptor = int(name)
            try:
                status = os.fstat(descriptor)
            except OSError:
                continue  # It is closed by now.
            if stat.S_ISSOCK(status.st_mode):
                # The number of a descriptor is used again; that of a socket is not.
                key = (descriptor, status.st_ino)
                found[key] = self._sockets[key] if key in self._sockets else _identify(descriptor, status, self._port)
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
        """Shut a connection down; gRPC then closes its socket."""
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
                return  # The client has closed it.
        self._tally.add(limit)


def _duplicate(descriptor: int, status: os.stat_result) -> socket.socket | None:
    """Return a duplicate of a socket, unless its descriptor stands for something else by now."""
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return None
    if not os.path.samestat(os.fstat(duplicate), status):
        os.close(duplicate)
        return None
    return socket.socket(fileno=duplicate)


def _identify(descriptor: int, status: os.stat_result, port: int) -> _Connection | None:
    """Return the connection of a socket, or None if it is no connection to the port."""
    socket_ = _duplicate(descriptor, status)
    if socket_ is None:
        return None
    with socket_:
        if socket_.family not in (socket.AF_INET, socket.AF_INET6) or socket_.getsockname()[1] != port:
            return None
        try:
            host, peer_port, _, scope = (*socket_.getpeername(), 0, 0)[:4]
        except OSError:
            return None  # It listens, or its client has disconnected.
    host = host.removeprefix("::ffff:")
    if ":" not in host:
        return _Connection(descriptor, status, f"ipv4:{host}:{peer_port}", host)
    zone = f"%{scope}" if scope else ""
    return _Connection(descriptor, status, f"ipv6:{quote(f'[{host}{zone}]:{peer_port}', safe=':')}", host)
