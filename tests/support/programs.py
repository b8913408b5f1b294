"""Where programs are kept that tests have built or fetched."""

from __future__ import annotations

import os
from pathlib import Path


def programs_folder() -> Path:
    """Return the folder, which is there from the first call on; whoever puts a program there takes a lock beside it."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixyproxy" / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
