"""A network between two processes that can be cut: a TCP proxy on this machine."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.addresses import free_port

_CHUNK = 64 * 1024
_BACKLOG = 256


@dataclass(eq=False)
class _Link:
    """One connection. A lost one takes what it is given for good and never answers, as after a firewall's restart."""

    near: socket.socket
    far: socket.socket | None = None
    is_lost: bool = False

    def close(self) -> None:
        for end in (self.near, self.far):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


class TcpProxy:
    """Forwards connections to an address until it is told otherwise.

    Attributes:
        port: where it listens on 127.0.0.1.
    """

    def __init__(self, host: str, port: int, source: str = "") -> None:
        """Forward to ``host`` and ``port``, from the address ``source`` where one is given."""
        self._target = (host, port)
        self._source = source
        self._links: set[_Link] = set()
        self._lock = threading.Lock()
        self._is_silent = False
        # Not a port that the system chooses: while this refuses connections, it would give it to others.
        self.port = free_port()
        self._listener = self._listen(self.port)

    def silence(self) -> None:
        """Stop forwarding without a word. Connections that are there or come meanwhile are lost for good."""
        with self._lock:
            self._is_silent = True
            for link in self._links:
                link.is_lost = True

    def refuse(self) -> None:
        """Cut all connections and refuse new ones."""
        # A plain close would leave the thread that accepts holding the port.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._drop_links()

    def resume(self) -> None:
        """Forward again."""
        with self._lock:
            self._is_silent = False
        if self._listener.fileno() == -1:
            self._listener = self._listen(self.port)

    def close(self) -> None:
        """End everything."""
        self.refuse()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            link = _Link(near)
            with self._lock:
                link.is_lost = self._is_silent
                self._links.add(link)
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: _Link) -> None:
        try:
            if not link.is_lost:
                link.far = socket.create_connection(self._target, source_address=(self._source, 0))
                for end in (link.near, link.far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(link, link.far, link.near), daemon=True).start()
            self._pump(link, link.near, link.far)
        except OSError:
            self._end(link)

    def _pump(self, link: _Link, source: socket.socket, target: socket.socket | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                if not link.is_lost and target is not None:
                    target.sendall(data)
        # That the far end hangs up does not get through a cut either.
        if not (link.is_lost and source is link.far):
            self._end(link)

    def _end(self, link: _Link) -> None:
        with self._lock:
            self._links.discard(link)
        link.close()

    def _drop_links(self) -> None:
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            link.close()


@contextlib.contextmanager
def tcp_proxy(host: str, port: int, source: str = "") -> Iterator[TcpProxy]:
    """A proxy that ends with the context."""
    proxy = TcpProxy(host, port, source)
    try:
        yield proxy
    finally:
        proxy.close()
