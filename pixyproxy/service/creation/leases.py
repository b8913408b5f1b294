"""Renews the leases of submitted generations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.generations import GenerationRepository
from pixyproxy.data.transactions import in_transaction

_RENEWALS_A_LEASE = 5


class Leases:
    """Renews the leases of all submitted generations of some generation workers, in a thread of its own.

    A generation worker renews its own. Because it has a low priority, the RPC workers of its server renew them, too.

    Attributes:
        duration: how long a lease lasts.
    """

    def __init__(self, database: Database, owners: Sequence[str], duration: timedelta) -> None:
        """Initialize without renewing anything.

        Args:
            database: where the generations are.
            owners: the names of the workers.
            duration: how long a lease lasts.
        """
        self.duration = duration
        self._database = database
        self._owners = owners
        self._interval = duration.total_seconds() / _RENEWALS_A_LEASE
        self._task = PeriodicTask("leases", self._renew, retry_interval=self._interval)

    def start(self) -> None:
        """Start renewing."""
        self._task.start()

    def close(self) -> None:
        """Stop renewing."""
        self._task.close()

    def _renew(self) -> float:
        in_transaction(
            self._database, lambda context: GenerationRepository(context).renew_leases(self._owners, self.duration)
        )
        return self._interval
