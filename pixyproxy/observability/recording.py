"""How the wrappers of this package say what they have measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")


class Record(Protocol):
    """Takes down one operation that has ended."""

    def __call__(
        self, operation: str, began: float, ended: float, error: BaseException | None = None, detail: str = ""
    ) -> None:
        """Take it down.

        Args:
            operation: one of a few names.
            began: when, by ``time.perf_counter``.
            ended: when, by the same clock.
            error: what it failed with, or None.
            detail: more of it for people, free of anything that callers sent.
        """


def record_to_all(*records: Record) -> Record:
    """Return what takes down each operation in several places."""
    if len(records) == 1:
        return records[0]

    def record(
        operation: str, began: float, ended: float, error: BaseException | None = None, detail: str = ""
    ) -> None:
        for one in records:
            one(operation, began, ended, error, detail)

    return record


def recorded(record: Record, operation: str, detail: str, work: Callable[..., Result], *arguments: Any) -> Result:
    """Do ``work``, and record how long it took and how it ended."""
    began = time.perf_counter()
    try:
        result = work(*arguments)
    except BaseException as error:
        record(operation, began, time.perf_counter(), error, detail)
        raise
    record(operation, began, time.perf_counter(), None, detail)
    return result
