"""Runs a gateway between PixyProxy and the provider, as a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.waiting import wait_until


@contextlib.contextmanager
def running_gateway(
    name: str, command: Sequence[str], env: Mapping[str, str], folder: Path, address: str, health: str, timeout: float
) -> Iterator[str]:
    """Run a gateway until the end; give its address once it serves.

    Args:
        name: what it is called in errors.
        command: how it is started.
        env: its environment.
        folder: where it runs, and where its log lies.
        address: where it serves.
        health: the path below the address that answers once it serves.
        timeout: seconds until then.
    """
    log_file = folder / f"{name}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: process.poll() is not None or _serves(f"{address}{health}"), timeout, f"{name} to serve")
        assert process.poll() is None, log_file.read_text()
        yield address
    finally:
        process.kill()
        process.wait()


def _serves(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10):
            return True
    except OSError:
        return False
