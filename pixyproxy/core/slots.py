"""Slots of a limit that several processes share, and that one holder alone cannot use up.

Each process counts its own slots in shared memory, so that those of a killed process can be given back.

Author: djjay
Date: 2026-11-21
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

_COUNT_BYTES = 8
# Each process has so many counts. Holders whose slots are counted together only have fewer of them. A holder has the
# same hash in all processes, because they are forked.
_SHARES = 64
# How many times as many slots as are free a holder may have. So there is a third more slots than one holder may have.
_MOST_PER_FREE = 3


class SharedSlots:
    """The slots of all processes. Create it before forking."""

    def __init__(self, limit: int, processes: int = 1) -> None:
        """Make slots for all ``processes`` together: ``limit`` for one holder, and a third more for all."""
        self._limit = limit
        self._counts = memoryview(mmap.mmap(-1, processes * _SHARES * _COUNT_BYTES)).cast("q")
        # A file, because the system releases the file locks of a killed process, but not its semaphores.
        self._lock_file = os.memfd_create("slots") if processes > 1 else None

    def of(self, process: int) -> Slots:
        """Return the slots for a process, by its number from 0 on. Each process calls this once."""
        return Slots(self._limit, self._counts, process, self._lock_file)

    def clear(self, process: int) -> None:
        """Give back all slots of a process that has ended."""
        for number in range(process * _SHARES, (process + 1) * _SHARES):
            self._counts[number] = 0


class Slots:
    """The slots for the threads of one process.

    Attributes:
        limit: how many slots a holder may have, of all processes together, if there is no other holder.
        total: how many slots all holders have together.
    """

    def __init__(self, limit: int, counts: memoryview[int], process: int, lock_file: int | None) -> None:
        self.limit = limit
        self.total = limit * (_MOST_PER_FREE + 1) // _MOST_PER_FREE
        self._counts = counts
        self._process = process
        self._lock_file = lock_file
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """How many slots all processes have taken."""
        with self._exclusive():
            return sum(self._counts)

    def take(self, holder: Hashable) -> bool:
        """Take a slot; return False if none is free, or if the free ones are left to other holders."""
        share = hash(holder) % _SHARES
        with self._exclusive():
            free = self.total - sum(self._counts)
            if sum(self._counts[share::_SHARES]) >= _MOST_PER_FREE * free:
                return False
            self._counts[self._process * _SHARES + share] += 1
            return True

    def give_back(self, holder: Hashable) -> None:
        """Give a slot of a holder back."""
        with self._lock:
            self._counts[self._process * _SHARES + hash(holder) % _SHARES] -= 1

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
