"""The cores that the process may use."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def can_share_work() -> bool:
    """Tell whether processes can share a port, with a core for each; else one must do."""
    return all(hasattr(os, name) for name in ("sched_setaffinity", "memfd_create")) and hasattr(socket, "SO_REUSEPORT")


def usable_cores() -> list[int]:
    """Return the numbers of the cores that the process may run on; where that is not known, none."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def advised_workers(quota: Path = _QUOTA) -> int:
    """Return how many workers make use of the cores, and of no more than a container's share of them.

    Args:
        quota: where Linux says how many microseconds of CPU a container may use, and within how many.
    """
    if not can_share_work():
        return 1
    cores = len(usable_cores())
    try:
        allowed, period = quota.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if allowed == "max" else max(1, min(cores, math.ceil(int(allowed) / int(period))))


def stay_on(core: int) -> None:
    """Keep this process on one core: to pass the interpreter's lock from core to core costs half of all time."""
    os.sched_setaffinity(0, {core})
