"""How far something long has come, for whoever watches it on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_LINE_SECONDS = 10.0


def shown(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Pass items on, and show how many of how many there were: as a bar, or in lines where there is no terminal."""
    if sys.stderr.isatty():
        # Servers load this module too, and need none of that.
        from rich.console import Console
        from rich.progress import track

        yield from track(items, description=what, total=total, console=Console(stderr=True))
        return
    line_at = time.monotonic() + _LINE_SECONDS
    for number, item in enumerate(items, 1):
        yield item
        if time.monotonic() >= line_at:
            print(f"{what}: {number:,} of {total:,}", file=sys.stderr, flush=True)  # noqa: T201
            line_at = time.monotonic() + _LINE_SECONDS
