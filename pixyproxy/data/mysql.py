"""MySQL 8.4+ and MariaDB 10.11+ through mysql-connector-python."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, TypeVar

import mysql.connector
from mysql.connector.constants import ClientFlag, FieldType
from mysql.connector.cursor import MySQLCursor
from pydantic import SecretStr

from pixyproxy.core.exceptions import (
    ConflictError,
    ConstraintViolationError,
    DBConnectionError,
    PixyProxyException,
    StorageFullError,
)
from pixyproxy.data.database import Database, DatabaseContext, Parameters, Row
from pixyproxy.data.pool import ConnectionPool

if mysql.connector.HAVE_CEXT:
    from mysql.connector.cursor_cext import CMySQLCursor

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Error numbers of the server and of the client library; the manual's "Error Message Reference" lists them.
_CONSTRAINT_ERRORS = frozenset({1022, 1048, 1062, 1169, 1216, 1217, 1451, 1452, 1557, 1586, 3819, 4025})
_CONFLICT_ERRORS = frozenset({1205, 1213, 1020, 3572})
_FULL_ERRORS = frozenset({1021, 1041, 1114})
_CONNECTION_ERRORS = frozenset(
    {1040, 1042, 1043, 1044, 1045, 1049, 1053, 1077, 1129, 1130, 1152, 1158, 1159, 1160, 1161, 1203, 1226, 1290}
    | {1317, 1792, 1836, 1927, 3024, 3168, 3169, 4031}
)
_CLIENT_ERRORS = range(2000, 3000)
_DENIED_ERRORS = frozenset({1142, 1143, 1227})
_WRONG_USER = (
    "The database server at {host}:{port} refuses the user {user} or the password. Check PIXYPROXY_DATABASE_USER and "
    "PIXYPROXY_DATABASE_PASSWORD, or PIXYPROXY_DATABASE_URL."
)
_MISSING_RIGHTS = (
    "The database user lacks rights on the database. Check PIXYPROXY_DATABASE_USER and PIXYPROXY_DATABASE_NAME, or "
    "PIXYPROXY_DATABASE_URL; sql/mysql/002 grants the rights."
)
_NO_CONNECTION_LEFT = (
    "The database server at {host}:{port} allows no further connection. Raise its max_connections, or lower "
    "PIXYPROXY_DATABASE_POOL_SIZE."
)
_NO_ANSWER = (
    "No database server answers at {host}:{port}. Check that it runs, and PIXYPROXY_DATABASE_HOST and "
    "PIXYPROXY_DATABASE_PORT, or PIXYPROXY_DATABASE_URL."
)
_DIAGNOSES = {
    1040: _NO_CONNECTION_LEFT,
    1044: _MISSING_RIGHTS,
    1045: _WRONG_USER,
    1049: "The database server at {host}:{port} has no database {name}. Check PIXYPROXY_DATABASE_NAME, or "
    "PIXYPROXY_DATABASE_URL; sql/mysql/001 creates the database.",
    1130: "The database server at {host}:{port} does not allow connections from this host.",
    1203: _NO_CONNECTION_LEFT,
    1226: _NO_CONNECTION_LEFT,
    1698: _WRONG_USER,
    2002: _NO_ANSWER,
    2003: _NO_ANSWER,
    2005: "The host name of the database server, {host}, cannot be resolved. Check PIXYPROXY_DATABASE_HOST, or "
    "PIXYPROXY_DATABASE_URL.",
    2013: _NO_ANSWER,
    2055: _NO_ANSWER,
}
_OTHER_REFUSAL = "The database server at {host}:{port} cannot be used: it or its client library reports error {number}."
_ROWS_AN_INSERT = 500
# A connection that is dead says so at once. One that says nothing for longer has lost its server on the way, or its
# server hangs: to connect anew would only wait as long again.
_SILENCE_SECONDS = 0.5
_MIGRATION_LOCK = "pixyproxy_migrations"
_MIGRATION_WAIT_SECONDS = 60
_MIGRATION_TIMEOUT_SECONDS = 24 * 3600


@dataclass(frozen=True)
class MySQLAddress:
    """Where a MySQL or MariaDB server is, and as whom to sign in."""

    host: str
    port: int
    user: str
    password: SecretStr
    database: str


class MySQLDatabase(Database):
    """A database on a MySQL or MariaDB server."""

    kind: Literal["mysql", "sqlite"] = "mysql"
    for_update = " FOR UPDATE"

    def __init__(
        self, address: MySQLAddress, *, pool_size: int, pool_wait: float, connect_timeout: float, query_timeout: float
    ) -> None:
        """Open nothing yet.

        Args:
            address: where the server is.
            pool_size: the most connections at a time.
            pool_wait: the most seconds to wait for one of them.
            connect_timeout: the most seconds to wait for a new connection.
            query_timeout: the most seconds to wait for an answer.
        """
        self._address = address
        self._connect_timeout = connect_timeout
        self._query_timeout = query_timeout
        self._pool = ConnectionPool(self._connect, _disconnect, size=pool_size, wait=pool_wait)
        if not mysql.connector.HAVE_CEXT:
            _logger.warning("The C extension of mysql-connector-python is not there: queries take about twice as long.")

    def reading(self) -> AbstractContextManager[DatabaseContext]:  # noqa: D102  inherited
        return self._context(begin=False)

    def transaction(self) -> AbstractContextManager[DatabaseContext]:  # noqa: D102  inherited
        return self._context(begin=True)

    @contextmanager
    def migrating(self) -> Iterator[DatabaseContext]:  # noqa: D102  inherited
        # A step may take much longer than a query, and so may the wait for somebody else's.
        connection = self._connect(_MIGRATION_TIMEOUT_SECONDS)
        try:
            context = _MySQLContext(connection)
            lock = {"name": f"{_MIGRATION_LOCK}:{self._address.database}"[:64], "seconds": _MIGRATION_WAIT_SECONDS}
            row = context.fetch_one("SELECT GET_LOCK(:name, :seconds) AS locked", lock)
            if row is None or row["locked"] != 1:
                raise ConflictError("Another process is changing the tables; try again in a minute.", retry_after=60)
            yield context
        finally:
            _disconnect(connection)  # Which gives the lock back.

    def has_table(self, name: str) -> bool:  # noqa: D102  inherited
        sql = "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = :name"
        with self.reading() as context:
            return context.fetch_one(sql, {"name": name}) is not None

    def close(self) -> None:  # noqa: D102  inherited
        self._pool.close()

    def _connect(self, query_timeout: float | None = None) -> Any:
        timeout = _whole_seconds(self._query_timeout if query_timeout is None else query_timeout)

        try:
            return mysql.connector.connect(
                host=self._address.host,
                port=self._address.port,
                user=self._address.user,
                password=self._address.password.get_secret_value(),
                database=self._address.database,
                # The connector's own default collation is not known to MariaDB.
                charset="utf8mb4",
                collation="utf8mb4_unicode_ci",
                time_zone="+00:00",
                # Escaping counts on backslashes, and a value too long must be an error, whatever the server's default.
                sql_mode="STRICT_TRANS_TABLES,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION",
                autocommit=True,
                # An UPDATE that changes nothing has matched its row all the same.
                client_flags=[ClientFlag.FOUND_ROWS],
                use_pure=not mysql.connector.HAVE_CEXT,
                connection_timeout=_whole_seconds(self._connect_timeout),
                read_timeout=timeout,
                write_timeout=timeout,
                allow_local_infile=False,
            )
        except mysql.connector.Error as error:
            refusal = _translated(error)
            refusal.diagnosis = _DIAGNOSES.get(error.errno, _OTHER_REFUSAL).format(
                host=self._address.host,
                port=self._address.port,
                user=self._address.user,
                name=self._address.database,
                number=error.errno,
            )
            raise refusal from error

    @contextmanager
    def _context(self, *, begin: bool) -> Iterator[DatabaseContext]:
        connection, was_used = self._pool.acquire()
        context = _MySQLContext(connection, self._pool, may_be_dead=was_used)
        try:
            if begin:
                context.begin()
            yield context
        finally:
            context.end()
            if context.holds_turn:
                self._pool.release(context.connection, reusable=context.is_whole)


class _MySQLContext(DatabaseContext):
    """A connection in use.

    Attributes:
        connection: the driver's connection.
        is_whole: whether the connection can be used again: nothing on it was cut off.
        holds_turn: whether there still is a connection to give back to the pool.
    """

    def __init__(self, connection: Any, pool: ConnectionPool[Any] | None = None, *, may_be_dead: bool = False) -> None:
        """Use ``connection``; ``pool`` exchanges one that may be dead where it proves so at its first statement."""
        self.connection = connection
        self.is_whole = True
        self.holds_turn = True
        self._pool = pool
        self._may_be_dead = may_be_dead
        self._in_transaction = False

    def begin(self) -> None:
        self._run(lambda: self.connection.cmd_query("START TRANSACTION"))
        self._in_transaction = True

    def fetch_all(self, sql: str, parameters: Parameters) -> list[Row]:
        def fetch() -> list[Row]:
            cursor = _execute(self.connection, sql, parameters)
            names = cursor.column_names
            rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
            for name in _time_columns(cursor.description):
                for row in rows:
                    row[name] = row[name].replace(tzinfo=UTC) if row[name] else None
            cursor.close()
            return rows

        return self._run(fetch)

    def execute(self, sql: str, parameters: Parameters) -> int:
        def execute() -> int:
            cursor = _execute(self.connection, sql, parameters)
            matched: int = cursor.rowcount
            cursor.close()
            return matched

        return self._run(execute)

    def insert(self, sql: str, parameters: Parameters) -> int:
        def insert() -> int:
            cursor = _execute(self.connection, sql, parameters)
            row_id: int = cursor.lastrowid
            cursor.close()
            return row_id

        return self._run(insert)

    def execute_many(self, sql: str, rows: Sequence[Parameters]) -> None:
        def execute_many() -> None:
            cursor = _cursor(self.connection)
            for start in range(0, len(rows), _ROWS_AN_INSERT):
                chunk = [_to_mysql(row) for row in rows[start : start + _ROWS_AN_INSERT]]
                cursor.executemany(_with_driver_parameters(sql), chunk)
            cursor.close()

        if rows:
            self._run(execute_many)

    def commit(self) -> None:
        # A commit that was cut off may have happened: it is never tried again here.
        self._may_be_dead = False
        # The C client's own commit and rollback raise errors that are none of the driver's documented ones.
        self._run(lambda: self.connection.cmd_query("COMMIT"))
        self._in_transaction = False

    def end(self) -> None:
        """Roll back what was not committed."""
        if self._in_transaction and self.is_whole and self.holds_turn:
            with suppress(PixyProxyException):  # The connection is then not used again, which rolls back as well.
                self._run(lambda: self.connection.cmd_query("ROLLBACK"))

    def _run(self, work: Callable[[], Result]) -> Result:
        """Run a statement. The first one on a used connection may be run again on a new one if that one was dead.

        Nothing is lost by that: the statement begins a transaction or is a query that stands alone.
        """
        may_be_dead, self._may_be_dead = self._may_be_dead, False
        self.is_whole = False
        began = time.monotonic()
        try:
            result = _guarded(work)
        except DBConnectionError:
            is_silent = time.monotonic() - began > _SILENCE_SECONDS
            if self._pool is not None and is_silent:
                self._pool.note_silence(began)
            if self._pool is None or is_silent or not may_be_dead:
                raise
            self.holds_turn = False
            self.connection = self._pool.renew(self.connection)
            self.holds_turn = True
            result = _guarded(work)
        except (ConstraintViolationError, ConflictError):
            self.is_whole = True  # The server refused, in good order.
            raise
        self.is_whole = True
        return result


def _cursor(connection: Any) -> Any:
    """Return a cursor, without first asking the server whether it is there, as the connection's own method does."""
    return CMySQLCursor(connection) if mysql.connector.HAVE_CEXT else MySQLCursor(connection)


