"""Counts failed sign-ins, and tells which further ones are refused, and which are checked slowly."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from datetime import timedelta

from pixyproxy.core.exceptions import PixyProxyException, TooManySignInsError
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.clock import database_now
from pixyproxy.data.repositories.failed_sign_ins import FailedSignInRepository
from pixyproxy.data.repositories.past_sign_ins import PastSignInRepository
from pixyproxy.data.transactions import in_transaction

# An address alone is counted more generously, because a balancer or a shared host makes many callers look like one.
_ADDRESS_FACTOR = 10
# With any window, so that right passwords among those that are checked slowly are not kept waiting for too long.
_LONGEST_PAUSE_SECONDS = 1.0
_REMEMBERED = timedelta(days=30)
_NOTED_AGAIN = timedelta(days=1)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """What is known of a sign-in before its password is checked.

    Attributes:
        is_known: its name has signed in from its address before.
        is_slowed: too many sign-ins from its address have failed, and it is not known.
    """

    is_known: bool
    is_slowed: bool


class SignInThrottle:
    """Counts failed sign-ins of one name from one address, and of one address, on all servers together.

    One name from one address is refused beyond the limit. An address alone is slowed beyond its limit, and a name alone
    is not counted: anybody could otherwise lock others out. Sign-ins that are being checked when a limit is reached are
    still answered, so that as many more as are checked at a time may fail.

    Attributes:
        pause: seconds that a slowed address has to wait after each failure, for as many failures as within the limit.
    """

    def __init__(self, database: Database, max_failures: int, window: float) -> None:
        """Limit to ``max_failures`` (ten times as many for an address alone) within ``window`` seconds."""
        self._database = database
        self._max_failures = max_failures
        self._window = timedelta(seconds=window)
        self.pause = min(_LONGEST_PAUSE_SECONDS, window / (max_failures * _ADDRESS_FACTOR))

    def require_allowed(self, username: str, address: str) -> None:
        """Check that a sign-in may be looked at.

        Raises:
            TooManySignInsError: too many have failed; says when the next one will be looked at.
            DBConnectionError: the database is away.
        """
        with self._database.reading() as context:
            wait = self._wait_for(context, _counter(username, address), self._max_failures)
        if wait > 0:
            raise TooManySignInsError("Too many sign-ins have failed; wait before the next.", retry_after=wait)

    def standing_of(self, username: str, address: str) -> Standing:
        """Return what is known of a sign-in."""
        with self._database.reading() as context:
            if PastSignInRepository(context).last(_counter(username, address)) is not None:
                return Standing(is_known=True, is_slowed=False)
            wait = self._wait_for(context, _counter(address), self._max_failures * _ADDRESS_FACTOR)
        return Standing(is_known=False, is_slowed=wait > 0)

    def note_failure(self, username: str, address: str) -> None:
        """Count a failed sign-in, and forget those that are over."""

        def note(context: DatabaseContext) -> None:
            now = database_now(context, self._database.kind)
            failures = FailedSignInRepository(context)
            failures.insert([_counter(username, address), _counter(address)], now)
            failures.delete(failures.ids_before(now - self._window))

        in_transaction(self._database, note)

    def note_success(self, username: str, address: str) -> None:
        """Forget the failures of one name from one address, and remember that it is known there.

        Where that cannot be written, as to a full disk, it is left: the password is right all the same.
        """
        origin = _counter(username, address)
        with self._database.reading() as context:
            ids = FailedSignInRepository(context).ids_of(origin)
            last = PastSignInRepository(context).last(origin)
            now = database_now(context, self._database.kind)

        def note(context: DatabaseContext) -> None:
            FailedSignInRepository(context).delete(ids)
            sign_ins = PastSignInRepository(context)
            sign_ins.set(origin, now)
            sign_ins.delete_before(now - _REMEMBERED)

        if ids or last is None or last < now - _NOTED_AGAIN:
            try:
                in_transaction(self._database, note)
            except PixyProxyException as error:
                _logger.warning("A sign-in could not be noted: %s", type(error).__name__)

    def _wait_for(self, context: DatabaseContext, counter: str, limit: int) -> float:
        """Return the seconds until one more failure would be within the limit, or 0."""
        oldest = FailedSignInRepository(context).nth_last(counter, limit)
        if oldest is None:
            return 0.0
        wait = oldest + self._window - database_now(context, self._database.kind)
        return max(0.0, wait.total_seconds())


def _counter(*counted_by: str) -> str:
    """Return a name of bounded length for what is counted, which says nothing of it."""
    return hashlib.sha256("\0".join(counted_by).encode("utf-8", "surrogatepass")).hexdigest()
