"""The clock of the database, for times that servers with different clocks compare."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal

from pixyproxy.data.database import Database, DatabaseContext

_logger = logging.getLogger(__name__)

_NOW = {
    "mysql": "SELECT UTC_TIMESTAMP(6) AS now_at",
    "sqlite": "SELECT strftime('%Y-%m-%d %H:%M:%f', 'now') AS now_at",
}
# A third of a lease, less than what is left of one when it is renewed late.
_TOLERANCE = timedelta(seconds=5)


def database_now(context: DatabaseContext, kind: Literal["mysql", "sqlite"]) -> datetime:
    """Return the time by the clock of a database of this kind."""
    now = context.fetch_value(_NOW[kind], {})
    assert isinstance(now, datetime)  # noqa: S101  the query always returns a row
    return now


def warn_of_wrong_clock(database: Database, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
    """Log a warning if this server's clock differs from the database's by so much that leases end too early."""
    with database.reading() as context:
        difference = now() - database_now(context, database.kind)
    if abs(difference) > _TOLERANCE:
        _logger.warning(
            "The clock of this server is %.0f s %s the database's. Servers whose clocks differ end each other's "
            "generations as OUTCOME_UNKNOWN: synchronize the clocks.",
            abs(difference).total_seconds(),
            "ahead of" if difference > timedelta(0) else "behind",
        )
