"""The port to serve on: shared by our own workers, and by nobody else."""

from __future__ import annotations

import errno
import socket

from pixyproxy.core.exceptions import ConfigurationError
from pixyproxy.settings import Settings


class PortClaim:
    """A port for workers to listen on, which no other server can have from now on.

    Workers share it by ``SO_REUSEPORT``, with which a second server would start there without an error. So the claim
    listens first, as only one can, and then lets others in. It is closed when all workers listen; who connects before
    that is sent away.

    Attributes:
        port: its number.
        address: host:port.
    """

    def __init__(self, settings: Settings) -> None:
        """Claim the port that the settings name.

        Raises:
            ConfigurationError: another server has it, or it cannot be had at all.
        """
        self.port = settings.listen_port
        self._listeners: list[socket.socket] = []
        try:
            for family, _, _, _, address in socket.getaddrinfo(settings.listen_host, None, type=socket.SOCK_STREAM):
                self._listen(family, (address[0], self.port, *address[2:]))
        except OSError as error:
            self.close()
            raise cannot_listen(settings) from error
        if not self._listeners:
            raise cannot_listen(settings)
        self.address = f"{settings.listen.rpartition(':')[0]}:{self.port}"

    def close(self) -> None:
        """Leave the port to the workers; in a worker, to the others."""
        for listener in self._listeners:
            listener.close()

    def _listen(self, family: int, address: tuple[object, ...]) -> None:
        try:
            listener = socket.create_server(address, family=family, backlog=1)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return  # A name may stand for addresses that are not all ours.
            raise
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._listeners.append(listener)
        self.port = listener.getsockname()[1]


def cannot_listen(settings: Settings) -> ConfigurationError:
    """Return the error for a port that cannot be had."""
    return ConfigurationError(f"PIXYPROXY_LISTEN: cannot listen on {settings.listen}; is another server there already?")
