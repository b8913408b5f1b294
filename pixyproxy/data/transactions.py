"""Transactions that are repeated after a deadlock."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pixyproxy.core.exceptions import ConflictError
from pixyproxy.data.database import Database, DatabaseContext

Result = TypeVar("Result")

_ATTEMPTS = 4
_LONGEST_PAUSE_SECONDS = 0.05
# A conflict that took longer is not a deadlock but a lock that is held for long, and is not waited for again.
_QUICK_SECONDS = 1.0


def in_transaction(database: Database, work: Callable[[DatabaseContext], Result]) -> Result:
    """Run ``work`` in a transaction, commit it, and return its result.

    After a deadlock the transaction is rolled back and ``work`` runs again, so it must have no effects outside of its
    context.

    Raises:
        ConflictError: the last attempt failed with a conflict as well.
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
            time.sleep(random.uniform(0, _LONGEST_PAUSE_SECONDS))  # noqa: S311  no secret
    raise AssertionError("unreachable")
