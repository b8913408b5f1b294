"""The cores that the process may use, and who goes first on them."""

from __future__ import annotations

import math
import os
import random
import socket
from contextlib import suppress
from pathlib import Path

_NICENESS = 10
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def can_choose_cores() -> bool:
    """Tell whether a process may be held to a core."""
    return hasattr(os, "sched_setaffinity")


def can_share_work() -> bool:
    """Tell whether processes can share a port, with a core for each; else one must do."""
    return can_choose_cores() and hasattr(os, "memfd_create") and hasattr(socket, "SO_REUSEPORT")


def usable_cores() -> list[int]:
    """Return the numbers of the cores that the process may run on, where it may be held to one."""
    return sorted(os.sched_getaffinity(0))


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


def choose_cores(workers: int) -> list[int]:
    """Return a core for each worker, a different one for each as far as there are enough.

    Of more than enough not always the first ones are chosen, on which all servers of a machine would crowd.
    """
    cores = usable_cores()
    if workers < len(cores):
        return random.sample(cores, workers)
    return [cores[number % len(cores)] for number in range(workers)]


def stay_on(core: int) -> None:
    """Keep this process on one core: to pass the interpreter's lock between cores costs half of all time.

    The threads that it starts from now on also let each other finish: one that is woken would otherwise be given the
    core at once, only to find that the other one holds the interpreter's lock.
    """
    os.sched_setaffinity(0, {core})
    with suppress(OSError):  # Where a container forbids it, all works as well, but slower.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def give_way() -> None:
    """Let other processes go first. Not under SCHED_IDLE, which on a busy machine lets nothing renew the leases."""
    os.nice(_NICENESS)
