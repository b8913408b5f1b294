"""The clock of the database, for times that servers with different clocks compare."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pixyproxy.data.database import DatabaseContext

_NOW = {
    "mysql": "SELECT UTC_TIMESTAMP(6) AS now_at",
    "sqlite": "SELECT strftime('%Y-%m-%d %H:%M:%f', 'now') AS now_at",
}


def database_now(context: DatabaseContext, kind: Literal["mysql", "sqlite"]) -> datetime:
    """Return the time by the clock of a database of this kind."""
    row = context.fetch_one(_NOW[kind], {})
    assert row is not None  # noqa: S101  the query returns one row
    now: datetime = row["now_at"]
    return now
