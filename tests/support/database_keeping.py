"""Commands that cannot outlive this process: the near side of `database_keeper.py`."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.waiting import wait_until

_SCRIPT = Path(__file__).with_name("database_keeper.py")
_NAME_LENGTH = 60
"""Characters of a failed command that go into the error message."""

_LOG_TAIL = 400
"""Characters of a failed command's output that go into the error message: its last lines."""


class CommandFailedError(Exception):
    """A kept command could not be run, failed, or took too long; the message says how, on one line."""


class KeptCommand:
    """A folder of its own with at most one running command; both go when this process goes, even by SIGKILL.

    Not for use by several threads at once.
    """

    def __init__(self, base: Path) -> None:
        """Make the folder inside `base`, which is made where it is not there.

        Raises:
            OSError: The folder cannot be made.
        """
        base.mkdir(parents=True, exist_ok=True)
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", str(_SCRIPT), str(base)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests: their end is what ends the keeper.
        )
        self.folder = Path(self._answer())
        """The folder, for all that the command writes."""
        self.log = self.folder / "log"
        """What the last command wrote to its standard output and error."""

    def start(self, command: Sequence[str], environment: Mapping[str, str] | None = None, text: str = "") -> None:
        """Start a command whose standard input is `text`; the one before must have ended."""
        self._request(
            do="start", command=list(command), environment=dict(environment or {}), log=str(self.log), input=text
        )

    def poll(self) -> int | None:
        """The exit status of the command, negative for a signal; None while it runs or before any was started."""
        status: int | None = self._request(do="poll")
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command and to all that it started; nothing happens when it has ended."""
        self._request(do="signal", number=int(number))

    def wait(self, timeout: float) -> int:
        """Wait for the command's end and give its exit status; TimeoutError when it does not come in time."""
        wait_until(lambda: self.poll() is not None, timeout, "a command to end")
        status = self.poll()
        assert status is not None
        return status

    def run(
        self, command: Sequence[str], timeout: float, environment: Mapping[str, str] | None = None, text: str = ""
    ) -> None:
        """Run a command to its end.

        Raises:
            CommandFailedError: It cannot be started, ends with another status than 0, or not in `timeout` seconds.
        """
        name = textwrap.shorten(shlex.join(command), _NAME_LENGTH, placeholder=" …")
        self.start(command, environment, text)
        try:
            status = self.wait(timeout)
        except TimeoutError:
            raise CommandFailedError(f"{name} took more than {timeout:g} s") from None
        if status != 0:
            raise CommandFailedError(f"{name} failed with status {status}: {self.log_tail()}")

    def log_tail(self) -> str:
        """The end of the command's output, on one line."""
        return " ".join(self.log.read_text(errors="replace")[-_LOG_TAIL:].split())

    def close(self) -> None:
        """Kill the command and remove the folder; returns when both are gone."""
        self._keeper.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, **request: Any) -> Any:
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(json.dumps(request) + "\n")
        self._keeper.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        if not line:
            raise CommandFailedError("the keeper of a command has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise CommandFailedError(answer["error"])
        return answer["answer"]
