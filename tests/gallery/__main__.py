"""Runs PixyProxy, Envoy and the page of the gallery until Ctrl-C: ``make gallery``."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.gallery.site import API, PAGE, running_gallery
from tests.support.envoy import ENVOY
from tests.support.object_stores import listens
from tests.support.programs import InstallError
from tests.support.waiting import wait_until

_SERVER = "127.0.0.1:50051"
_START_TIMEOUT = 60.0


def main() -> int:
    """Run all of it; return PixyProxy's exit status."""
    if ENVOY.is_due:
        print(f"Installing Envoy ({ENVOY.size}, once) …", flush=True)  # noqa: T201
    try:
        ENVOY.installed()
    except InstallError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    # Envoy names the addresses of callers, so that failed sign-ins are counted by address.
    here = {"PIXYPROXY_LISTEN": _SERVER, "PIXYPROXY_TRUSTED_PROXIES": "127.0.0.1"}
    # The health checks of Envoy would hide the address and the first password in the log.
    environment = {"PIXYPROXY_LOG_LEVEL": "WARNING", **os.environ, **here}
    with (
        subprocess.Popen([sys.executable, "-m", "pixyproxy", "serve"], env=environment) as server,
        tempfile.TemporaryDirectory() as folder,
        contextlib.suppress(KeyboardInterrupt),
    ):
        port = int(_SERVER.rpartition(":")[2])
        wait_until(lambda: server.poll() is not None or listens(port), _START_TIMEOUT, "PixyProxy to listen")
        if server.poll() is None:
            with running_gallery(Path(folder), _SERVER):
                print(f"gallery: http://{PAGE} (PixyProxy for browsers: http://{API}; Ctrl-C ends it)", flush=True)  # noqa: T201
                server.wait()
    return server.returncode


if __name__ == "__main__":
    sys.exit(main())
