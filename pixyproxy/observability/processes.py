"""What the system knows of a server's processes: their memory, processor time and open files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Metric, ProcessCollector
from prometheus_client.registry import Collector


class LiveProcessesCollector(Collector):
    """The usual ``process_…`` metrics of this process and of all that keep numbers in a folder, by process id."""

    def __init__(self, folder: Path) -> None:
        """Look into ``folder`` for who lives."""
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """Ask the system."""
        families: dict[str, Metric] = {}
        for process_id in sorted(self._live()):
            for found in _collector_of(process_id).collect():
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.add_sample(sample.name, {"pid": str(process_id)}, sample.value)
        return families.values()

    def _live(self) -> set[int]:
        """Return the ids of the processes that live, and remove the files of those that have died."""
        live = {os.getpid()}
        for file in self._folder.glob("gauge_live*_*.db"):
            process_id = int(file.stem.rpartition("_")[2])
            if _lives(process_id):
                live.add(process_id)
            else:
                file.unlink(missing_ok=True)
        return live


def _lives(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def _collector_of(process_id: int) -> ProcessCollector:
    return ProcessCollector(pid=lambda: process_id, registry=None)
