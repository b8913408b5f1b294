"""The slots of the rate limiter, numbered without gaps; a row for each slot that is taken."""

from __future__ import annotations

from datetime import datetime

from pixyproxy.data.database import Repository


class RateLimitSlotRepository(Repository):
    """The slots that are taken, within one database context."""

    def last(self) -> int:
        """Return the number of the last slot that was taken, or 0."""
        return self._context.fetch_value("SELECT MAX(id) FROM provider_turns", {}) or 0

    def taken_at(self, number: int) -> datetime | None:
        """Return when a slot was taken, or None if it was not, or is deleted."""
        return self._context.fetch_value("SELECT taken_at FROM provider_turns WHERE id = :id", {"id": number})

    def insert(self, number: int, taken_at: datetime) -> None:
        """Take a slot.

        Raises:
            ConstraintViolationError: it is taken already.
        """
        self._context.insert_row("provider_turns", {"id": number, "taken_at": taken_at})

    def delete_until(self, number: int) -> None:
        """Delete a slot and all before it."""
        self._context.execute("DELETE FROM provider_turns WHERE id <= :id", {"id": number})
