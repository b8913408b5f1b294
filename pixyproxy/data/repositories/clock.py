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
    now = context.fetch_value(_NOW[kind], {})
    assert isinstance(now, datetime)  # noqa: S101  the query always returns a row
    return now
