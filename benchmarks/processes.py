"""Processes that are measured: started as users start them, on the cores that they are given."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pixyproxy.serving.workers import GENERATION_WORKER_NAME

ROOT = Path(__file__).parents[1]

_LISTENING = re.compile(r"listening on (\S+)")
_STOP_TIMEOUT = 30.0

Cores = frozenset[int]


def python(*arguments: str) -> tuple[str, ...]:
    """Return a command that runs a module."""
    return (sys.executable, "-m", *arguments)


@dataclass(frozen=True)
class Serving:
    """A process that serves.

    Attributes:
        address: host:port.
        process: the process itself.
        start_seconds: how long it took from its start until it served.
    """

    address: str
    process: psutil.Popen
    start_seconds: float

    def rss(self) -> int:
        """Return the bytes of memory that all that do the work hold together."""
        return sum(_rss_of(self._at_work()))

    def rss_of_workers(self) -> list[int]:
        """Return the bytes of memory that each holds that takes calls."""
        return _rss_of(one for one in self._at_work() if one.name() != GENERATION_WORKER_NAME)

    def peak_rss(self) -> int:
        """Return the most bytes of memory that all that do the work have held since ``forget_peak``, together."""
        return sum(_peak_of(one.pid) for one in self._at_work())

    def pss(self) -> int:
        """Return the bytes of memory that all that do the work hold, shared memory counted once."""
        return sum(one.memory_full_info().pss for one in self._at_work())

    def forget_peak(self) -> None:
        """Begin to look for the most memory anew."""
        for one in self._at_work():
            Path(f"/proc/{one.pid}/clear_refs").write_text("5", encoding="ascii")

    def _at_work(self) -> list[psutil.Process]:
        """Return the processes that do the work: its children, or the process where it has none."""
        return self.process.children(recursive=True) or [self.process]


@contextlib.contextmanager
def serving(command: Sequence[str], cores: Cores, folder: Path, settings: Mapping[str, str]) -> Iterator[Serving]:
    """Run a server, whose log goes to a file in ``folder``, and end it afterwards.

    Raises:
        RuntimeError: it ended before it served.
    """
    folder.mkdir(exist_ok=True)
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support/early'}",
        "PIXYPROXY_LISTEN": "127.0.0.1:0",
        **settings,
    }
    log = folder / "log"
    with log.open("wb") as err:
        began = time.perf_counter()
        process = psutil.Popen([*on_cores(cores), *command], env=env, cwd=folder, stdout=subprocess.PIPE, stderr=err)
    try:
        address = _address(process)
        if address is None:
            raise RuntimeError(f"{command} did not start: {log.read_text(encoding='utf-8')[-2000:]}")
        yield Serving(address, process, time.perf_counter() - began)
    finally:
        _end(process)


def on_cores(cores: Cores) -> list[str]:
    """Return what to put before a command that is to run on ``cores``."""
    return ["taskset", "--cpu-list", ",".join(map(str, sorted(cores)))]


def pin(process: psutil.Process, cores: Cores) -> None:
    """Put a running process and all its threads on ``cores``."""
    for thread in process.threads():
        with contextlib.suppress(ProcessLookupError):  # It has ended meanwhile.
            os.sched_setaffinity(thread.id, cores)


def let_loose(process: psutil.Process, cores: Cores) -> None:
    """Let a running server, which has put itself on one core, run on ``cores`` like any other process."""
    pin(process, cores)
    for thread in process.threads():
        with contextlib.suppress(ProcessLookupError):  # It has ended meanwhile.
            os.sched_setscheduler(thread.id, os.SCHED_OTHER, os.sched_param(0))


def _end(process: psutil.Popen) -> None:
    family = [process, *process.children(recursive=True)] if process.is_running() else []
    process.terminate()
    _, alive = psutil.wait_procs(family, _STOP_TIMEOUT)
    for member in alive:
        member.kill()
    process.wait()
    process.stdout.close()


def _address(process: psutil.Popen) -> str | None:
    for line in process.stdout:
        found = _LISTENING.search(line.decode())
        if found:
            return found[1]
    return None


def _rss_of(processes: Iterable[psutil.Process]) -> list[int]:
    return [process.memory_info().rss for process in processes]


def _peak_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024
