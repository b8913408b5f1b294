"""Refuses sign-ins for a while after too many have failed."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from pixyproxy.core.exceptions import TooManySignInsError
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.clock import database_now
from pixyproxy.data.repositories.failed_sign_ins import FailedSignInRepository
from pixyproxy.data.transactions import in_transaction

# A peer alone is counted more generously, because a balancer or a shared host makes many callers look like one.
_PEER_FACTOR = 10


class SignInThrottle:
    """Counts failed sign-ins of one name from one peer, and of one peer whatever the name, on all servers together.

    A name alone is not counted: anybody could then lock anybody else out. Sign-ins that are being checked when the
    limit is reached are still answered, so that as many more as are checked at a time may fail.
    """

    def __init__(self, database: Database, max_failures: int, window: float) -> None:
        """Refuse after ``max_failures`` (ten times as many for a peer with many names) within ``window`` seconds."""
        self._database = database
        self._max_failures = max_failures
        self._window = timedelta(seconds=window)

    def require_allowed(self, username: str, peer: str) -> None:
        """Check that a sign-in may be looked at.

        Raises:
            TooManySignInsError: too many have failed; says when the next one will be looked at.
            DBConnectionError: the database is away.
        """
        limits = ((_counter(username, peer), self._max_failures), (_counter(peer), self._max_failures * _PEER_FACTOR))
        with self._database.reading() as context:
            wait = max(self._wait_for(context, counter, limit) for counter, limit in limits)
        if wait > 0:
            raise TooManySignInsError("Too many sign-ins have failed; wait before the next.", retry_after=wait)

    def note_failure(self, username: str, peer: str) -> None:
        """Count a failed sign-in, and forget those that are over."""

        def note(context: DatabaseContext) -> None:
            now = database_now(context, self._database.kind)
            failures = FailedSignInRepository(context)
            failures.insert([_counter(username, peer), _counter(peer)], now)
            failures.delete(failures.ids_before(now - self._window))

        in_transaction(self._database, note)

    def note_success(self, username: str, peer: str) -> None:
        """Forget the failures of one name from one peer."""
        with self._database.reading() as context:
            ids = FailedSignInRepository(context).ids_of(_counter(username, peer))
        if ids:
            in_transaction(self._database, lambda context: FailedSignInRepository(context).delete(ids))

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