def _execute(connection: Any, sql: str, parameters: Parameters) -> Any:
    cursor = _cursor(connection)
    cursor.execute(_with_driver_parameters(sql), _to_mysql(parameters))
    return cursor


@lru_cache(maxsize=1024)
def _with_driver_parameters(sql: str) -> str:
    """Turn ``:name`` into the driver's ``%(name)s``."""
    return re.sub(r":([a-z_][a-z0-9_]*)", r"%(\1)s", sql)


def _to_mysql(parameters: Parameters) -> dict[str, Any]:
    """Take the offset off times, which the driver would drop without counting it."""
    return {
        name: value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) else value
        for name, value in parameters.items()
    }


def _time_columns(description: Sequence[Sequence[Any]]) -> list[str]:
    """Return the names of the columns that hold times, which the driver gives without their offset."""
    return [column[0] for column in description if column[1] == FieldType.DATETIME]


def _whole_seconds(seconds: float) -> int:
    """The C client takes whole seconds, and 0 for ever."""
    return max(1, round(seconds))


def _disconnect(connection: Any) -> None:
    with suppress(Exception):  # Closing a broken connection fails in many ways, and none of them matters.
        connection.close()


def _guarded(work: Callable[[], Result]) -> Result:
    try:
        return work()
    except mysql.connector.Error as error:
        raise _translated(error) from error


def _translated(error: mysql.connector.Error) -> PixyProxyException:
    number = error.errno or 0
    if number in _CONSTRAINT_ERRORS:
        return ConstraintViolationError("The record breaks a rule of the database.")
    if number in _CONFLICT_ERRORS:
        return ConflictError("Another change was in the way; nothing was changed. Try again.", retry_after=0.1)
    if number in _FULL_ERRORS:
        return StorageFullError("There is no room left for the details of images.")
    # The driver's own errors have no number: "MySQL Connection not available" where a connection turns out to be dead.
    is_drivers = number <= 0 and isinstance(error, (mysql.connector.InterfaceError, mysql.connector.OperationalError))
    if number in _CONNECTION_ERRORS or number in _CLIENT_ERRORS or is_drivers:
        return DBConnectionError("The database cannot be reached; try again.", retry_after=1.0)
    diagnosis = _MISSING_RIGHTS if number in _DENIED_ERRORS else f"The database refused a statement: error {number}."
    return PixyProxyException("The database refused a statement.", diagnosis=diagnosis)
