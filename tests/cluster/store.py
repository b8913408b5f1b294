"""The image store that replicas share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def shared_store(folder: Path) -> Iterator[dict[str, str]]:
    """Give the settings of a store for one fleet."""
    yield {"PIXYPROXY_IMAGE_STORE": str(folder / "images")}
