"""Prometheus' own checker of rules."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from filelock import FileLock

from tests.support.programs import programs_folder

_PACKAGE = "prometheus"


def promtool_program() -> str:
    """Return promtool, taking it out of Debian's package the first time where it is not on the PATH.

    The package is not installed, because with it comes a server that starts with the machine. Where there is no apt,
    the test is skipped.
    """
    found = shutil.which("promtool")
    if found:
        return found
    if not shutil.which("apt-get"):
        pytest.skip("not run: promtool on the alerts (it is not there, and there is no apt to take it from)")
    folder = programs_folder()
    with FileLock(folder / "promtool.lock"):
        if not (folder / "promtool").exists():
            unpacked = folder / "promtool-package"
            unpacked.mkdir(exist_ok=True)
            subprocess.run(["apt-get", "download", _PACKAGE], cwd=unpacked, check=True, capture_output=True)
            [package] = unpacked.glob("*.deb")
            subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
            (unpacked / "usr" / "bin" / "promtool").rename(folder / "promtool")
            shutil.rmtree(unpacked)
    return str(folder / "promtool")
