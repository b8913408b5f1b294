"""A real HAProxy with the configuration that the project ships, for tests of several replicas."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.leaving_out import Required, leave_out
from tests.support.object_stores import listens
from tests.support.programs import InstallError, install_debian_package, install_once
from tests.support.waiting import wait_until

_CONFIGURATIONS = Path(__file__).parents[2] / "deploy" / "haproxy"
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
_TIMEOUT = 30.0


def haproxy_program() -> str:
    """Return HAProxy's program, installing it the first time where root on Debian can."""
    try:
        return install_once("haproxy", _find, lambda: install_debian_package("haproxy"))
    except InstallError as error:
        reason = str(error)
    # Outside of the handler, so that the report shows the reason once.
    return leave_out("replicas behind HAProxy", reason, Required.CLUSTER)


def _find() -> str | None:
    return shutil.which("haproxy", path=_PATH)


@contextlib.contextmanager
def running_haproxy(folder: Path, listen: str, replicas: Sequence[str]) -> Iterator[None]:
    """Run HAProxy on `listen` in front of three replicas, all of them as host:port."""
    one, two, three = replicas
    environment = {"PIXYPROXY_BALANCER": listen, "PIXYPROXY_1": one, "PIXYPROXY_2": two, "PIXYPROXY_3": three}
    with _running(folder, listen, "haproxy.cfg", environment):
        yield


@contextlib.contextmanager
def running_database_haproxy(folder: Path, listen: str, nodes: Sequence[str]) -> Iterator[None]:
    """Run HAProxy on `listen` in front of the three nodes of a Galera cluster, all of them as host:port."""
    one, two, three = nodes
    environment = {"PIXYPROXY_DATABASE": listen, "NODE_1": one, "NODE_2": two, "NODE_3": three}
    with _running(folder, listen, "galera.cfg", environment):
        yield


@contextlib.contextmanager
def _running(folder: Path, listen: str, configuration: str, environment: Mapping[str, str]) -> Iterator[None]:
    port = int(listen.rpartition(":")[2])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            [haproxy_program(), "-f", str(_CONFIGURATIONS / configuration)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: process.poll() is not None or listens(port), _TIMEOUT, "HAProxy to listen")
        assert process.poll() is None, (folder / "haproxy.log").read_text()
        yield
    finally:
        process.kill()
        process.wait()
