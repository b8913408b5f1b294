"""Processes of Python that tests start: forked from one that has imported PixyProxy, where that changes nothing."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

_ROOT = Path(__file__).parents[2]
_MODULE = (sys.executable, "-m")
_ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONPATH": str(_ROOT)}
"""Of the fork server; a variable that Python reads when it starts has this value in all that it forks."""


class Process(Protocol):
    """A process, as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int:
        """Its id."""

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, at most `timeout` seconds, upon which `subprocess.TimeoutExpired` is raised."""

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has ended."""

    def kill(self) -> None:
        """End it at once."""


def start_process(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    stdout: IO[bytes],
    stderr: IO[bytes],
    stdin: IO[bytes] | None = None,
) -> Process:
    """Start a process; `python -m MODULE` is forked from the fork server where that gives the same."""
    if _can_be_forked(command, env):
        with open(os.devnull, "rb") as nothing:
            streams = [stream.fileno() for stream in (stdin or nothing, stdout, stderr)]
            return ForkedProcess(_fork_server(), command[len(_MODULE) :], env, cwd, streams)
    return subprocess.Popen(command, env=dict(env), cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr)


def _can_be_forked(command: Sequence[str], env: Mapping[str, str]) -> bool:
    read_by_python = {name: value for name, value in env.items() if name.startswith(("PYTHON", "LC_", "LANG"))}
    return (
        sys.platform == "linux"
        and tuple(command[: len(_MODULE)]) == _MODULE
        and read_by_python.items() <= _ENVIRONMENT.items()
        and "LANG" in read_by_python
    )


@functools.cache
def _fork_server() -> socket.socket:
    """Start the fork server of this process, and return the socket for its requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [*_MODULE, "tests.support.fork_server"], env=_ENVIRONMENT, cwd=_ROOT, stdin=theirs.fileno()
        )

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours


class ForkedProcess:
    """A process that the fork server has started."""

    def __init__(
        self,
        server: socket.socket,
        arguments: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        streams: Sequence[int],
    ) -> None:
        """Start it; it has these file descriptors as its standard streams."""
        report, theirs = os.pipe()
        self._report = open(report, "rb", buffering=0)  # noqa: SIM115
        request = {"arguments": list(arguments), "environment": dict(env), "folder": str(cwd)}
        try:
            socket.send_fds(server, [json.dumps(request).encode()], [*streams, theirs])
        finally:
            os.close(theirs)
        self.pid = int(self._report.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit status, or None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return status

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and _is_readable(self._report, timeout):
            line = self._report.readline()
            assert line, "the fork server has ended"
            self.returncode = int(line)
            self._report.close()
        return self.returncode


def ask_threads(pid: int, ask: Callable[[int], int]) -> list[int]:
    """Ask the same of each thread of a process, but for those that end meanwhile."""
    answers = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            answers.append(ask(int(thread.name)))
    return answers


def is_stopped(pid: int) -> bool:
    """Tell whether all threads of a process are stopped; after SIGSTOP, each first ends its system call."""
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    try:
        return {_state(thread) for thread in threads} == {"T"}
    except (FileNotFoundError, ProcessLookupError):
        return False  # A thread has just ended, so that it ran.


def is_asleep(pid: int) -> bool:
    """Tell whether a process's main thread waits for something."""
    return _state(Path(f"/proc/{pid}")) == "S"


def has_ended(pid: int) -> bool:
    """Tell whether a process is gone, or dead and not yet buried by whoever inherited it."""
    try:
        return _state(Path(f"/proc/{pid}")) == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _state(task: Path) -> str:
    """The state of a process or thread, as proc(5) abbreviates it."""
    return (task / "stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]


def _is_readable(file: Any, timeout: float | None) -> bool:
    # Not select.select, which takes no descriptor over 1,023.
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))
