"""Moves the lines of the audit log from the database, where each was committed with its change, to the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pixyproxy.core.exceptions import PixyProxyException, for_log
from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.data.audit_log import AuditLog
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.audit_outbox import AuditOutboxRepository

_logger = logging.getLogger(__name__)

_LINES_A_STEP = 500

OutcomeOf = Callable[[PixyProxyException], dict[str, str]]
"""Returns the fields of a line for an error."""


@contextmanager
def writing_audit_log(
    database: Database, log: AuditLog, outcome_of: OutcomeOf, *, interval: float = 0.5, retry_interval: float = 5.0
) -> Iterator[None]:
    """Move lines in the background, and what is left at the end. Any number of servers may do so at the same time.

    The database is polled every ``interval`` seconds, and after a failure again in ``retry_interval`` seconds.
    """

    def write() -> float:
        return 0.0 if write_some(database, log, outcome_of) else interval

    task = PeriodicTask("audit log", write, retry_interval=retry_interval)
    task.start()
    try:
        yield
    finally:
        task.close()
        try:
            while write_some(database, log, outcome_of):
                pass
        except PixyProxyException as error:
            _logger.warning("Lines of the audit log are left to another server or the next start: %s", for_log(error))


def write_some(database: Database, log: AuditLog, outcome_of: OutcomeOf, limit: int = _LINES_A_STEP) -> bool:
    """Move the oldest lines to the log; return whether there may be more.

    A line is deleted from the database once it is durable in the log. After a crash in between it is appended again.
    """
    with database.reading() as context:
        ids = AuditOutboxRepository(context).get_oldest(limit)
    if not ids:
        return False
    with database.transaction() as context:
        outbox = AuditOutboxRepository(context)
        pending = outbox.lock(ids)
        lines = [
            json.dumps(line.fields | ({"outcome": "OK"} if line.error is None else outcome_of(line.error))).encode()
            for line in pending
        ]
        if lines:
            count = log.append(lines)
            outbox.delete([line.id for line in pending[:count]])
            context.commit()
    return len(ids) == limit
