"""A pool of database connections.

The driver's own pool raises at once when it is empty and holds one lock for the whole process while it reconnects;
SQLAlchemy's costs more than half of what the query itself does. See docs/decisions.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from pixyproxy.core.exceptions import DBConnectionError

Connection = TypeVar("Connection")

# While the database is away, how often it is tried at most.
_TRY_EVERY_SECONDS = 0.5
# From here on, a thread counts as having waited for its turn.
_LONG_WAIT_SECONDS = 0.5
# What was answered just before the database fell silent may be told to the pool only after that.
_SLACK_SECONDS = 0.5


class ConnectionPool(Generic[Connection]):
    """At most ``size`` connections, each used by one thread at a time; the one used last is given out first."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        disconnect: Callable[[Connection], None],
        *,
        size: int,
        wait: float,
    ) -> None:
        """Make an empty pool.

        Args:
            connect: opens a connection; raises ``DBConnectionError`` where it cannot.
            disconnect: closes one; must not raise.
            size: the most connections that are open at a time.
            wait: the most seconds that a thread waits for its turn.
        """
        self._connect = connect
        self._disconnect = disconnect
        self._wait = wait
        self._turns = threading.BoundedSemaphore(size)
        self._idle: list[Connection] = []
        self._closed = False
        # While the database is away, a thread tries to connect now and then, and the others are refused at once. The
        # next one does not wait for the one before, which may hang in a connection that the network has lost; those
        # that hang, each about as long as others wait for a turn, take half of the turns at most.
        self._is_away = False
        self._try_every = max(_TRY_EVERY_SECONDS, 2 * wait / size)
        self._next_try_at = 0.0
        self._lock = threading.Lock()
        self._heard_at = 0.0  # when the database last answered anybody, as far as the pool is told

    def acquire(self) -> tuple[Connection, bool]:
        """Take a connection; return it, and whether it was used before, so that it may have died meanwhile.

        Raises:
            DBConnectionError: no connection became free in time, or a new one could not be made.
        """
        began = time.monotonic()
        if not self._turns.acquire(timeout=self._wait):
            raise DBConnectionError("The database is busy; try again.", retry_after=1.0)
        has_waited = time.monotonic() - began > _LONG_WAIT_SECONDS
        try:
            # list.pop and list.append need no lock of ours: each is one step of the interpreter.
            return self._idle.pop(), True
        except IndexError:
            pass
        try:
            return self._connect_or_refuse(has_waited=has_waited), False
        except BaseException:
            self._turns.release()
            raise

    def renew(self, dead: Connection) -> Connection:
        """Exchange a connection that turned out to be dead for a new one.

        The idle ones are dropped as well: what ended one, such as a restart of the server, ended them all.

        Raises:
            DBConnectionError: a new one could not be made; the caller then holds none.
        """
        self._disconnect(dead)
        self._drop_idle()
        try:
            return self._connect_or_refuse()
        except BaseException:
            self._turns.release()
            raise

    def release(self, connection: Connection, *, reusable: bool) -> None:
        """Give a connection back; one that is not ``reusable``, because its work was cut off, is closed.

        While the database is away, the idle ones are closed as well.
        """
        if reusable:
            self._heard_at = time.monotonic()
        if reusable and not self._closed:
            self._idle.append(connection)
        else:
            self._disconnect(connection)
            if self._is_away or self._closed:
                self._drop_idle()
        self._turns.release()

    def note_silence(self, since: float) -> None:
        """Note that the database has not answered since a time by ``time.monotonic``.

        It is then taken to be away until a connection is made; so threads that wait do not each find out for
        themselves. Where it has answered others meanwhile, it is only slow with one.
        """
        if self._heard_at < since + _SLACK_SECONDS:
            self._is_away = True

    def close(self) -> None:
        """Close all idle connections now, and each one in use when it is given back."""
        self._closed = True
        self._drop_idle()

    def _connect_or_refuse(self, *, has_waited: bool = False) -> Connection:
        # Where a turn becomes free without a connection, that one was cut off: whoever has waited for it already is not
        # kept waiting as long again.
        if has_waited or (self._is_away and not self._may_try()):
            raise DBConnectionError("The database cannot be reached; try again.", retry_after=1.0)
        began = time.monotonic()
        try:
            connection = self._connect()
        except DBConnectionError:
            self.note_silence(began)
            raise
        self._heard_at = time.monotonic()
        self._is_away = False
        return connection

    def _may_try(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if now < self._next_try_at:
                return False
            self._next_try_at = now + self._try_every
            return True

    def _drop_idle(self) -> None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            self._disconnect(connection)
