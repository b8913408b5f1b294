"""CPU cores and scheduling of processes."""

from __future__ import annotations

import math
import os
import random
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_NICENESS = 10
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def can_choose_cores() -> bool:
    """Tell whether a process can be pinned to a core."""
    return hasattr(os, "sched_setaffinity")


def can_share_work() -> bool:
    """Tell whether several processes can share a port, each pinned to a core."""
    return can_choose_cores() and hasattr(os, "memfd_create") and hasattr(socket, "SO_REUSEPORT")


def usable_cores() -> list[int]:
    """Return the numbers of the cores that the process may run on."""
    return sorted(os.sched_getaffinity(0))


def advised_workers(usable: Sequence[int] | None = None, quota: Path = _QUOTA) -> int:
    """Return how many RPC workers use the cores fully, within the CPU limit of a container.

    Args:
        usable: the numbers of the cores; by default, all that the process may run on.
        quota: the file with the microseconds of CPU that a container may use, and the period in microseconds.
    """
    if not can_share_work():
        return 1
    cores = len(usable_cores() if usable is None else usable)
    try:
        allowed, period = quota.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if allowed == "max" else max(1, min(cores, math.ceil(int(allowed) / int(period))))


def choose_cores(workers: int, usable: Sequence[int]) -> list[int]:
    """Return one of the usable cores for each RPC worker, different ones as far as there are enough.

    They are chosen at random, or several servers on a machine would all use the first cores.
    """
    if workers < len(usable):
        return random.sample(usable, workers)
    return [usable[number % len(usable)] for number in range(workers)]


def stay_on(core: int) -> None:
    """Pin this process to a core: passing the interpreter's lock between cores costs half of the throughput.

    Under ``SCHED_BATCH`` a woken thread does not preempt the running one, which still holds the interpreter's lock.
    """
    os.sched_setaffinity(0, {core})
    with suppress(OSError):  # A container may forbid it.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def give_way() -> None:
    """Lower the priority of this process. Under ``SCHED_IDLE`` a busy machine would run no generations."""
    os.nice(_NICENESS)
