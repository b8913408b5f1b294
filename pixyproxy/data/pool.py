"""A pool of database connections.

The driver's own pool raises at once when it is empty and holds one lock for the whole process while it reconnects;
SQLAlchemy's costs more than half of what the query itself does. See docs/decisions.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from pixyproxy.core.exceptions import DBConnectionError

Connection = TypeVar("Connection")


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
        # While the database is away one thread at a time tries to connect, and the others are refused at once.
        self._is_away = False
        self._trying = threading.Lock()

    def acquire(self) -> tuple[Connection, bool]:
        """Take a connection; return it, and whether it was used before, so that it may have died meanwhile.

        Raises:
            DBConnectionError: no connection became free in time, or a new one could not be made.
        """
        if not self._turns.acquire(timeout=self._wait):
            raise DBConnectionError("The database is busy; try again.", retry_after=1.0)
        try:
            # list.pop and list.append need no lock of ours: each is one step of the interpreter.
            return self._idle.pop(), True
        except IndexError:
            pass
        try:
            return self._connect_or_refuse(), False
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

        What cut it off is taken to concern the idle ones as well.
        """
        if reusable and not self._closed:
            self._idle.append(connection)
        else:
            self._disconnect(connection)
            self._drop_idle()
        self._turns.release()

    def close(self) -> None:
        """Close all idle connections now, and each one in use when it is given back."""
        self._closed = True
        self._drop_idle()

    def _connect_or_refuse(self) -> Connection:
        if not self._is_away:
            return self._try_to_connect()
        if not self._trying.acquire(blocking=False):
            raise DBConnectionError("The database cannot be reached; try again.", retry_after=1.0)
        try:
            return self._try_to_connect()
        finally:
            self._trying.release()

    def _try_to_connect(self) -> Connection:
        try:
            connection = self._connect()
        except DBConnectionError:
            self._is_away = True
            raise
        self._is_away = False
        return connection

    def _drop_idle(self) -> None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            self._disconnect(connection)
