"""A process that has imported PixyProxy and forks itself for every `python -m MODULE ...` that the tests start.

Importing takes a second of CPU time, and the tests start hundreds of servers and commands. Each of them is a process of
its own with its own arguments, environment, folder and standard streams, as one that was started anew; only its parent
is this process. It forks before it has any thread, connection or channel.

It reads requests from the socket that is its standard input. Each message is a JSON object, with the file descriptors
for the process's standard streams and one to which it writes the process's id and, at the end, its exit status, one per
line.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

_MAX_REQUEST_BYTES = 1024 * 1024
_STREAMS = 3
_LEFT_OUT = ("pixyproxy.__main__", "pixyproxy.observability")
"""What is run, and what decides by the environment when it is imported."""


@dataclass(frozen=True)
class StartRequest:
    """A process to be started."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    streams: list[int]

    def become(self) -> None:
        """Turn this process into the requested one, except for running its module."""
        for number, stream in enumerate(self.streams):
            os.dup2(stream, number)
        # What belongs to the fork server, and to others that it has started.
        for number in map(int, os.listdir("/proc/self/fd")):
            if number >= len(self.streams):
                with contextlib.suppress(OSError):  # The listing itself.
                    os.close(number)
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        time.tzset()
        sys.argv[:] = self.arguments
        gc.enable()


def _import_all() -> None:
    """Import the program: what sets gRPC's own log first, then the driver in C, as the command line does."""
    import pixyproxy.cli
    import pixyproxy.data

    for module in pkgutil.walk_packages(pixyproxy.__path__, "pixyproxy."):
        if not module.name.startswith(_LEFT_OUT):
            importlib.import_module(module.name)
    assert len(os.listdir("/proc/self/task")) == 1, "a thread does not survive a fork"


def main() -> StartRequest | None:
    """Fork for each request; return the request in the forked process, and None at the end of all requests."""
    gc.disable()
    _import_all()
    gc.freeze()
    requests = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    with selectors.DefaultSelector() as events:
        events.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in events.select():
                if key.fileobj is not requests:
                    pid, report = key.data
                    events.unregister(key.fd)
                    os.close(key.fd)
                    _report(report, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                    os.close(report)
                    continue
                text, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, _STREAMS + 1)
                if not text:
                    return None
                *streams, report = descriptors
                pid = os.fork()
                if not pid:
                    return StartRequest(**json.loads(text), streams=streams)
                for stream in streams:
                    os.close(stream)
                _report(report, pid)
                events.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, report))


def _report(report: int, number: int) -> None:
    # Nobody may ask any more.
    with contextlib.suppress(BrokenPipeError):
        os.write(report, f"{number}\n".encode())


def _run(module: str) -> None:
    """Run a module, and end this process."""
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        status = end.code or 0
    # The rest of Python's own end frees all objects one by one, each in a copy of its memory. That takes twice as long
    # as a short command.
    threading._shutdown()  # type: ignore[attr-defined]  # not in the stubs
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(status)
    os._exit(status)


if __name__ == "__main__":
    # Ctrl-C is for the tests, whose end is what ends this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request: Any = main()
    if request is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        request.become()
        module = sys.argv[0]
        del request
        _run(module)
