"""Recent failed sign-ins."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from pixyproxy.data.database import Repository

_MOST_DELETED = 1000


class FailedSignInRepository(Repository):
    """The failed sign-ins, within one database context. A counter is 64 characters of ASCII."""

    def insert(self, counters: Collection[str], failed_at: datetime) -> None:
        """Record a failure under several counters."""
        self._context.execute_many(
            "INSERT INTO failed_sign_ins (counter, failed_at) VALUES (:counter, :failed_at)",
            [{"counter": counter, "failed_at": failed_at} for counter in counters],
        )

    def nth_last(self, counter: str, n: int) -> datetime | None:
        """Return the time of the ``n``-th last failure, counted from 1, or None if there are fewer."""
        return self._context.fetch_value(
            """
            SELECT failed_at FROM failed_sign_ins WHERE counter = :counter
            ORDER BY failed_at DESC LIMIT 1 OFFSET :before
            """,
            {"counter": counter, "before": n - 1},
        )

    def ids_of(self, counter: str) -> list[int]:
        """Return the ids of a counter's failures."""
        return self._context.fetch_values(
            "SELECT id FROM failed_sign_ins WHERE counter = :counter", {"counter": counter}
        )

    def ids_before(self, moment: datetime) -> list[int]:
        """Return the ids of the oldest failures before a moment, a thousand at most."""
        return self._context.fetch_values(
            "SELECT id FROM failed_sign_ins WHERE failed_at < :moment ORDER BY failed_at LIMIT :most",
            {"moment": moment, "most": _MOST_DELETED},
        )

    def delete(self, ids: Collection[int]) -> None:
        """Delete failures, one by one because the gap locks of a range would block inserts."""
        self._context.execute_many("DELETE FROM failed_sign_ins WHERE id = :id", [{"id": id_} for id_ in ids])
