"""Keeps several processes at work: starts them, replaces those that die, and ends them together.

It starts no thread and opens no connection, so that the processes, the later ones too, are forked from one that holds
nothing that does not survive a fork. It waits for signals and for what they say of their start; and they wait for the
end of a pipe that it alone holds open. So it tells them all to end by closing that pipe, and the system closes it if
it is killed.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from pixyproxy.core.exceptions import PixyProxyException
from pixyproxy.serving.signals import END_SIGNALS, forget, heard

_logger = logging.getLogger(__name__)

_SIGNALS = (*END_SIGNALS, signal.SIGCHLD)
_SERVES = b"serves"
_MAX_MESSAGE_BYTES = 4096
# One that dies is replaced at once; after the next ones that die within a while, the pause doubles.
_QUICK_DEATH_SECONDS = 60.0
_FIRST_PAUSE_SECONDS = 0.5
_LAST_PAUSE_SECONDS = 30.0


@dataclass(frozen=True)
class Lifeline:
    """What a process has to do with its supervisor.

    Attributes:
        say_serving: to be called when it serves.
        end: a file descriptor from which something can be read, or that is closed, when it is to end.
    """

    say_serving: Callable[[], None]
    end: int


@dataclass(frozen=True)
class ProcessSpec:
    """A process that runs at any time.

    Attributes:
        name: what the log calls it.
        work: what it runs: says that it serves, and returns when the lifeline ends. A ``PixyProxyException`` says why
            it cannot.
        on_end: is called when such a process has ended.
    """

    name: str
    work: Callable[[Lifeline], None]
    on_end: Callable[[], None]


@dataclass
class _Worker:
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
    """Keeps all processes running until it is told to end."""

    def __init__(self, specs: Sequence[ProcessSpec], *, on_ending: Callable[[], None]) -> None:
        """Start nothing yet.

        Args:
            specs: what is to run; what others need comes before them.
            on_ending: is called when it is told to end: nobody is started any more.
        """
        self._workers = [_Worker(spec) for spec in specs]
        self._on_ending = on_ending
        self._end, self._lifeline = os.pipe()
        self._has_begun = False
        self._is_ending = False
        self._all_ended_well = True

    def run(self, on_serving: Callable[[], None]) -> bool:
        """Run the workers until SIGTERM or SIGINT, then let them finish. A second signal ends all at once.

        Args:
            on_serving: is called once, when all of them serve.

        Returns:
            Whether all of them ended in good order when they were told to.

        Raises:
            PixyProxyException: one of them could not begin to serve.
        """
        with heard(*_SIGNALS) as told:
            try:
                self._begin(told)
                if not self._is_ending:
                    on_serving()
                self._go_on(told)
            finally:
                self._kill_all()
        return self._all_ended_well

    def _begin(self, told: socket.socket) -> None:
        """Start all, and wait until they serve."""
        for worker in self._workers:
            self._start(worker)
        while not (self._is_ending or all(worker.serves for worker in self._workers)):
            self._wait(told)
            failed = next((worker for worker in self._workers if worker.pid is None), None)
            if failed is not None and not self._is_ending:
                raise PixyProxyException(failed.failure)
        self._has_begun = True

    def _go_on(self, told: socket.socket) -> None:
        """Replace those that die, until all have ended as they were told to."""
        while not self._is_ending or any(worker.pid is not None for worker in self._workers):
            if not self._is_ending:
                for worker in self._workers:
                    if worker.pid is None and worker.start_at <= time.monotonic():
                        self._start(worker)
            self._wait(told)

    def _wait(self, told: socket.socket) -> None:
        """Wait until something happens or is due, and see to it."""
        due = [worker.start_at for worker in self._workers if worker.pid is None and not self._is_ending]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        reports = [worker.report for worker in self._workers if worker.report is not None]
        ready, _, _ = select.select([told.fileno(), *reports], [], [], timeout)
        for number in told.recv(_MAX_MESSAGE_BYTES) if told.fileno() in ready else b"":
            if number in END_SIGNALS:
                self._be_told_to_end(number)
        for worker in self._workers:
            if worker.report in ready:
                self._hear(worker)
            self._look_after(worker)

    # --- One worker ----------------------------------------------------------------------------------------------

    def _start(self, worker: _Worker) -> None:
        _flush()
        heard_end, told_end = os.pipe()
        # A signal that comes now must not be told to this process by the worker, which still has its handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        worker.started_at = time.monotonic()
        try:
            worker.pid = os.fork()
        except OSError as error:
            os.close(heard_end)
            self._note_death(worker, f"No process could be had for it: {error.strerror}.")
            return
        else:
            if worker.pid == 0:
                self._be_worker(worker, heard_end, told_end)
            worker.report, worker.serves, worker.failure = heard_end, False, ""
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.close(told_end)

    def _be_worker(self, worker: _Worker, heard_end: int, told_end: int) -> NoReturn:
        """Live the life of a worker, in the process that was forked for it."""
        status = 1
        try:
            forget(*_SIGNALS)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.close(heard_end)
            os.close(self._lifeline)
            worker.spec.work(Lifeline(lambda: _say(told_end, _SERVES), self._end))
            status = 0
        except PixyProxyException as error:
            _say(told_end, error.message.encode()[:_MAX_MESSAGE_BYTES])
        except BaseException:
            _logger.exception("%s failed.", worker.spec.name)
        finally:
            # Not by way of the supervisor's own end, which is further up.
            _flush()
            os._exit(status)

    def _hear(self, worker: _Worker) -> None:
        """Read the one thing that a worker says."""
        assert worker.report is not None  # noqa: S101  callers have looked
        said = os.read(worker.report, _MAX_MESSAGE_BYTES)
        os.close(worker.report)
        worker.report = None
        worker.serves = said == _SERVES
        worker.failure = "" if worker.serves else said.decode(errors="replace")

    def _look_after(self, worker: _Worker) -> None:
        """See whether a worker has died, and when to replace it."""
        if worker.pid is None:
            return
        pid, status = os.waitpid(worker.pid, os.WNOHANG)
        if pid == 0:
            return
        if worker.report is not None:
            self._hear(worker)
        code = os.waitstatus_to_exitcode(status)
        worker.spec.on_end()
        if self._is_ending:
            worker.pid = None
            self._all_ended_well &= code == 0
        else:
            self._note_death(worker, worker.failure or _said_of(code))

    def _note_death(self, worker: _Worker, why: str) -> None:
        """Say that a worker is gone, and when another is to take its place."""
        if self._has_begun:
            _logger.warning("%s (process %s) is gone. %s", worker.spec.name, worker.pid, why)
        is_quick = time.monotonic() - worker.started_at < _QUICK_DEATH_SECONDS
        before = worker.quick_deaths if is_quick else 0
        worker.start_at = time.monotonic() + _pause_after(before)
        worker.quick_deaths = before + 1
        worker.pid = None
        worker.failure = why

    # --- The end -------------------------------------------------------------------------------------------------

    def _be_told_to_end(self, number: int) -> None:
        if self._is_ending:
            self._kill_all()
            forget(*_SIGNALS)
            os.kill(os.getpid(), number)
        _logger.info("Draining: no new calls are taken, running ones may finish.")
        self._is_ending = True
        os.close(self._lifeline)
        self._on_ending()

    def _kill_all(self) -> None:
        # The last first: they may need those before them, and are not to see them die.
        for worker in reversed(self._workers):
            if worker.pid is not None:
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
                worker.pid = None


def _pause_after(quick_deaths: int) -> float:
    """Return the seconds to wait before a worker is started again."""
    return 0.0 if quick_deaths == 0 else min(_FIRST_PAUSE_SECONDS * 2 ** (quick_deaths - 1), _LAST_PAUSE_SECONDS)


def _said_of(code: int) -> str:
    return f"Signal {-code} ended it." if code < 0 else f"It ended with exit status {code}."


def _say(report: int, what: bytes) -> None:
    os.write(report, what)
    os.close(report)


def _flush() -> None:
    """Write out what is buffered, which a forked process would write a second time, and one that exits never."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stdout.flush()
    sys.stderr.flush()
