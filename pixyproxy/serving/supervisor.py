"""Supervises several processes: starts them, replaces those that die, and ends them together.

It starts no thread and opens no connection, because neither survives a fork. It waits for signals and for the reports
of the processes. They wait for the end of a pipe that only the supervisor holds open: it closes the pipe to end them,
and the system closes it if the supervisor is killed.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from pixyproxy.core.exceptions import PixyProxyException
from pixyproxy.serving.logs import flush_output
from pixyproxy.serving.signals import END_SIGNALS, receiving_signals, restore_handlers

_logger = logging.getLogger(__name__)

_SIGNALS = (*END_SIGNALS, signal.SIGCHLD)
_SERVES = b"serves"
_MAX_MESSAGE_BYTES = 4096
# A process that dies is replaced at once. If it dies again within a minute, the pause doubles.
_QUICK_DEATH_SECONDS = 60.0
_FIRST_PAUSE_SECONDS = 0.5
_LAST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class Lifeline:
    """The connection of a process to its supervisor.

    Attributes:
        report_serving: reports that the process serves.
        end: a file descriptor that becomes readable when the process is to end.
    """

    report_serving: Callable[[], None]
    end: int


@dataclass(frozen=True)
class ProcessSpec:
    """A process that is to run until the end.

    Attributes:
        name: its name in the log.
        work: its function: reports that it serves, and returns when the lifeline ends. A ``PixyProxyException`` tells
            why it cannot start.
        on_end: is called when the process has ended.
    """

    name: str
    work: Callable[[Lifeline], None]
    on_end: Callable[[], None]


@dataclass
class _Process:
    """A process spec, and the process that runs it."""

    spec: ProcessSpec
    pid: int | None = None
    report: int | None = None
    serves: bool = False
    failure: str = ""
    started_at: float = 0.0
    start_at: float = 0.0
    quick_deaths: int = 0


class Supervisor:
    """Keeps all processes running until SIGTERM or SIGINT."""

    def __init__(self, specs: Sequence[ProcessSpec], *, on_ending: Callable[[], None]) -> None:
        """Start the processes in ``run``.

        Args:
            specs: the processes, each after those that it needs.
            on_ending: is called at the signal to end, from when on no process is started.
        """
        self._processes = [_Process(spec) for spec in specs]
        self._on_ending = on_ending
        self._end, self._lifeline = os.pipe()
        self._has_begun = False
        self._is_ending = False
        self._all_ended_well = True

    def run(self, on_serving: Callable[[], None]) -> bool:
        """Run the processes until SIGTERM or SIGINT, then let them finish. A second signal kills them.

        Args:
            on_serving: is called once, when all of them serve.

        Returns:
            Whether all of them ended with status 0.

        Raises:
            PixyProxyException: one of them could not start.
        """
        with receiving_signals(*_SIGNALS) as received:
            try:
                self._begin(received)
                if not self._is_ending:
                    on_serving()
                self._supervise(received)
            finally:
                self._kill_all()
        return self._all_ended_well

    def _begin(self, received: socket.socket) -> None:
        """Start all processes, and wait until they serve."""
        for process in self._processes:
            self._start(process)
        while not (self._is_ending or all(process.serves for process in self._processes)):
            self._wait(received)
            failed = next((process for process in self._processes if process.pid is None), None)
            if failed is not None and not self._is_ending:
                raise PixyProxyException(failed.failure)
        self._has_begun = True

    def _supervise(self, received: socket.socket) -> None:
        """Replace processes that die, until all have ended."""
        while not self._is_ending or any(process.pid is not None for process in self._processes):
            if not self._is_ending:
                for process in self._processes:
                    if process.pid is None and process.start_at <= time.monotonic():
                        self._start(process)
            self._wait(received)

    def _wait(self, received: socket.socket) -> None:
        """Wait for a signal, a report or the next start, and handle it."""
        due = [process.start_at for process in self._processes if process.pid is None and not self._is_ending]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        reports = [process.report for process in self._processes if process.report is not None]
        ready, _, _ = select.select([received.fileno(), *reports], [], [], timeout)
        for number in received.recv(_MAX_MESSAGE_BYTES) if received.fileno() in ready else b"":
            if number in END_SIGNALS:
                self._handle_end_signal(number)
        for process in self._processes:
            if process.report in ready:
                self._read_report(process)
            self._reap(process)

    # --- One process ---------------------------------------------------------------------------------------------

    def _start(self, process: _Process) -> None:
        flush_output()
        reader, writer = os.pipe()
        # The new process has the handlers of this one at first: a signal to it must not be reported to this one.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        process.started_at = time.monotonic()
        try:
            process.pid = os.fork()
        except OSError as error:
            os.close(reader)
            self._note_death(process, f"It could not be forked: {error.strerror}.")
            return
        else:
            if process.pid == 0:
                self._run_in_child(process, reader, writer)
            process.report, process.serves, process.failure = reader, False, ""
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.close(writer)

    def _run_in_child(self, process: _Process, reader: int, writer: int) -> NoReturn:
        """Run a process's function in the forked process, and end it."""
        status = 1
        try:
            restore_handlers(*_SIGNALS)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.close(reader)
            os.close(self._lifeline)
            process.spec.work(Lifeline(lambda: _report(writer, _SERVES), self._end))
            status = 0
        except PixyProxyException as error:
            _report(writer, error.message.encode()[:_MAX_MESSAGE_BYTES])
        except BaseException:
            _logger.exception("%s failed.", process.spec.name)
        finally:
            # Without the cleanup of the supervisor, whose frames are further up.
            flush_output()
            os._exit(status)

    def _read_report(self, process: _Process) -> None:
        """Read the one report of a process."""
        assert process.report is not None  # noqa: S101  callers have checked
        message = os.read(process.report, _MAX_MESSAGE_BYTES)
        os.close(process.report)
        process.report = None
        process.serves = message == _SERVES
        process.failure = "" if process.serves else message.decode(errors="replace")

    def _reap(self, process: _Process) -> None:
        """Check whether a process has ended, and replace it if it should not have."""
        if process.pid is None:
            return
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        if pid == 0:
            return
        if process.report is not None:
            self._read_report(process)
        code = os.waitstatus_to_exitcode(status)
        process.spec.on_end()
        if self._is_ending:
            process.pid = None
            self._all_ended_well &= code == 0
        else:
            self._note_death(process, process.failure or _described(code))

    def _note_death(self, process: _Process, why: str) -> None:
        """Log that a process has died, and schedule its replacement."""
        if self._has_begun:
            _logger.warning("%s (process %s) has died. %s", process.spec.name, process.pid, why)
        is_quick = time.monotonic() - process.started_at < _QUICK_DEATH_SECONDS
        before = process.quick_deaths if is_quick else 0
        process.start_at = time.monotonic() + _pause_after(before)
        process.quick_deaths = before + 1
        process.pid = None
        process.failure = why

    # --- The end -------------------------------------------------------------------------------------------------

    def _handle_end_signal(self, number: int) -> None:
        if self._is_ending:
            self._kill_all()
            restore_handlers(*_SIGNALS)
            os.kill(os.getpid(), number)
        _logger.info("Draining: new calls are refused, running calls may finish.")
        self._is_ending = True
        os.close(self._lifeline)
        self._on_ending()

    def _kill_all(self) -> None:
        # In reverse: a process should not see another die that it needs.
        for process in reversed(self._processes):
            if process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
                os.waitpid(process.pid, 0)
                process.pid = None


def _pause_after(quick_deaths: int) -> float:
    """Return the seconds until a process is started again."""
    return 0.0 if quick_deaths == 0 else min(_FIRST_PAUSE_SECONDS * 2 ** (quick_deaths - 1), _LAST_PAUSE_SECONDS)


def _described(code: int) -> str:
    return f"Signal {-code} ended it." if code < 0 else f"It ended with exit status {code}."


def _report(writer: int, message: bytes) -> None:
    os.write(writer, message)
    os.close(writer)
