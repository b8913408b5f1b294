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
    """Renews, in a thread of its own, the leases of all generations that are held."""

    def __init__(self, database: Database, owner: str, lease: timedelta) -> None:
        """Renew nothing yet.

        Args:
            database: where the generations are.
            owner: the name of the worker.
            lease: for how long a lease is renewed.
        """
        self._database = database
        self._owner = owner
        self._lease = lease
        self._interval = lease.total_seconds() / _RENEWALS_A_LEASE
        self._held: set[int] = set()
        self._lock = threading.Lock()
        self._task = PeriodicTask("leases", self._renew, retry_interval=self._interval)

    def start(self) -> None:
        """Begin to renew."""
        self._task.start()

    def close(self) -> None:
        """Renew no more."""
        self._task.close()

    @contextmanager
    def held(self, generation_id: int) -> Iterator[None]:
        """Keep the lease of a generation meanwhile."""
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
                lambda context: GenerationRepository(context).renew_leases(self._owner, held, self._lease),
            )
        return self._interval
