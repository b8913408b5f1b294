"""Waiting for something to come true, in place of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

T = TypeVar("T")

_MIDNIGHT_MARGIN = timedelta(minutes=1)
_SHORTEST_INTERVAL, _LONGEST_INTERVAL = 0.02, 0.1
"""Seconds between two looks. In between, a tenth of the time that was waited: a look may cost as much as a query."""


def wait_until(condition: Callable[[], T | None], timeout: float, what: str) -> T:
    """Look until a condition holds.

    Args:
        condition: Asked again and again; it holds when its answer is true.
        timeout: Seconds after which waiting is given up.
        what: What is waited for, for the error message: "the server to answer".

    Returns:
        The condition's first true answer.

    Raises:
        TimeoutError: The condition did not hold in time. Whatever the condition raises goes through.
    """
    began_at = time.monotonic()
    while not (answer := condition()):
        waited = time.monotonic() - began_at
        if waited >= timeout:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        time.sleep(min(max(waited / 10, _SHORTEST_INTERVAL), _LONGEST_INTERVAL))
    return answer


def wait_out_midnight() -> None:
    """Where a day of UTC is about to end, wait for the next: what is counted by days would begin anew in a test."""
    day = datetime.now(UTC).date()
    wait_until(
        lambda: (datetime.now(UTC) + _MIDNIGHT_MARGIN).date() == day or datetime.now(UTC).date() != day,
        2 * _MIDNIGHT_MARGIN.total_seconds(),
        "the next day",
    )
