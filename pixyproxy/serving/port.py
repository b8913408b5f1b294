"""The port to serve on: shared by the RPC workers of one server, and with no other server."""

from __future__ import annotations

import errno
import socket

from pixyproxy.core.exceptions import ConfigurationError
from pixyproxy.settings import Settings, split_address


class PortClaim:
    """A port for RPC workers to listen on, which no other server can bind from now on.

    RPC workers share it by ``SO_REUSEPORT``, with which a second server would start on it without an error. So the
    claim first listens without that option, which fails on a port in use, and then sets it. It is closed when all RPC
    workers listen; connections before that are reset.

    Attributes:
        port: its number.
        address: host:port.
    """

    def __init__(self, settings: Settings) -> None:
        """Claim the port that the settings name.

        Raises:
            ConfigurationError: the port is not available.
        """
        host, self.port = split_address(settings.listen)
        self._listeners: list[socket.socket] = []
        try:
            for family, _, _, _, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
                self._listen(family, (address[0], self.port, *address[2:]))
        except OSError as error:
            self.close()
            raise cannot_listen(settings) from error
        if not self._listeners:
            raise cannot_listen(settings)
        self.address = f"{settings.listen.rpartition(':')[0]}:{self.port}"

    def close(self) -> None:
        """Close the listeners of this process."""
        for listener in self._listeners:
            listener.close()

    def _listen(self, family: int, address: tuple[object, ...]) -> None:
        try:
            listener = socket.create_server(address, family=family, backlog=1)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return  # A name may also have addresses of other machines.
            raise
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._listeners.append(listener)
        self.port = listener.getsockname()[1]


def cannot_listen(settings: Settings) -> ConfigurationError:
    """Return the error for a port that is not available."""
    return ConfigurationError(
        f"PIXYPROXY_LISTEN: cannot listen on {settings.listen}. Another server uses the port, or the address is not "
        "one of this machine, or this user may not use the port."
    )
