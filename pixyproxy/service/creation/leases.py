"""Renews the leases of submitted generations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.generations import GenerationRepository
from pixyproxy.data.transactions import in_transaction

_RENEWALS_A_LEASE = 5


def lease_renewal(database: Database, owners: Sequence[str], duration: timedelta) -> PeriodicTask:
    """Return the task that renews the leases of all submitted generations of some generation workers.

    A generation worker renews its own. Because it has a low priority, the RPC workers of its server renew them, too.
    ``duration`` is how long a lease lasts.
    """
    interval = duration.total_seconds() / _RENEWALS_A_LEASE

    def renew() -> float:
        in_transaction(database, lambda context: GenerationRepository(context).renew_leases(owners, duration))
        return interval

    return PeriodicTask("leases", renew, retry_interval=interval)
