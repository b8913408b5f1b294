"""What was spent: sums by day, author and model.

The transaction that stores an image adds a row to ``usage_tail``, so that none waits for another one. The rows of the
tail are added to those of ``usage_days`` later, and to those of ``usage_sums``: a day of everybody, and a month of each
author. A summary reads all in one statement, from the table with the fewest rows that have what it needs. Unknown
outcomes are few: they are counted in the table of generations, and so move to the images when their images turn up.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from typing import Any

from pixyproxy.core.fields import GenerationState
from pixyproxy.core.models import Caller, Cost, Usage, UsageGrouping, UsageRow
from pixyproxy.data.database import Repository, in_list
from pixyproxy.data.image_conditions import Conditions

_NUMBERS = ("images", "images_without_cost", "input_tokens", "output_tokens", "nano_usd")
_KEY = ("day", "author_id", "model")
# What quotas count for images whose cost is unknown is in no summary.
_STORED = (*_NUMBERS, "assumed_nano_usd")
_EVERYBODY = 0
"""In place of an author's id in ``usage_sums``."""
_COUNTS = (*_NUMBERS, "unknown_outcomes")
_PERIOD = {"usage_tail": "day", "usage_days": "day", "usage_sums": "period"}
"""The column of each table that has the day, or the month (YYYY-MM)."""
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


class UsageRepository(Repository):
    """The sums of what was spent, within one database context."""

    # --- Counting --------------------------------------------------------------------------------------------------

    def add(self, used: Iterable[Spending]) -> None:
        """Count what was spent."""
        self._context.execute_many(_insert("usage_tail", _STORED), [vars(one) for one in _summed(used)])

    def get_tail(self, limit: int) -> list[int]:
        """Return the ids of the oldest rows of the tail."""
        return self._context.fetch_values("SELECT id FROM usage_tail ORDER BY id LIMIT :limit", {"limit": limit})

    def fold(self, ids: Sequence[int]) -> None:
        """Move rows from the tail to the sums, unless another server has done so, in a transaction of its own.

        They must be the oldest: because all servers begin with these, the others wait here.
        """
        columns = ", ".join((*_KEY, *_STORED))
        rows = self._context.fetch_all(
            f"SELECT {columns} FROM usage_tail WHERE id IN ({in_list(ids)}) ORDER BY id{self._context.for_update}",  # noqa: S608
            {},
        )
        tail = [Spending(**row) for row in rows]
        self._add_to("usage_days", _STORED, tail)
        self._add_to("usage_sums", _NUMBERS, [replace(one, author_id=_EVERYBODY) for one in tail])
        self._add_to("usage_sums", _NUMBERS, [replace(one, day=_month_of(one.day)) for one in tail])
        self._context.execute(f"DELETE FROM usage_tail WHERE id IN ({in_list(ids)})", {})  # noqa: S608

    def _add_to(self, table: str, names: Sequence[str], used: Iterable[Spending]) -> None:
        additions = ", ".join(f"{name} = {name} + :{name}" for name in names)
        update = (
            f"UPDATE {table} SET {additions} "  # noqa: S608
            f"WHERE {_PERIOD[table]} = :day AND author_id = :author_id AND model = :model"
        )
        for one in _summed(used):
            if not self._context.execute(update, vars(one)):
                self._context.execute(_insert(table, names), vars(one))

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
            group_by: what to group the rows by; if it is empty, there is always one row.
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
        conditions = Conditions()
        conditions.add_author(caller, author)
        parameters |= conditions.parameters
        scope = "".join(f" AND {condition}" for condition in conditions.sql)
        group = f"GROUP BY {', '.join(keys)}" if keys else ""
        columns = {"day": "DATE(created_at) AS day", "author_id": "author_id", "model": "COALESCE(model, '') AS model"}
        unknown = ", ".join([*(columns[key] for key in keys), *("0" for _ in _NUMBERS)])
        sums = "".join(
            f"SELECT {_sums(table, keys)}, 0 AS unknown_outcomes FROM {table} WHERE {where} {group} UNION ALL "  # noqa: S608
            for table, where in _sources(first, last, groups, scope, parameters)
        )
        by_author = UsageGrouping.AUTHOR in groups
        totals = ", ".join([*keys, *(f"CAST(COALESCE(SUM({name}), 0) AS SIGNED) AS {name}" for name in _COUNTS)])
        rows = self._context.fetch_all(
            # Each table is summed up before the union, and names are joined to the sums: both are much fewer rows.
            f"""
            SELECT {"users.username AS author, " if by_author else ""}summed.* FROM (
              SELECT {totals} FROM (
                {sums}
                SELECT {unknown}, COUNT(*) FROM generations
                WHERE state = :unknown AND created_at >= :first_at AND created_at <= :last_at{scope} {group}
              ) AS used {group}
            ) AS summed {"JOIN users ON users.id = summed.author_id" if by_author else ""}
            {f"ORDER BY {', '.join(groups)}" if groups else ""} LIMIT :limit
            """,  # noqa: S608
            parameters,
        )
        return [_dict_to_row(row) for row in rows]


def _insert(table: str, names: Sequence[str]) -> str:
    columns = ", ".join((_PERIOD[table], "author_id", "model", *names))
    return f"INSERT INTO {table} ({columns}) VALUES ({', '.join(f':{name}' for name in (*_KEY, *names))})"  # noqa: S608


def _month_of(day: str) -> str:
    return day[: len("YYYY-MM")]


def _sums(table: str, keys: Sequence[str]) -> str:
    columns = [f"{_PERIOD[table]} AS day" if key == "day" else key for key in keys]
    return ", ".join([*columns, *(f"SUM({name}) AS {name}" for name in _NUMBERS)])


def _sources(
    first: date, last: date, groups: Sequence[UsageGrouping], scope: str, parameters: dict[str, Any]
) -> list[tuple[str, str]]:
    """Return where the usage of a period is: tables, each with its condition. Add the parameters of these."""
    days = f"day >= :first_day AND day <= :last_day{scope}"
    sources = [("usage_tail", days)]
    if scope or {UsageGrouping.AUTHOR, UsageGrouping.DAY} <= {*groups}:
        return [*sources, ("usage_days", days)]
    if UsageGrouping.AUTHOR in groups:
        return [*sources, *_by_month(first, last, parameters)]
    return [*sources, ("usage_sums", f"author_id = {_EVERYBODY} AND period >= :first_day AND period <= :last_day")]


def _by_month(first: date, last: date, parameters: dict[str, Any]) -> list[tuple[str, str]]:
    """Return where the usage of all authors is: in whole months, and in the days before and after them."""
    # Later days of the present month are still empty.
    is_last_whole = last.day == monthrange(last.year, last.month)[1] or last >= datetime.now(UTC).date()
    is_first_whole = first.day == 1
    first_month, last_month = _month_of(first.isoformat()), _month_of(last.isoformat())
    parameters |= {"first_month": first_month, "last_month": last_month}
    lower, upper = ">=" if is_first_whole else ">", "<=" if is_last_whole else "<"
    months = f"author_id <> {_EVERYBODY} AND period {lower} :first_month AND period {upper} :last_month"
    ends = []
    if not is_first_whole:
        ends.append("day <= :end_of_first")
        parameters["end_of_first"] = f"{first_month}-31"
    if not is_last_whole:
        ends.append("day >= :start_of_last")
        parameters["start_of_last"] = f"{last_month}-01"
    days = f"day >= :first_day AND day <= :last_day AND ({' OR '.join(ends)})"
    return [("usage_sums", months), *([("usage_days", days)] if ends else [])]


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
