"""Collects the metrics of a server's processes, and those of the operating system for them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Metric, ProcessCollector
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector


class ProcessesCollector(Collector):
    """The metrics that processes write to a folder, and the standard ``process_…`` metrics of each, by process id."""

    def __init__(self, folder: Path) -> None:
        """Find the processes by their files in ``folder``."""
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """Read the metrics from the system and from the files."""
        # Before the files are read, because it removes those of ended processes.
        live = self._live()
        # A process creates its files empty; the package cannot read those.
        written = MultiProcessCollector.merge([str(file) for file in self._folder.glob("*.db") if _size_of(file)])
        families: dict[str, Metric] = {}
        for process_id in sorted(live):
            for found in _collector_of(process_id).collect():
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.add_sample(sample.name, {"pid": str(process_id)}, sample.value)
        return [*families.values(), *written]

    def _live(self) -> set[int]:
        """Return the ids of running processes, and remove the files of ended ones."""
        live = {os.getpid()}
        for file in self._folder.glob("gauge_live*_*.db"):
            process_id = int(file.stem.rpartition("_")[2])
            if _lives(process_id):
                live.add(process_id)
            else:
                file.unlink(missing_ok=True)
        return live


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # Removed by another scrape.
        return 0


def _lives(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except OSError:  # There is none, or it belongs to another user: then the number is used again.
        return False
    return True


def _collector_of(process_id: int) -> ProcessCollector:
    return ProcessCollector(pid=lambda: process_id, registry=None)
