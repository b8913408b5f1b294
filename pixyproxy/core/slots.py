"""Slots of a limit that several processes share.

Each process counts its own slots in shared memory, so that those of a killed process can be given back.

Author: djjay
Date: 2026-11-21
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_COUNT_BYTES = 8


class SharedSlots:
    """The slots of all processes. Create it before forking."""

    def __init__(self, limit: int, processes: int = 1) -> None:
        """Make ``limit`` slots for all ``processes`` together."""
        self._limit = limit
        self._counts = memoryview(mmap.mmap(-1, processes * _COUNT_BYTES)).cast("q")
        # A file, because the system releases the file locks of a killed process, but not its semaphores.
        self._lock_file = os.memfd_create("slots") if processes > 1 else None

    def of(self, process: int) -> Slots:
        """Return the slots for a process, by its number from 0 on. Each process calls this once."""
        return Slots(self._limit, self._counts, process, self._lock_file)

    def clear(self, process: int) -> None:
        """Give back all slots of a process that has ended."""
        self._counts[process] = 0


class Slots:
    """The slots for the threads of one process.

    Attributes:
        limit: how many slots all processes have together.
    """

    def __init__(self, limit: int, counts: memoryview[int], process: int, lock_file: int | None) -> None:
        self.limit = limit
        self._counts = counts
        self._process = process
        self._lock_file = lock_file
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """How many slots all processes have taken."""
        with self._exclusive():
            return sum(self._counts)

    def take(self) -> bool:
        """Take a slot; return False if none is free."""
        with self._exclusive():
            if sum(self._counts) >= self.limit:
                return False
            self._counts[self._process] += 1
            return True

    def give_back(self) -> None:
        """Give a slot back."""
        with self._lock:
            self._counts[self._process] -= 1

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Let no other thread or process take slots meanwhile."""
        with self._lock:
            if self._lock_file is None:
                yield
                return
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._lock_file, fcntl.LOCK_UN)
