"""Transactions that are repeated after a deadlock, or on another connection."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pixyproxy.core.exceptions import ConflictError, DBConnectionError
from pixyproxy.data.database import Database, DatabaseContext

Result = TypeVar("Result")

_ATTEMPTS = 4
_LONGEST_PAUSE_SECONDS = 0.05
# A conflict that took longer is not a deadlock but a lock that is held for long, and is not waited for again; and where
# a lost connection took longer to show, the database is away.
_QUICK_SECONDS = 1.0


def in_transaction(database: Database, work: Callable[[DatabaseContext], Result]) -> Result:
    """Run ``work`` in a transaction, commit it, and return its result.

    After a deadlock, or if the connection is lost before the commit, the transaction is rolled back and ``work`` runs
    again, so it must have no effects outside of its context.

    Raises:
        ConflictError: the last attempt failed with a conflict as well.
        DBConnectionError: the database cannot be reached, or the answer to the commit is lost: it may have happened.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        started = time.monotonic()
        may_be_committed = False
        try:
            with database.transaction() as context:
                result = work(context)
                may_be_committed = True
                context.commit()
                return result
        except (ConflictError, DBConnectionError) as error:
            is_doubtful = may_be_committed and isinstance(error, DBConnectionError)
            if is_doubtful or attempt == _ATTEMPTS or time.monotonic() - started > _QUICK_SECONDS:
                raise
            time.sleep(random.uniform(0, _LONGEST_PAUSE_SECONDS))  # noqa: S311  no secret
    raise AssertionError("unreachable")
