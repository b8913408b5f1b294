"""How much of a limit is taken, counted by several processes together.

Each process has a count of its own in memory that all share, so that what a killed one held can be given back for it.

Author: djjay
Date: 2026-11-21
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading

_COUNT_BYTES = 8


class SharedSlots:
    """A number of slots for several processes, to be made before these are forked."""

    def __init__(self, limit: int, processes: int = 1) -> None:
        """Have ``limit`` slots for ``processes`` together."""
        self.limit = limit
        # Shared with forked processes; beginning with zeros.
        memory = mmap.mmap(-1, processes * _COUNT_BYTES)
        self._counts = memoryview(memory).cast("q")
        # A file to lock, because the system gives up a killed process's locks on files, unlike its semaphores.
        self._lock_file = os.memfd_create("slots") if processes > 1 else None

    def of(self, process: int) -> Slots:
        """Return the slots as one of the processes takes them; to be asked once by each, by its number from 0 on."""
        return Slots(self, process)

    def clear(self, process: int) -> None:
        """Give back all that a process held that has ended."""
        self._counts[process] = 0

    def taken(self) -> int:
        """Return how many are taken, by all processes."""
        return sum(self._counts)

    def take(self, process: int) -> bool:
        """Take a slot for a process, by one of its threads at a time; return False where all are taken."""
        if self._lock_file is None:
            return self._take(process)
        fcntl.lockf(self._lock_file, fcntl.LOCK_EX)
        try:
            return self._take(process)
        finally:
            fcntl.lockf(self._lock_file, fcntl.LOCK_UN)

    def give_back(self, process: int) -> None:
        """Give a slot back for a process, by one of its threads at a time."""
        self._counts[process] -= 1

    def _take(self, process: int) -> bool:
        if self.taken() >= self.limit:
            return False
        self._counts[process] += 1
        return True


class Slots:
    """Slots as the threads of one process take them."""

    def __init__(self, shared: SharedSlots, process: int) -> None:
        self._shared = shared
        self._process = process
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take a slot, to be given back; return False where all are taken."""
        with self._lock:
            return self._shared.take(self._process)

    def give_back(self) -> None:
        """Give a slot back."""
        with self._lock:
            self._shared.give_back(self._process)

    @property
    def limit(self) -> int:
        """How many there are, for all processes."""
        return self._shared.limit

    @property
    def taken(self) -> int:
        """How many are taken, by all processes."""
        return self._shared.taken()
