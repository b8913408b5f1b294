"""A command at a terminal of its own, as a person uses it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pexpect
from pexpect import fdpexpect

from tests.support.processes import is_asleep
from tests.support.rpc import TIMEOUT
from tests.support.waiting import wait_until

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CTRL_C = "\x03"
_ROWS = 40
# Makes the terminal the one that Ctrl-C is pressed at and that /dev/tty names, and has Ctrl-C heard: what shells run in
# the background ignores it, and whatever that starts.
_AT_TERMINAL = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A `pixyproxy` command that runs at a terminal."""

    def __init__(self, process: subprocess.Popen[bytes], screen: fdpexpect.fdspawn[str]) -> None:
        self._process = process
        self._screen = screen
        self._shown = ""

    def wait_for(self, pattern: str) -> None:
        """Wait until something is shown."""
        self._screen.expect(pattern)
        self._shown += f"{self._screen.before}{self._screen.after}"

    def type(self, text: str) -> None:
        """Type a line."""
        self._screen.sendline(text)

    def interrupt(self) -> None:
        """Press Ctrl-C once the command waits: Python overlooks a signal that comes just before it reads an answer."""
        wait_until(lambda: is_asleep(self._process.pid), TIMEOUT, "the command to wait")
        self._screen.send(_CTRL_C)

    def end(self) -> int:
        """Wait for the command's end, and return its exit status."""
        self._screen.expect(pexpect.EOF)
        self._shown += str(self._screen.before)
        return self._process.wait(TIMEOUT)

    @property
    def raw(self) -> str:
        """All that was shown so far, as it was sent."""
        return self._shown

    @property
    def text(self) -> str:
        """All that was shown so far, without what moves and colours it; what was written over is a line of its own."""
        return _ESCAPES.sub("", self._shown).replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def at_a_terminal(
    *arguments: str, env: Mapping[str, str], columns: int = 120, encoding: str = "utf-8"
) -> Iterator[Terminal]:
    """Run `pixyproxy` with these arguments at a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, columns, 0, 0))
    # Not by pexpect itself, which forks: gRPC's threads, of which the tests' process has some, do not outlive that.
    with subprocess.Popen(
        [sys.executable, "-c", _AT_TERMINAL, sys.executable, "-m", "pixyproxy", *arguments],
        env={"TERM": "xterm-256color", "COLORTERM": "truecolor", **env},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        screen = fdpexpect.fdspawn(ours, encoding=encoding, timeout=TIMEOUT)
        try:
            yield Terminal(process, screen)
        finally:
            process.kill()
            screen.close()
