"""The real gateway of Portkey."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.support.addresses import free_port
from tests.support.gateways import running_gateway
from tests.support.leaving_out import Required
from tests.support.programs import Program, run_install

_VERSION = "1.15.2"
_START_TIMEOUT = 60.0


def _install(folder: Path) -> None:
    quietly = ("--no-audit", "--no-fund", "--loglevel=error")
    run_install(["npm", "install", *quietly, f"@portkey-ai/gateway@{_VERSION}", "--prefix", str(folder)])


PORTKEY = Program(
    name=f"portkey-gateway-{_VERSION}",
    size="25 MB",
    purpose="Portkey's gateway between PixyProxy and the provider",
    required=Required.GATEWAYS,
    tool="npm",
    install=_install,
)


@contextlib.contextmanager
def running_portkey(folder: Path) -> Iterator[str]:
    """Run the gateway; give its address.

    Where it cannot be installed the test is left out.
    """
    script = PORTKEY.folder() / "node_modules/@portkey-ai/gateway/build/start-server.js"
    node = shutil.which("node")
    assert node is not None, "npm is here without Node"
    port = free_port()
    command = [node, str(script), f"--port={port}", "--headless"]
    address = f"http://127.0.0.1:{port}"
    with running_gateway("portkey", command, {"HOME": str(folder)}, folder, address, "", _START_TIMEOUT) as running:
        yield running
