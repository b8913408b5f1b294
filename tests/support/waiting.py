"""Waiting for something to come true, in place of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_INTERVAL = 0.02
"""Seconds between two looks: short beside anything worth waiting for, long beside a look."""


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
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        time.sleep(_INTERVAL)
    return answer
