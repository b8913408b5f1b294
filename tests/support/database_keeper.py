"""A script that keeps one command for a process that may be killed at any moment.

It makes a folder of its own inside a base folder, prints the folder's path, and then reads one JSON request per line
from standard input, and writes one JSON answer per line to standard output. At the end of its standard input, which
comes however the other process ends, it kills the command with everything that this started, and removes the folder.

A folder is locked for as long as its keeper or its command lives. A folder that is not locked was left behind,
by a power cut for example, and the next keeper with the same base removes it.

It runs apart from the tests and imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_LOCK = "in-use.lock"
_PR_SET_PDEATHSIG = 1


def claim_folder(base: Path) -> tuple[Path, int]:
    """Remove what was left behind in `base`, and make and lock a new folder there."""
    with (base / "claims.lock").open("w") as claims:
        # Held until the new folder has its own lock: before that it looks like one left behind.
        fcntl.flock(claims, fcntl.LOCK_EX)
        for folder in filter(Path.is_dir, base.iterdir()):
            _remove_if_unused(folder)
        folder = Path(tempfile.mkdtemp(dir=base))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def _remove_if_unused(folder: Path) -> None:
    # Locked, or just being removed by its own keeper.
    with contextlib.suppress(OSError), (folder / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


class Keeper:
    """What the requests act on: at most one command at a time."""

    def __init__(self, folder: Path, lock: int) -> None:
        """Keep commands that hold the lock on the folder, too."""
        self._folder = folder
        self._lock = lock
        self._command: subprocess.Popen[bytes] | None = None
        # Loaded here, because the time between fork and exec is none for loading.
        self._prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def execute(self, request: dict[str, Any]) -> int | None:
        """Execute one request: start, poll or signal."""
        match request["do"]:
            case "start":
                self._start(request["command"], request["environment"], Path(request["log"]), request["input"])
            case "poll":
                return self._command.poll() if self._command else None
            case "signal":
                self._signal(request["number"])
        return None

    def _start(self, command: list[str], environment: dict[str, str], log: Path, text: str | None) -> None:
        with log.open("wb") as output, tempfile.TemporaryFile(dir=self._folder) as source:
            source.write((text or "").encode())
            source.seek(0)
            self._command = subprocess.Popen(
                command,
                stdin=source,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=os.environ | environment,
                start_new_session=True,
                pass_fds=(self._lock,),
                preexec_fn=self._die_with_keeper,  # noqa: PLW1509  (this process has one thread)
            )

    def _die_with_keeper(self) -> None:
        # For the case that the keeper itself is killed. Linux only; elsewhere such a server is left over.
        if self._prctl is not None:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def _signal(self, number: int) -> None:
        # Not after poll() has seen the end: the number may belong to another process by then.
        if self._command and self._command.poll() is None:
            os.killpg(self._command.pid, number)
            if number == signal.SIGSTOP:
                _wait_until_stopped(self._command.pid)

    def close(self) -> None:
        """Kill what runs, and remove the folder."""
        if self._command:
            self._signal(signal.SIGKILL)
            self._command.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _wait_until_stopped(group: int) -> None:
    """Wait until every thread of a process group stands still: on a busy machine that takes a while, and one that still
    runs may still answer.
    """
    while any(_is_running(thread, group) for thread in Path("/proc").glob("[0-9]*/task/[0-9]*/stat")):
        time.sleep(0.001)


def _is_running(thread: Path, group: int) -> bool:
    try:
        # After the name, which stands in parentheses and may hold anything: state, parent, process group.
        state, _, its_group = thread.read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return False  # It has ended meanwhile.
    return int(its_group) == group and state not in "TtZX"


def main() -> None:
    """Execute requests until standard input ends."""
    folder, lock = claim_folder(Path(sys.argv[1]))
    keeper = Keeper(folder, lock)
    try:
        print(json.dumps({"answer": str(folder)}), flush=True)  # noqa: T201
        for line in sys.stdin:
            try:
                answer: dict[str, Any] = {"answer": keeper.execute(json.loads(line))}
            except OSError as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)  # noqa: T201
    finally:
        keeper.close()


if __name__ == "__main__":
    main()
