"""Which days a summary of the usage has, and which requests are refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from pixyproxy.core.exceptions import CredentialsMissingError, InvalidFieldError
from pixyproxy.core.fields import UserClass, new_guid
from pixyproxy.core.models import Caller, UsageGrouping, UsageRequest, UsageRow
from pixyproxy.data.repositories.usage import UsageRepository
from pixyproxy.service.usage import UsageService

ANN = Caller(user_id=1, guid=new_guid(), username="ann", class_key=UserClass.USER)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 21, tzinfo=UTC)
LAST_TIME = datetime.max.replace(tzinfo=UTC)
FIRST_TIME = datetime.min.replace(tzinfo=UTC)
TICK = timedelta(microseconds=1)


class Asked:
    """A database that is not read, and what the repository was asked for."""

    def __init__(self) -> None:
        self.days: tuple[date, date] | None = None
        self.rows = 1

    @contextmanager
    def reading(self) -> Iterator[None]:
        yield


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()

    def summarize(_: object, first: date, last: date, *__: object, limit: int) -> list[UsageRow]:
        asked.days = (first, last)
        return [UsageRow()] * min(asked.rows, limit)

    monkeypatch.setattr(UsageRepository, "summarize", summarize)
    return asked


def summarize(asked: Asked, **fields: Any) -> list[UsageRow]:
    database: Any = asked
    return UsageService(database, quotas=database).summarize_usage(UsageRequest(**fields), ANN)


def refused(asked: Asked, **fields: Any) -> str:
    with pytest.raises(InvalidFieldError) as refusal:
        summarize(asked, **fields)
    [violation] = refusal.value.violations
    return f"{violation.field}: {violation.description}"


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [
        (NOON, NOON + TICK, "2026-11-21", "2026-11-21"),
        (MIDNIGHT, MIDNIGHT + timedelta(days=1), "2026-11-21", "2026-11-21"),
        (MIDNIGHT - TICK, MIDNIGHT + timedelta(days=1) + TICK, "2026-11-20", "2026-11-22"),
        (MIDNIGHT - timedelta(days=400), MIDNIGHT, "2025-10-17", "2026-11-20"),
        (None, NOON, "2026-11-01", "2026-11-21"),
        (None, datetime(2026, 11, 1, tzinfo=UTC), "2026-10-01", "2026-10-31"),
        (None, LAST_TIME, "9999-12-01", "9999-12-31"),
        (FIRST_TIME, FIRST_TIME + TICK, "0001-01-01", "0001-01-01"),
    ],
)
def test_a_period_has_the_days_that_it_has_a_part_of(
    asked: Asked, start: datetime | None, end: datetime, first: str, last: str
) -> None:
    assert summarize(asked, start=start, end=end) == [UsageRow()]
    assert asked.days == (date.fromisoformat(first), date.fromisoformat(last))


def test_a_period_ends_now_by_default(asked: Asked) -> None:
    before = datetime.now(UTC)
    for start in (None, before - timedelta(days=2)):
        summarize(asked, start=start)
        assert asked.days is not None
        first, last = asked.days
        assert before.date() <= last <= datetime.now(UTC).date()
        assert first == (last.replace(day=1) if start is None else start.date())


@pytest.mark.parametrize(
    ("start", "end"),
    [(NOON, NOON), (NOON, NOON - TICK), (NOON + timedelta(days=40_000), None), (None, FIRST_TIME), (LAST_TIME, None)],
)
def test_a_period_that_ends_before_it_begins_is_refused(
    asked: Asked, start: datetime | None, end: datetime | None
) -> None:
    of_the_start = "start: must be earlier than end, which is the present by default"
    assert refused(asked, start=start, end=end) == (of_the_start if end is None else "end: must be later than start")


@pytest.mark.parametrize("start", [FIRST_TIME, NOON - timedelta(days=400) - TICK])
def test_a_period_of_more_than_400_days_is_refused(asked: Asked, start: datetime) -> None:
    assert refused(asked, start=start, end=NOON) == "start: must be at most 400 days before end"


def test_a_summary_of_too_many_rows_is_refused(asked: Asked) -> None:
    asked.rows = 10_000
    assert len(summarize(asked, end=NOON, group_by=(UsageGrouping.DAY,))) == 10_000
    asked.rows = 10_001
    assert refused(asked, end=NOON).startswith("group_by: the summary would have more than 10,000 rows;")


def test_nobody_who_is_not_signed_in_learns_anything(asked: Asked) -> None:
    database: Any = asked
    with pytest.raises(CredentialsMissingError):
        UsageService(database, quotas=database).summarize_usage(UsageRequest(), None)
    assert asked.days is None
