"""The program of Chromium, or of Chrome."""

from __future__ import annotations

import os
import shutil

from tests.support.leaving_out import Required, leave_out
from tests.support.programs import InstallError, install_debian_package, install_once

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium_program() -> str:
    """Return the program, installing it the first time where root on Debian can."""
    try:
        return install_once("chromium", _find, lambda: install_debian_package("chromium"))
    except InstallError as error:
        reason = str(error)
    # Outside of the handler, so that the report shows the reason once.
    return leave_out("the gallery in a browser", reason, Required.GALLERY)


def chromium_is_due() -> bool:
    """Whether the first test that needs it would install it."""
    return _find() is None and os.geteuid() == 0 and shutil.which("apt-get") is not None


def _find() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)
