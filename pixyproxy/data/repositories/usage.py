"""What was spent: sums by day, author and model.

The transaction that stores an image adds a row to ``usage_tail``, so that none waits for another one. The rows of the
tail are added to those of ``usage_days`` later. A summary reads both in one statement. Unknown outcomes are few: they
are counted in the table of generations, and so move to the images when their images turn up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from typing import Any

from pixyproxy.core.models import Caller, Cost, GenerationState, Usage, UsageGrouping, UsageRow
from pixyproxy.core.text import exact_key
from pixyproxy.data.database import Database, DatabaseContext, in_list

_NUMBERS = ("images", "images_without_cost", "input_tokens", "output_tokens", "nano_usd")
_KEY = ("day", "author_id", "model")
# What quotas count for images whose cost is unknown is in no summary.
_STORED = (*_NUMBERS, "assumed_nano_usd")
_INSERT = f"({', '.join((*_KEY, *_STORED))}) VALUES ({', '.join(f':{name}' for name in (*_KEY, *_STORED))})"
_COUNTS = (*_NUMBERS, "unknown_outcomes")
_KEY_OF = {UsageGrouping.DAY: "day", UsageGrouping.AUTHOR: "author_id", UsageGrouping.MODEL: "model"}


@dataclass(frozen=True)
class Spending:
    """What was spent on a day by an author with a model, on one image or several."""

    day: str
    author_id: int
    model: str
    images: int
    images_without_cost: int
    input_tokens: int
    output_tokens: int
    nano_usd: int
    assumed_nano_usd: int = 0

    @classmethod
    def of(
        cls,
        author_id: int,
        created_at: datetime,
        model: str,
        usage: Usage | None,
        cost: Cost | None,
        reserved_nano_usd: int | None = None,
    ) -> Spending:
        """Return what was spent on an image; if its cost is unknown, it is assumed to be what was reserved."""
        return cls(
            day=created_at.astimezone(UTC).date().isoformat(),
            author_id=author_id,
            model=model,
            images=1,
            images_without_cost=int(cost is None),
            input_tokens=0 if usage is None else usage.input_tokens,
            output_tokens=0 if usage is None else usage.output_tokens,
            nano_usd=0 if cost is None else cost.nano_usd,
            assumed_nano_usd=reserved_nano_usd or 0 if cost is None else 0,
        )


class UsageRepository:
    """The sums of what was spent, within one database context."""

    def __init__(self, context: DatabaseContext) -> None:
        self._context = context

    # --- Counting --------------------------------------------------------------------------------------------------

    def add(self, used: Iterable[Spending]) -> None:
        """Count what was spent."""
        self._context.execute_many(f"INSERT INTO usage_tail {_INSERT}", [vars(one) for one in _summed(used)])

    def get_tail(self, limit: int) -> list[int]:
        """Return the ids of the oldest rows of the tail."""
        rows = self._context.fetch_all("SELECT id FROM usage_tail ORDER BY id LIMIT :limit", {"limit": limit})
        return [row["id"] for row in rows]

    def fold(self, ids: Sequence[int], database: Database) -> None:
        """Add those of these rows to the days that are still in the tail, in a transaction of its own.

        Args:
            ids: the ids of the oldest rows. Because all others begin with the oldest as well, they wait here.
            database: the database of this context.
        """
        columns = ", ".join((*_KEY, *_STORED))
        rows = self._context.fetch_all(
            f"SELECT {columns} FROM usage_tail WHERE id IN ({in_list(ids)}) ORDER BY id{database.for_update}",  # noqa: S608
            {},
        )
        additions = ", ".join(f"{name} = {name} + :{name}" for name in _STORED)
        for used in _summed(Spending(**row) for row in rows):
            is_there = self._context.execute(
                f"UPDATE usage_days SET {additions} WHERE day = :day AND author_id = :author_id AND model = :model",  # noqa: S608
                vars(used),
            )
            if not is_there:
                self._context.execute(f"INSERT INTO usage_days {_INSERT}", vars(used))
        self._context.execute(f"DELETE FROM usage_tail WHERE id IN ({in_list(ids)})", {})  # noqa: S608

    # --- Reading ---------------------------------------------------------------------------------------------------

    def summarize(
        self,
        first: date,
        last: date,
        group_by: Iterable[UsageGrouping],
        caller: Caller,
        author: str | None,
        *,
        limit: int,
    ) -> list[UsageRow]:
        """Return what was spent from one day to another one, at most ``limit`` rows, by day, author and model.

        Args:
            first: the first day.
            last: the last day.
            group_by: what the rows are by; without anything there is one row in any case.
            caller: whose usage is counted, unless it is an admin.
            author: the username of the only author whose usage is counted, or None.
            limit: the most rows.
        """
        groups = [grouping for grouping in _KEY_OF if grouping in {*group_by}]
        keys = [_KEY_OF[grouping] for grouping in groups]
        parameters: dict[str, Any] = {
            "first_day": first.isoformat(),
            "last_day": last.isoformat(),
            "first_at": datetime.combine(first, time.min, UTC),
            "last_at": datetime.combine(last, time.max, UTC),
            "unknown": GenerationState.OUTCOME_UNKNOWN.value,
            "limit": limit,
        }
        scope = ""
        if not caller.is_admin:
            scope += " AND author_id = :caller_id"
            parameters["caller_id"] = caller.user_id
        if author is not None:
            scope += " AND author_id = (SELECT id FROM users WHERE username_key = :username_key)"
            parameters["username_key"] = exact_key(author)
        days = f"day >= :first_day AND day <= :last_day{scope}"
        by_author = UsageGrouping.AUTHOR in groups
        group = f"GROUP BY {', '.join(keys)}" if keys else ""
        sums = ", ".join([*keys, *(f"SUM({name}) AS {name}" for name in _NUMBERS)])
        columns = {"day": "DATE(created_at) AS day", "author_id": "author_id", "model": "COALESCE(model, '') AS model"}
        unknown = ", ".join([*(columns[key] for key in keys), *("0" for _ in _NUMBERS)])
        totals = ", ".join([*keys, *(f"CAST(COALESCE(SUM({name}), 0) AS SIGNED) AS {name}" for name in _COUNTS)])
        rows = self._context.fetch_all(
            # Each table is summed up before the union, and names are joined to the sums: both are much fewer rows.
            f"""
            SELECT {"users.username AS author, " if by_author else ""}summed.* FROM (
              SELECT {totals} FROM (
                SELECT {sums}, 0 AS unknown_outcomes FROM usage_days WHERE {days} {group}
                UNION ALL
                SELECT {sums}, 0 FROM usage_tail WHERE {days} {group}
                UNION ALL
                SELECT {unknown}, COUNT(*) FROM generations
                WHERE state = :unknown AND created_at >= :first_at AND created_at <= :last_at{scope} {group}
              ) AS used {group}
            ) AS summed {"JOIN users ON users.id = summed.author_id" if by_author else ""}
            {f"ORDER BY {', '.join(groups)}" if groups else ""} LIMIT :limit
            """,  # noqa: S608
            parameters,
        )
        return [_dict_to_row(row) for row in rows]


def _summed(used: Iterable[Spending]) -> list[Spending]:
    """Add up what has the same day, author and model; return the sums in that order."""
    sums: dict[tuple[str, int, str], Spending] = {}
    for one in used:
        key = one.day, one.author_id, one.model
        before = sums.get(key)
        sums[key] = (
            one
            if before is None
            else replace(before, **{name: getattr(before, name) + getattr(one, name) for name in _STORED})
        )
    return [sums[key] for key in sorted(sums)]


def _dict_to_row(row: dict[str, Any]) -> UsageRow:
    names = {name: str(row.get(name, "")) for name in ("author", "model", "day")}
    return UsageRow.of_checked(names | {name: row[name] for name in _COUNTS})
