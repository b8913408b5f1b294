"""Warns of a clock that differs from that of the database."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from pixyproxy.data.database import Database

_logger = logging.getLogger(__name__)

# A third of a lease, less than what is left of one when it is renewed late.
_TOLERANCE = timedelta(seconds=5)


def warn_of_wrong_clock(database: Database, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
    """Log a warning if this server's clock differs from the database's by so much that leases end too early."""
    with database.reading() as context:
        difference = now() - context.now()
    if abs(difference) > _TOLERANCE:
        _logger.warning(
            "The clock of this server is %.0f s %s the database's. Servers whose clocks differ end each other's "
            "generations as OUTCOME_UNKNOWN: synchronize the clocks.",
            abs(difference).total_seconds(),
            "ahead of" if difference > timedelta(0) else "behind",
        )
