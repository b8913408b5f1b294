"""The sign-ins that failed lately."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from pixyproxy.data.database import DatabaseContext

_FORGOTTEN_AT_A_TIME = 1000


class FailedSignInRepository:
    """The failed sign-ins, within one database context. A counter is 64 characters of ASCII."""

    def __init__(self, context: DatabaseContext) -> None:
        self._context = context

    def insert(self, counters: Collection[str], failed_at: datetime) -> None:
        """Count a failure."""
        self._context.execute_many(
            "INSERT INTO failed_sign_ins (counter, failed_at) VALUES (:counter, :failed_at)",
            [{"counter": counter, "failed_at": failed_at} for counter in counters],
        )

    def nth_last(self, counter: str, n: int) -> datetime | None:
        """Return when the ``n``-th last failure was, counted from 1, or None where there are fewer."""
        row = self._context.fetch_one(
            """
            SELECT failed_at FROM failed_sign_ins WHERE counter = :counter
            ORDER BY failed_at DESC LIMIT 1 OFFSET :before
            """,
            {"counter": counter, "before": n - 1},
        )
        return None if row is None else row["failed_at"]

    def ids_of(self, counter: str) -> list[int]:
        """Return the ids of a counter's failures."""
        rows = self._context.fetch_all("SELECT id FROM failed_sign_ins WHERE counter = :counter", {"counter": counter})
        return [row["id"] for row in rows]

    def ids_before(self, moment: datetime) -> list[int]:
        """Return the ids of the oldest failures before a moment, a thousand at most."""
        rows = self._context.fetch_all(
            "SELECT id FROM failed_sign_ins WHERE failed_at < :moment ORDER BY failed_at LIMIT :most",
            {"moment": moment, "most": _FORGOTTEN_AT_A_TIME},
        )
        return [row["id"] for row in rows]

    def delete(self, ids: Collection[int]) -> None:
        """Delete failures. One by one: a range would lock its gaps against failures that are being inserted."""
        self._context.execute_many("DELETE FROM failed_sign_ins WHERE id = :id", [{"id": id_} for id_ in ids])
