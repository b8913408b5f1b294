"""Keeps the leases of the generations that this process works on."""

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

_CLOSE_SECONDS = 5.0

# A process that dies is taken for dead after this time. One that lives, but is kept from saying so for as long, does no
# harm: what it has sent is never sent by another, and its picture is entered all the same.
LEASE = timedelta(seconds=15)
_RENEWALS_A_LEASE = 3


class Leases:
    """Renews the leases of all owners that are held, from a thread of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._owners: set[str] = set()
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
    def held(self, owner: str) -> Iterator[None]:
        """Keep the lease of an owner meanwhile."""
        with self._lock:
            self._owners.add(owner)
        try:
            yield
        finally:
            with self._lock:
                self._owners.discard(owner)

    def _run(self) -> None:
        while not self._closing.wait(LEASE.total_seconds() / _RENEWALS_A_LEASE):
            with self._lock:
                owners = sorted(self._owners)
            if owners:
                self._renew(owners)

    def _renew(self, owners: list[str]) -> None:
        try:
            in_transaction(
                self._database, lambda context: GenerationRepository(context).renew_leases(owners, lease=LEASE)
            )
        except PixyProxyException as error:
            _logger.warning("%d leases could not be renewed: %s", len(owners), error.message)
