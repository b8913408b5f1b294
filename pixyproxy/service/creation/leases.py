"""Renews the leases of the generations that a generation worker has submitted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from pixyproxy.core.exceptions import PixyProxyException
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.generations import GenerationRepository
from pixyproxy.data.transactions import in_transaction

_logger = logging.getLogger(__name__)

_RENEWALS_A_LEASE = 5
_CLOSE_SECONDS = 5.0


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
        self._held: set[int] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def close(self) -> None:
        """Renew no more."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)

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

    def _run(self) -> None:
        while not self._closing.wait(self._lease.total_seconds() / _RENEWALS_A_LEASE):
            with self._lock:
                held = sorted(self._held)
            if held:
                self._renew(held)

    def _renew(self, held: list[int]) -> None:
        try:
            in_transaction(
                self._database,
                lambda context: GenerationRepository(context).renew_leases(self._owner, held, self._lease),
            )
        except PixyProxyException as error:
            _logger.warning("%d leases could not be renewed: %s", len(held), error.message)
