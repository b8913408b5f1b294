"""A pool of database connections. docs/decisions/database.md compares it with those of the driver and of SQLAlchemy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from pixyproxy.core.exceptions import DBConnectionError

Connection = TypeVar("Connection")

# A thread that has waited longer for a slot does not also wait for a new connection.
_LONG_WAIT_SECONDS = 0.5


class ConnectionPool(Generic[Connection]):
    """At most ``size`` connections, each used by one thread at a time; the one used last is handed out first."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        disconnect: Callable[[Connection], None],
        *,
        size: int,
        wait: float,
        retry_interval: float = 0.5,
        silence_tolerance: float = 0.5,
    ) -> None:
        """Make an empty pool.

        Args:
            connect: opens a connection, or raises ``DBConnectionError``.
            disconnect: closes one; must not raise.
            size: the most connections that are open at a time.
            wait: the most seconds that a thread waits for a slot.
            retry_interval: the least seconds between two attempts to connect while the database is down.
            silence_tolerance: how many seconds after the start of a silence an answer may be reported that arrived
                before it.
        """
        self._connect = connect
        self._disconnect = disconnect
        self._wait = wait
        self._silence_tolerance = silence_tolerance
        self._slots = threading.BoundedSemaphore(size)
        self._idle: list[Connection] = []
        self._closed = False
        # While the database is down, one thread at a time tries to connect, and the others are refused at once. The
        # next attempt does not wait for the last one, which may hang for as long as ``wait`` where the network drops
        # packets; the interval keeps the attempts that hang from taking more than half of the slots.
        self._is_down = False
        self._retry_interval = max(retry_interval, 2 * wait / size)
        self._next_attempt_at = 0.0
        self._lock = threading.Lock()
        self._last_answer_at = 0.0

    def acquire(self) -> tuple[Connection, bool]:
        """Take a connection; return it, and whether it was used before, so that it may have died since.

        Raises:
            DBConnectionError: no connection became free in time, or a new one could not be opened.
        """
        started = time.monotonic()
        if not self._slots.acquire(timeout=self._wait):
            raise DBConnectionError("The database is busy; try again.", retry_after=1.0)
        has_waited = time.monotonic() - started > _LONG_WAIT_SECONDS
        try:
            # list.pop and list.append are atomic.
            return self._idle.pop(), True
        except IndexError:
            pass
        return self._open(has_waited=has_waited), False

    def renew(self, dead: Connection) -> Connection:
        """Replace a dead connection by a new one.

        The idle connections are closed as well: a restart of the server ends them all.

        Raises:
            DBConnectionError: a new one could not be opened; the caller then has none.
        """
        self._disconnect(dead)
        self.close_idle()
        return self._open()

    def release(self, connection: Connection, *, reusable: bool) -> None:
        """Return a connection; one that is not ``reusable``, because a statement was interrupted, is closed.

        While the database is down, the idle connections are closed as well.
        """
        if reusable:
            self._last_answer_at = time.monotonic()
        if reusable and not self._closed:
            self._idle.append(connection)
        else:
            self._disconnect(connection)
            if self._is_down or self._closed:
                self.close_idle()
        self._slots.release()

    def report_silence(self, since: float) -> None:
        """Report that a statement has had no answer since a time of ``time.monotonic``.

        The database is then regarded as down until a connection is opened, unless it has answered others since.
        """
        if self._last_answer_at < since + self._silence_tolerance:
            self._is_down = True

    def close_idle(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # Another thread took the last one.
                return
            self._disconnect(connection)

    def close(self) -> None:
        """Close all idle connections now, and each one in use when it is returned."""
        self._closed = True
        self.close_idle()

    def _open(self, *, has_waited: bool = False) -> Connection:
        """Open a connection in the slot of this thread, which is released if that fails."""
        try:
            # A slot that was released without a connection is that of an interrupted one. A thread that has waited for
            # it must not wait as long again.
            if has_waited or (self._is_down and not self._may_try()):
                raise DBConnectionError("The database cannot be reached; try again.", retry_after=1.0)
            started = time.monotonic()
            try:
                connection = self._connect()
            except DBConnectionError:
                self.report_silence(started)
                raise
        except BaseException:
            self._slots.release()
            raise
        self._last_answer_at = time.monotonic()
        self._is_down = False
        return connection

    def _may_try(self) -> bool:
        with self._lock:
            now = time.monotonic()
            if now < self._next_attempt_at:
                return False
            self._next_attempt_at = now + self._retry_interval
            return True
