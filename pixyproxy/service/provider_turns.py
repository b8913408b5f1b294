"""Turns to ask the provider, shared by all servers on one database."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta

from pixyproxy.core.exceptions import ConstraintViolationError
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.clock import database_now
from pixyproxy.data.repositories.provider_turns import ProviderTurnRepository
from pixyproxy.data.transactions import in_transaction


class ProviderTurns:
    """Gives at most so many turns within any window, by the database's clock; a ``Turns`` of the generation layer.

    Turns are numbered. The next one may be taken once the one that is a whole limit before it is a window ago.
    """

    def __init__(self, database: Database, limit: int, window: timedelta = timedelta(minutes=1)) -> None:
        self._database = database
        self._limit = limit
        self._window = window

    def take(self) -> float:  # noqa: D102  as Turns
        while True:
            # Another server may be faster: then the one after that is tried.
            with suppress(ConstraintViolationError):
                return in_transaction(self._database, self._take_next)

    def wait_for(self, ahead: int) -> float:  # noqa: D102  as Turns
        windows, place = divmod(ahead, self._limit)
        with self._database.reading() as context:
            turns = ProviderTurnRepository(context)
            wait = self._wait(turns, turns.last() + 1 + place, database_now(context, self._database.kind))
        return (wait + windows * self._window).total_seconds()

    def _take_next(self, context: DatabaseContext) -> float:
        turns = ProviderTurnRepository(context)
        now = database_now(context, self._database.kind)
        number = turns.last() + 1
        wait = self._wait(turns, number, now)
        if not wait:
            turns.insert(number, now)
            turns.forget(number - self._limit)
        return wait.total_seconds()

    def _wait(self, turns: ProviderTurnRepository, number: int, now: datetime) -> timedelta:
        opened_by = turns.taken_at(number - self._limit)
        if opened_by is None:
            return timedelta(0)
        # No longer than a window even where the clock was set back.
        return min(max(opened_by + self._window - now, timedelta(0)), self._window)
