"""Recent sign-ins that failed, and from which addresses user names have signed in."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from pixyproxy.data.database import Repository

_MOST_DELETED = 1000


class SignInRepository(Repository):
    """The sign-ins, within one database context. A counter and an origin are 64 characters of ASCII."""

    def insert_failure(self, counters: Collection[str], failed_at: datetime) -> None:
        """Record a failure under several counters."""
        self._context.execute_many(
            "INSERT INTO failed_sign_ins (counter, failed_at) VALUES (:counter, :failed_at)",
            [{"counter": counter, "failed_at": failed_at} for counter in counters],
        )

    def nth_last_failure(self, counter: str, n: int) -> datetime | None:
        """Return the time of the ``n``-th last failure, counted from 1, or None if there are fewer."""
        return self._context.fetch_value(
            """
            SELECT failed_at FROM failed_sign_ins WHERE counter = :counter
            ORDER BY failed_at DESC LIMIT 1 OFFSET :before
            """,
            {"counter": counter, "before": n - 1},
        )

    def failure_ids(self, counter: str) -> list[int]:
        """Return the ids of a counter's failures."""
        sql = "SELECT id FROM failed_sign_ins WHERE counter = :counter"
        return self._context.fetch_values(sql, {"counter": counter})

    def delete_failures(self, ids: Collection[int]) -> None:
        """Delete failures."""
        self._delete("failed_sign_ins", ids)

    def delete_failures_before(self, moment: datetime) -> None:
        """Delete the oldest failures before a moment, a thousand at most."""
        self._delete_before("failed_sign_ins", "failed_at", moment)

    def last_success(self, origin: str) -> datetime | None:
        """Return the time of the last sign-in from an origin that succeeded, or None if there was none."""
        sql = "SELECT signed_in_at FROM past_sign_ins WHERE origin = :origin"
        return self._context.fetch_value(sql, {"origin": origin})

    def set_success(self, origin: str, signed_in_at: datetime) -> None:
        """Record a sign-in, in place of the last one from that origin."""
        self._context.execute(
            "REPLACE INTO past_sign_ins (origin, signed_in_at) VALUES (:origin, :signed_in_at)",
            {"origin": origin, "signed_in_at": signed_in_at},
        )

    def delete_successes_before(self, moment: datetime) -> None:
        """Delete the oldest sign-ins before a moment that succeeded, a thousand at most."""
        self._delete_before("past_sign_ins", "signed_in_at", moment)

    def _delete_before(self, table: str, time: str, moment: datetime) -> None:
        sql = f"SELECT id FROM {table} WHERE {time} < :moment ORDER BY {time} LIMIT :most"  # noqa: S608
        self._delete(table, self._context.fetch_values(sql, {"moment": moment, "most": _MOST_DELETED}))

    def _delete(self, table: str, ids: Collection[int]) -> None:
        """Delete rows, one by one because the gap locks of a range would block inserts."""
        self._context.execute_many(f"DELETE FROM {table} WHERE id = :id", [{"id": id_} for id_ in ids])  # noqa: S608
