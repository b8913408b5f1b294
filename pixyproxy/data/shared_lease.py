"""Leases that only one server on a database has at a time, whichever node of a cluster it uses."""

from __future__ import annotations

from datetime import datetime, timedelta

from pixyproxy.core.exceptions import ConflictError, ConstraintViolationError
from pixyproxy.core.fields import new_guid
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.server_values import ServerValueRepository
from pixyproxy.data.transactions import in_transaction


class SharedLease:
    """A lease by the clock of the database. It only avoids duplicate work: two servers may briefly have it at once."""

    def __init__(self, database: Database, name: str, duration: timedelta) -> None:
        """Initialize without taking the lease; ``name`` is the server value that says who holds the lease."""
        self._database = database
        self._name = name
        self._duration = duration
        self._holder = new_guid()

    def take(self) -> bool:
        """Take or renew the lease; return False if another holder has it.

        Raises:
            DBConnectionError: the database is unavailable.
        """
        try:
            return in_transaction(self._database, self._take)
        except (ConflictError, ConstraintViolationError):
            return False  # Another one was faster.

    def _take(self, context: DatabaseContext) -> bool:
        values = ServerValueRepository(context)
        now = context.now()
        stored = values.get(self._name)
        lease = f"{self._holder} {(now + self._duration).isoformat()}"
        if stored is None:
            values.insert(self._name, lease)
            return True
        holder, _, ends_at = stored.partition(" ")
        is_free = holder == self._holder or datetime.fromisoformat(ends_at) < now
        return is_free and values.replace(self._name, stored, lease)
