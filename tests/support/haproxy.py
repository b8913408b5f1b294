"""A real HAProxy with the configuration that the project ships, for tests of several replicas."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.object_stores import listens
from tests.support.waiting import wait_until

_CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
_REQUIRED = "PIXYPROXY_TEST_REQUIRE_CLUSTER"
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
_TIMEOUT = 30.0


def haproxy_program() -> str:
    """Return HAProxy's program, installing it the first time where that can be done.

    Where it cannot, the test is skipped, or fails where PIXYPROXY_TEST_REQUIRE_CLUSTER is set.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixyproxy"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "apt.lock"):
        program = shutil.which("haproxy", path=_PATH)
        if program is None and os.geteuid() == 0 and shutil.which("apt-get"):
            _install()
            program = shutil.which("haproxy", path=_PATH)
    if program is None:
        reason = "not run: replicas behind HAProxy (it is not there, and only root on Debian can install it)"
        if os.environ.get(_REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    return program


def _install() -> None:
    """Install it, as well as that can be done."""
    install = ("install", "-y", "--no-install-recommends", "haproxy")
    if not _apt_get(*install):
        # A fresh machine has no package lists, an old one has stale ones.
        _apt_get("update")
        _apt_get(*install)


def _apt_get(*arguments: str) -> bool:
    # Its package must not start one with the machine.
    environment = {"PATH": _PATH, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1", "LC_ALL": "C"}
    done = subprocess.run(["apt-get", *arguments], env=environment, check=False, capture_output=True)
    return done.returncode == 0


@contextlib.contextmanager
def running_haproxy(folder: Path, listen: str, replicas: Sequence[str]) -> Iterator[None]:
    """Run HAProxy on `listen` in front of three replicas, all of them as host:port."""
    one, two, three = replicas
    port = int(listen.rpartition(":")[2])
    environment = {"PIXYPROXY_BALANCER": listen, "PIXYPROXY_1": one, "PIXYPROXY_2": two, "PIXYPROXY_3": three}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            [haproxy_program(), "-f", str(_CONFIGURATION)], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: process.poll() is not None or listens(port), _TIMEOUT, "HAProxy to listen")
        assert process.poll() is None, (folder / "haproxy.log").read_text()
        yield
    finally:
        process.kill()
        process.wait()
