"""How the wrappers of this package record operations."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


Record = Callable[[str, float, float, BaseException | None, str], None]
"""Records an operation: its name, when it began and ended by ``time.perf_counter``, its error, and a description."""


def recorded(record: Record, operation: str, detail: str, work: Callable[..., Result], *arguments: Any) -> Result:
    """Call ``work``, and record it; ``detail`` has no data of callers."""
    began = time.perf_counter()
    try:
        result = work(*arguments)
    except BaseException as error:
        record(operation, began, time.perf_counter(), error, detail)
        raise
    record(operation, began, time.perf_counter(), None, detail)
    return result
