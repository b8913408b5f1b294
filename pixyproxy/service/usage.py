"""Usage, which is images, tokens and costs, and quotas."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

from pixyproxy.core.exceptions import InvalidFieldError
from pixyproxy.core.models import (
    MAX_USAGE_DAYS,
    MAX_USAGE_ROWS,
    Caller,
    Quota,
    QuotaRequest,
    UsageRequest,
    UsageRow,
)
from pixyproxy.core.text import exact_key
from pixyproxy.core.validation import validated
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.usage import UsageRepository
from pixyproxy.data.repositories.users import UserRepository
from pixyproxy.service.private_images import signed_in
from pixyproxy.service.quotas import Quotas

_FIRST_TIME = datetime.min.replace(tzinfo=UTC)


class UsageService:
    """Sums up what was spent, and shows quotas."""

    def __init__(self, database: Database, quotas: Quotas) -> None:
        self._database = database
        self._quotas = quotas

    def summarize_usage(self, request: UsageRequest, caller: Caller | None) -> list[UsageRow]:
        """Sum up what the caller has spent in a period, or an admin's users.

        Raises:
            CredentialsMissingError: there is no caller.
            InvalidFieldError: the period is invalid, or there are too many rows.
            DBConnectionError: the database is unavailable.
        """
        caller = signed_in(caller)
        request = validated(UsageRequest, request)
        first, last = _days_of(request)
        with self._database.reading() as context:
            rows = UsageRepository(context).summarize(
                first, last, request.group_by, caller, request.author, limit=MAX_USAGE_ROWS + 1
            )
        if len(rows) > MAX_USAGE_ROWS:
            raise InvalidFieldError.of(
                "group_by",
                f"the summary would have more than {MAX_USAGE_ROWS:,} rows; group by less, or shorten the period",
            )
        return rows

    def get_quotas(self, request: QuotaRequest, caller: Caller | None) -> list[Quota]:
        """Return what is limited for the caller, or an admin's user, and what is used of it.

        Raises:
            CredentialsMissingError: there is no caller.
            DBConnectionError: the database is unavailable.
        """
        caller = signed_in(caller)
        author = validated(QuotaRequest, request).author
        if author is None or exact_key(author) == exact_key(caller.username):
            return self._quotas.get(caller.user_id)
        if not caller.is_admin:
            return []
        with self._database.reading() as context:
            author_id = UserRepository(context).find_id(author)
        return [] if author_id is None else self._quotas.get(author_id)


def _days_of(request: UsageRequest) -> tuple[date, date]:
    """Return the first and the last day that a period has a part of."""
    end = request.end or datetime.now(UTC)
    if end <= (request.start or _FIRST_TIME):
        if request.end is None:
            raise InvalidFieldError.of("start", "must be earlier than end, which is the present by default")
        raise InvalidFieldError.of("end", "must be later than start")
    last = end.date() if end.time() > time.min else end.date() - timedelta(days=1)
    if request.start is None:
        return last.replace(day=1), last
    if end - request.start > timedelta(days=MAX_USAGE_DAYS):
        raise InvalidFieldError.of("start", f"must be at most {MAX_USAGE_DAYS} days before end")
    return request.start.date(), last
