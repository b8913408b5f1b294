"""Prometheus' own checker of rules."""

from __future__ import annotations

import shutil

from tests.support.leaving_out import Required
from tests.support.programs import debian_program

# Unpacked only, because with the package comes a server that starts with the machine.
PROMTOOL = debian_program("promtool", ["prometheus"], "100 MB", "promtool on the alerts", Required.PROMTOOL)


def promtool_program() -> str:
    """Return promtool, taking it out of Debian's package the first time where it is not on the PATH."""
    return shutil.which("promtool") or str(PROMTOOL.folder() / "usr/bin/promtool")
