"""Limits how many requests all servers on one database submit to the provider within a minute."""

from __future__ import annotations

from datetime import datetime, timedelta

from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.clock import database_now
from pixyproxy.data.repositories.rate_limit_slots import RateLimitSlotRepository


class RateLimiter:
    """Gives at most so many slots within any window, by the database's clock.

    Slots are numbered. The next one may be taken once the one that is a whole limit before it is a window ago.
    """

    def __init__(self, database: Database, limit: int, window: timedelta = timedelta(minutes=1)) -> None:
        """Give ``limit`` slots within any ``window``."""
        self._database = database
        self._limit = limit
        self._window = window

    def take(self, context: DatabaseContext) -> float:
        """Take a slot within a transaction, if there is one.

        Returns:
            0 where it was taken, and otherwise the seconds until there may be one.

        Raises:
            ConstraintViolationError: another server was faster; the transaction may be run again.
        """
        slots = RateLimitSlotRepository(context)
        now = database_now(context, self._database.kind)
        number = slots.last() + 1
        wait = self._wait(slots, number, now)
        if not wait:
            slots.insert(number, now)
            slots.delete_until(number - self._limit)
        return wait.total_seconds()

    def wait_for(self, ahead: int) -> float:
        """Return the seconds until there may be a slot for a request that has ``ahead`` others before it."""
        windows, place = divmod(ahead, self._limit)
        with self._database.reading() as context:
            slots = RateLimitSlotRepository(context)
            wait = self._wait(slots, slots.last() + 1 + place, database_now(context, self._database.kind))
        return (wait + windows * self._window).total_seconds()

    def _wait(self, slots: RateLimitSlotRepository, number: int, now: datetime) -> timedelta:
        opened_by = slots.taken_at(number - self._limit)
        if opened_by is None:
            return timedelta(0)
        # No longer than a window even where the clock was set back.
        return min(max(opened_by + self._window - now, timedelta(0)), self._window)
