"""How the wrappers of this package record operations."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")


class Record(Protocol):
    """Records an operation that has ended."""

    def __call__(
        self, operation: str, began: float, ended: float, error: BaseException | None = None, detail: str = ""
    ) -> None:
        """Record it.

        Args:
            operation: the name of the operation.
            began: when it began, by ``time.perf_counter``.
            ended: when it ended, by the same clock.
            error: the error, or None.
            detail: a description without any data of callers.
        """


def recorded(record: Record, operation: str, detail: str, work: Callable[..., Result], *arguments: Any) -> Result:
    """Call ``work``, and record it."""
    began = time.perf_counter()
    try:
        result = work(*arguments)
    except BaseException as error:
        record(operation, began, time.perf_counter(), error, detail)
        raise
    record(operation, began, time.perf_counter(), None, detail)
    return result
