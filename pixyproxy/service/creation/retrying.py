"""Repeats a step that must not be given up for an outage of some minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pixyproxy.core.exceptions import PixyProxyException

Result = TypeVar("Result")


def retried(
    step: Callable[[], Result],
    *errors: type[PixyProxyException],
    interval: float,
    give_up_at: float,
    on_first_error: Callable[[PixyProxyException], object] = lambda _: None,
) -> Result:
    """Call ``step`` until it raises none of ``errors``, and return its result.

    Args:
        step: what to do; safe to repeat.
        errors: the errors to retry after.
        interval: seconds between two attempts.
        give_up_at: the time, by ``time.monotonic``, from which an error is raised.
        on_first_error: called with the error after which ``step`` is first to be called again.
    """
    has_failed = False
    while True:
        try:
            return step()
        except errors as error:
            if time.monotonic() > give_up_at:
                raise
            if not has_failed:
                on_first_error(error)
            has_failed = True
            time.sleep(interval)
