"""Metrics of the operating system for a server's processes: memory, CPU time and open files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Metric, ProcessCollector
from prometheus_client.registry import Collector


class LiveProcessesCollector(Collector):
    """The standard ``process_…`` metrics, by process id, of this process and of all that write metrics to a folder."""

    def __init__(self, folder: Path) -> None:
        """Find the processes by their files in ``folder``."""
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """Read the metrics from the system."""
        families: dict[str, Metric] = {}
        for process_id in sorted(self._live()):
            for found in _collector_of(process_id).collect():
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.add_sample(sample.name, {"pid": str(process_id)}, sample.value)
        return families.values()

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


def _lives(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except OSError:  # There is none, or it belongs to another user: then the number is used again.
        return False
    return True


def _collector_of(process_id: int) -> ProcessCollector:
    return ProcessCollector(pid=lambda: process_id, registry=None)
