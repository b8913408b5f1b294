"""The turns to ask the provider, numbered without gaps."""

from __future__ import annotations

from datetime import datetime

from pixyproxy.data.database import DatabaseContext


class ProviderTurnRepository:
    """The turns that were taken, within one database context."""

    def __init__(self, context: DatabaseContext) -> None:
        self._context = context

    def last(self) -> int:
        """Return the number of the last turn that was taken, or 0."""
        row = self._context.fetch_one("SELECT MAX(id) AS last FROM provider_turns", {})
        return (row and row["last"]) or 0

    def taken_at(self, number: int) -> datetime | None:
        """Return when a turn was taken, or None where it was not, or is forgotten."""
        row = self._context.fetch_one("SELECT taken_at FROM provider_turns WHERE id = :id", {"id": number})
        return None if row is None else row["taken_at"]

    def insert(self, number: int, taken_at: datetime) -> None:
        """Take a turn.

        Raises:
            ConstraintViolationError: somebody else has taken it.
        """
        self._context.execute(
            "INSERT INTO provider_turns (id, taken_at) VALUES (:id, :taken_at)", {"id": number, "taken_at": taken_at}
        )

    def forget(self, number: int) -> None:
        """Forget this turn and all before it."""
        self._context.execute("DELETE FROM provider_turns WHERE id <= :id", {"id": number})
