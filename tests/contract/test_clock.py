"""The clock of the database beside that of a server."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest

from pixyproxy.data.clock import warn_of_wrong_clock
from pixyproxy.data.database import Database


@pytest.mark.parametrize(
    ("difference", "warning"),
    [(60, "is 60 s ahead of the database's"), (-60, "is 60 s behind the database's"), (2, ""), (-2, "")],
)
def test_a_server_warns_if_its_clock_is_wrong(
    database: Database, caplog: pytest.LogCaptureFixture, difference: int, warning: str
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_wrong_clock(database, lambda: datetime.now(UTC) + timedelta(seconds=difference))
    assert warning in caplog.text
    assert bool(caplog.text) == bool(warning)
