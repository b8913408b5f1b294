"""Addresses for servers that tests start."""

from __future__ import annotations

import contextlib
import random
import socket


def free_addresses(count: int) -> list[str]:
    """Addresses with a free port each."""
    return [f"127.0.0.1:{free_port()}" for _ in range(count)]


def free_port() -> int:
    """A port below those that the system hands out by itself, so that it stays free until a server has started."""
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
