"""Limits the requests that all servers on one database submit to the provider within a minute."""

from __future__ import annotations

from datetime import datetime, timedelta

from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.rate_limit_slots import RateLimitSlotRepository


class RateLimiter:
    """Gives at most ``limit`` slots within any window, by the database's clock.

    Slots are numbered. Slot n is free one window after slot n - limit was taken.
    """

    def __init__(self, database: Database, limit: int, window: timedelta = timedelta(minutes=1)) -> None:
        """Give ``limit`` slots within any ``window``."""
        self._database = database
        self._limit = limit
        self._window = window

    def take(self, context: DatabaseContext) -> float:
        """Take a slot within a transaction, if one is free.

        Returns:
            0 if it was taken, otherwise the seconds until one may be free.

        Raises:
            ConstraintViolationError: another server took the slot; the transaction may be repeated.
        """
        slots = RateLimitSlotRepository(context)
        now = context.now()
        number = slots.last() + 1
        wait = self._wait(slots, number, now)
        if not wait:
            slots.insert(number, now)
            slots.delete_until(number - self._limit)
        return wait.total_seconds()

    def wait_for(self, ahead: int) -> float:
        """Return the seconds until a slot may be free for a request with ``ahead`` others before it."""
        windows, place = divmod(ahead, self._limit)
        with self._database.reading() as context:
            slots = RateLimitSlotRepository(context)
            wait = self._wait(slots, slots.last() + 1 + place, context.now())
        return (wait + windows * self._window).total_seconds()

    def _wait(self, slots: RateLimitSlotRepository, number: int, now: datetime) -> timedelta:
        opened_by = slots.taken_at(number - self._limit)
        if opened_by is None:
            return timedelta(0)
        # At most a window, even if the clock was set back.
        return min(max(opened_by + self._window - now, timedelta(0)), self._window)
