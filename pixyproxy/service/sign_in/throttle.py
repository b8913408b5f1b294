"""Counts failed sign-ins, and decides which further ones are refused or slowed."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from datetime import timedelta

from pixyproxy.core.exceptions import PixyProxyException, TooManySignInsError
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.sign_ins import SignInRepository
from pixyproxy.data.transactions import in_transaction

# The limit of an address is higher, because many callers behind a balancer or on one host share it.
_ADDRESS_FACTOR = 10
# For any window, so that correct passwords from a slowed address do not wait too long.
_LONGEST_PAUSE_SECONDS = 1.0
_REMEMBERED = timedelta(days=30)
_NOTED_AGAIN = timedelta(days=1)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """The priority of a sign-in.

    Attributes:
        is_known: the name has signed in from the address before.
        is_slowed: too many sign-ins from the address have failed, and the name is not known there.
    """

    is_known: bool
    is_slowed: bool


class SignInThrottle:
    """Counts failed sign-ins for each name and address, and for each address, on all servers together.

    Beyond the limit, further sign-ins with a name from an address are refused. Beyond its limit, an address is only
    slowed, and a name alone is not counted: otherwise anybody could lock others out. Sign-ins that are being checked
    when the limit is reached may still fail, beyond it.

    Attributes:
        pause: seconds between checks for a slowed address, at which it stays within its limit.
    """

    def __init__(self, database: Database, max_failures: int, window: float) -> None:
        """Allow ``max_failures``, and ten times as many for each address, within ``window`` seconds."""
        self._database = database
        self._max_failures = max_failures
        self._window = timedelta(seconds=window)
        self.pause = min(_LONGEST_PAUSE_SECONDS, window / (max_failures * _ADDRESS_FACTOR))

    def require_allowed(self, username: str, address: str) -> None:
        """Check that a sign-in is allowed.

        Raises:
            TooManySignInsError: too many have failed; with the seconds until the next one is allowed.
            DBConnectionError: the database is unavailable.
        """
        with self._database.reading() as context:
            wait = self._wait_for(context, _counter(username, address), self._max_failures)
        if wait > 0:
            raise TooManySignInsError("Too many sign-ins have failed; wait before the next.", retry_after=wait)

    def standing_of(self, username: str, address: str) -> Standing:
        """Return the priority of a sign-in."""
        with self._database.reading() as context:
            if SignInRepository(context).last_success(_counter(username, address)) is not None:
                return Standing(is_known=True, is_slowed=False)
            wait = self._wait_for(context, _counter(address), self._max_failures * _ADDRESS_FACTOR)
        return Standing(is_known=False, is_slowed=wait > 0)

    def note_failure(self, username: str, address: str) -> None:
        """Count a failed sign-in, and delete expired ones."""

        def note(context: DatabaseContext) -> None:
            now = context.now()
            sign_ins = SignInRepository(context)
            sign_ins.insert_failure([_counter(username, address), _counter(address)], now)
            sign_ins.delete_failures_before(now - self._window)

        in_transaction(self._database, note)

    def note_success(self, username: str, address: str) -> None:
        """Delete the failures of a name from an address, and record that it is known there.

        A failure to write, as to a full disk, is only logged: the password is correct nevertheless.
        """
        origin = _counter(username, address)
        with self._database.reading() as context:
            ids = SignInRepository(context).failure_ids(origin)
            last = SignInRepository(context).last_success(origin)
            now = context.now()

        def note(context: DatabaseContext) -> None:
            sign_ins = SignInRepository(context)
            sign_ins.delete_failures(ids)
            sign_ins.set_success(origin, now)
            sign_ins.delete_successes_before(now - _REMEMBERED)

        if ids or last is None or last < now - _NOTED_AGAIN:
            try:
                in_transaction(self._database, note)
            except PixyProxyException as error:
                _logger.warning("A sign-in could not be recorded: %s", type(error).__name__)

    def _wait_for(self, context: DatabaseContext, counter: str, limit: int) -> float:
        """Return the seconds until one more failure is within the limit, or 0."""
        oldest = SignInRepository(context).nth_last_failure(counter, limit)
        if oldest is None:
            return 0.0
        wait = oldest + self._window - context.now()
        return max(0.0, wait.total_seconds())


def _counter(*counted_by: str) -> str:
    """Return the name of a counter: a hash, of a fixed length, that does not reveal names or addresses."""
    return hashlib.sha256("\0".join(counted_by).encode("utf-8", "surrogatepass")).hexdigest()
