"""Processes that count together, without the server around them: ``python -m tests.support.forking_server COUNT``.

The first one prepares the exposition and forks COUNT others, each of which counts a call and stays until its standard
input, which all share, is closed. It prints where the metrics are, and then each other's process id.
"""

from __future__ import annotations

import os
import signal
import sys

from pixyproxy.observability.exposition import MetricsExposition


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Those that die are gone at once.
    exposition = MetricsExposition("127.0.0.1", 0)
    said_read, said_write = os.pipe()
    children = [_fork(said_write) for _ in range(int(sys.argv[1]))]
    for _ in children:
        os.read(said_read, 1)
    exposition.start()
    print(exposition.address, *children, flush=True)  # noqa: T201
    sys.stdin.read()
    exposition.close()


def _fork(said_write: int) -> int:
    child = os.fork()
    if child:
        return child
    from pixyproxy.observability.metrics import Metrics

    metrics = Metrics()
    metrics.calls.began("a", "b")
    metrics.calls.ended("a", "b", "OK", 0.5)
    metrics.generation.set_slots(10)
    os.write(said_write, b".")
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
