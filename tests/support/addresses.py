"""Addresses for servers that tests start."""

from __future__ import annotations

import random
import socket

_reservations: list[socket.socket] = []


def free_addresses(count: int) -> list[str]:
    """Addresses with a free port each."""
    return [f"127.0.0.1:{free_port()}" for _ in range(count)]


def free_port() -> int:
    """A port for a server that is yet to be started, which nobody else is given as long as this process lives.

    It is below those that the system hands out by itself. A process reserves it by the UDP port of the same number.
    """
    while True:
        port = random.randrange(15_000, 30_000)
        reservation = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with socket.socket() as probe:
            try:
                reservation.bind(("127.0.0.1", port))
                probe.bind(("127.0.0.1", port))
            except OSError:
                reservation.close()
                continue
        _reservations.append(reservation)
        return port
