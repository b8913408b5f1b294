"""The limits of users, and what is used of them.

What is used is not stored but read: from the usage, and from the states of generations. So every change of these counts
in the transaction that makes it, and a crash leaves nothing behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, time, timedelta

from pixyproxy.core.fields import GenerationState
from pixyproxy.core.models import QuotaLimits
from pixyproxy.data.database import Repository, values_of

_COLUMNS = tuple(QuotaLimits.model_fields)


@dataclass(frozen=True)
class QuotaUse:
    """What an author has used.

    Attributes:
        images: the images generated today, and today's unknown outcomes.
        nano_usd: what they cost; what is unknown counts with the most that it may be.
        submitted: the submitted generations.
        reserved_nano_usd: what these cost at most.
    """

    images: int
    nano_usd: int
    submitted: int
    reserved_nano_usd: int


class QuotaRepository(Repository):
    """The quotas, within one database context."""

    def get(self, author_id: int) -> QuotaLimits:
        """Return the stored limits of a user."""
        return self._select(author_id) or QuotaLimits()

    def lock(self, author_id: int) -> QuotaLimits:
        """Lock the row of a user, and return the stored limits; other transactions that lock it wait.

        It must be the first query of the transaction, which then sees what earlier ones have changed. The row is
        changed, because the nodes of a cluster do not know one another's locks: of two that change a row, one fails.
        """
        self._context.execute(
            "UPDATE quotas SET claims = claims + 1 WHERE author_id = :author_id", {"author_id": author_id}
        )
        return self._select(author_id) or QuotaLimits()

    def insert(self, author_id: int) -> None:
        """Insert the row of a user without limits of its own, and lock it.

        ``lock`` would lock the gap of a missing row, which several transactions can do, and then none can insert it.

        Raises:
            ConstraintViolationError: there is a row.
        """
        self._context.insert_row("quotas", {"author_id": author_id})

    def set(self, author_id: int, limits: QuotaLimits) -> None:
        """Store the limits of a user, in place of earlier ones."""
        self._context.execute(
            f"REPLACE INTO quotas {values_of(('author_id', *_COLUMNS))}", {"author_id": author_id, **dict(limits)}
        )

    def get_use(self, author_id: int, now: datetime) -> QuotaUse:
        """Return what an author has used on the day of ``now``, in UTC.

        What is counted for the next day counts as well: other servers' clocks may be ahead.
        """
        row = self._context.fetch_one(
            # One statement: a generation that ends meanwhile is either submitted or in the usage.
            """
            SELECT
              CAST(COALESCE(SUM(images), 0) AS SIGNED) AS images,
              CAST(COALESCE(SUM(nano_usd), 0) AS SIGNED) AS nano_usd,
              CAST(COALESCE(SUM(submitted), 0) AS SIGNED) AS submitted,
              CAST(COALESCE(SUM(reserved_nano_usd), 0) AS SIGNED) AS reserved_nano_usd
            FROM (
              SELECT images, nano_usd + assumed_nano_usd AS nano_usd, 0 AS submitted, 0 AS reserved_nano_usd
              FROM usage_days WHERE author_id = :author_id AND day >= :today AND day <= :tomorrow
              UNION ALL
              SELECT images, nano_usd + assumed_nano_usd, 0, 0
              FROM usage_tail WHERE author_id = :author_id AND day >= :today AND day <= :tomorrow
              UNION ALL
              SELECT 1, COALESCE(reserved_nano_usd, 0), 0, 0
              FROM generations WHERE author_id = :author_id AND state = :unknown AND finished_at >= :midnight
              UNION ALL
              SELECT 0, 0, 1, COALESCE(reserved_nano_usd, 0)
              FROM generations WHERE author_id = :author_id AND state = :submitted
            ) AS counted
            """,
            {
                "author_id": author_id,
                "today": now.date().isoformat(),
                "tomorrow": (now.date() + timedelta(days=1)).isoformat(),
                "midnight": datetime.combine(now.date(), time.min, now.tzinfo),
                "unknown": GenerationState.OUTCOME_UNKNOWN.value,
                "submitted": GenerationState.SUBMITTED.value,
            },
        )
        assert row is not None  # noqa: S101  sums without groups are always a row
        return QuotaUse(**row)

    def _select(self, author_id: int) -> QuotaLimits | None:
        row = self._context.fetch_one(
            f"SELECT {', '.join(_COLUMNS)} FROM quotas WHERE author_id = :author_id",  # noqa: S608
            {"author_id": author_id},
        )
        return None if row is None else QuotaLimits.of_checked(row)
