"""Addresses for servers that tests start."""

from __future__ import annotations

import contextlib
import random
import socket


def free_addresses(count: int) -> list[str]:
    """Addresses below the ports that the system hands out by itself, so that they stay free over a restart."""
    found: list[str] = []
    while len(found) < count:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(f"127.0.0.1:{port}")
    return found
