"""Renews the leases of the generations that a generation worker has submitted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.generations import GenerationRepository
from pixyproxy.data.transactions import in_transaction

_RENEWALS_A_LEASE = 5


class Leases:
    """Renews the leases of a worker's submitted generations, in a thread of its own.

    Attributes:
        owner: the name of the worker.
        duration: how long a lease lasts.
    """

    def __init__(self, database: Database, owner: str, duration: timedelta) -> None:
        """Renew nothing yet.

        Args:
            database: where the generations are.
            owner: the name of the worker.
            duration: how long a lease lasts.
        """
        self.owner = owner
        self.duration = duration
        self._database = database
        self._interval = duration.total_seconds() / _RENEWALS_A_LEASE
        self._held: set[int] = set()
        self._lock = threading.Lock()
        self._task = PeriodicTask("leases", self._renew, retry_interval=self._interval)

    def start(self) -> None:
        """Start renewing."""
        self._task.start()

    def close(self) -> None:
        """Stop renewing."""
        self._task.close()

    def expire(self) -> None:
        """Expire the leases of a predecessor with the same name, which must have ended."""
        in_transaction(self._database, lambda context: GenerationRepository(context).expire_leases(self.owner))

    @contextmanager
    def held(self, generation_id: int) -> Iterator[None]:
        """Renew the lease of a generation within this context."""
        with self._lock:
            self._held.add(generation_id)
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(generation_id)

    def _renew(self) -> float:
        with self._lock:
            held = sorted(self._held)
        if held:
            in_transaction(
                self._database,
                lambda context: GenerationRepository(context).renew_leases(self.owner, held, self.duration),
            )
        return self._interval
