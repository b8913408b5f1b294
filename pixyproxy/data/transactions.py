"""Transactions that are tried again where the database gave one of two up in favour of the other."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pixyproxy.core.exceptions import ConflictError
from pixyproxy.data.database import Database, DatabaseContext

Result = TypeVar("Result")

_ATTEMPTS = 4
_LONGEST_PAUSE = 0.05  # seconds; a deadlock is over once one of the two is gone
# A conflict that took longer was a lock that somebody keeps, not a deadlock: to wait for it again helps nobody.
_QUICK_SECONDS = 1.0


def in_transaction(database: Database, work: Callable[[DatabaseContext], Result]) -> Result:
    """Run ``work`` in a transaction, commit it, and return what it returns.

    After a deadlock the whole of it is rolled back and run again, which is safe because nothing of it has happened;
    so ``work`` must do nothing but work on its context.

    Raises:
        ConflictError: the same happened several times over.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        started = time.monotonic()
        try:
            with database.transaction() as context:
                result = work(context)
                context.commit()
                return result
        except ConflictError:
            if attempt == _ATTEMPTS or time.monotonic() - started > _QUICK_SECONDS:
                raise
            time.sleep(random.uniform(0, _LONGEST_PAUSE))  # noqa: S311  no secret
    raise AssertionError("unreachable")
