"""SQLite as the embedded database: one file, nothing to install or to administer."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pixyproxy.core.exceptions import (
    ConflictError,
    ConstraintViolationError,
    DBConnectionError,
    PixyProxyException,
    StorageFullError,
)
from pixyproxy.data.database import Database, DatabaseContext, Parameters, Row, nothing_to_lock, statements_of
from pixyproxy.data.pool import ConnectionPool

_BUSY_TIMEOUT_SECONDS = 5.0


class SQLiteDatabase(Database):
    """A database in one file, shared by threads and processes of one machine."""

    kind: Literal["mysql", "sqlite"] = "sqlite"
    for_update = ""  # BEGIN IMMEDIATE lets one writer in at a time.

    def __init__(self, path: Path, *, pool_size: int, pool_wait: float) -> None:
        """Open nothing yet; the file is made with the first connection, its folder must be there."""
        self._path = path
        self._pool = ConnectionPool(self._connect, sqlite3.Connection.close, size=pool_size, wait=pool_wait)

    def reading(self) -> AbstractContextManager[DatabaseContext]:  # noqa: D102  inherited
        return self._context(begin=False)

    def transaction(self) -> AbstractContextManager[DatabaseContext]:  # noqa: D102  inherited
        return self._context(begin=True)

    def run_script(self, script: str) -> None:  # noqa: D102  inherited
        with self.transaction() as context:
            for statement in statements_of(script):
                context.execute(statement, {})
            context.commit()

    def migrating(self) -> AbstractContextManager[None]:  # noqa: D102  inherited
        return nothing_to_lock()

    def has_table(self, name: str) -> bool:  # noqa: D102  inherited
        with self.reading() as context:
            sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = :name"
            return context.fetch_one(sql, {"name": name}) is not None

    def close(self) -> None:  # noqa: D102  inherited
        self._pool.close()

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self._path,
                timeout=_BUSY_TIMEOUT_SECONDS,
                isolation_level=None,
                # The pool hands a connection from thread to thread, never to two at once.
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise _translated(error) from error
        connection.row_factory = sqlite3.Row
        # Readers and the writer do not wait for one another, and every commit is on the disk when it returns.
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    @contextmanager
    def _context(self, *, begin: bool) -> Iterator[DatabaseContext]:
        connection, _ = self._pool.acquire()
        try:
            if begin:
                _run(connection, "BEGIN IMMEDIATE", {})
            yield _SQLiteContext(connection)
        finally:
            if connection.in_transaction:
                with suppress(sqlite3.Error):  # SQLite itself rolls back after some errors.
                    connection.rollback()
            self._pool.release(connection, reusable=not connection.in_transaction)


class _SQLiteContext(DatabaseContext):
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def fetch_all(self, sql: str, parameters: Parameters) -> list[Row]:
        return [
            {name: _from_sqlite(name, row[name]) for name in row.keys()}  # noqa: SIM118  a Row is no dict
            for row in _run(self._connection, sql, parameters).fetchall()
        ]

    def execute(self, sql: str, parameters: Parameters) -> int:
        return _run(self._connection, sql, parameters).rowcount

    def insert(self, sql: str, parameters: Parameters) -> int:
        row_id = _run(self._connection, sql, parameters).lastrowid
        assert row_id is not None  # noqa: S101  every INSERT sets it
        return row_id

    def execute_many(self, sql: str, rows: Sequence[Parameters]) -> None:
        for row in rows:
            _run(self._connection, sql, row)

    def commit(self) -> None:
        _run(self._connection, "COMMIT", {})


def _run(connection: sqlite3.Connection, sql: str, parameters: Parameters) -> sqlite3.Cursor:
    try:
        return connection.execute(sql, {name: _to_sqlite(value) for name, value in parameters.items()})
    except sqlite3.Error as error:
        raise _translated(error) from error


def _to_sqlite(value: Any) -> Any:
    """Write times so that their order as text is their order in time."""
    if isinstance(value, datetime):
        # Not strftime, which writes years before 1000 with fewer than four digits.
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    return value


def _from_sqlite(column: str, value: Any) -> Any:
    """Read times, which are the columns whose names end in ``_at``."""
    if column.endswith("_at") and isinstance(value, str):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    return value


def _translated(error: sqlite3.Error) -> PixyProxyException:
    if isinstance(error, sqlite3.IntegrityError):
        return ConstraintViolationError("The record breaks a rule of the database.")
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return StorageFullError("There is no room left for the details of images.")
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ConflictError("Another change was in the way; nothing was changed. Try again.", retry_after=0.1)
    if isinstance(error, sqlite3.OperationalError):
        return DBConnectionError("The database cannot be reached; try again.", retry_after=1.0)
    return PixyProxyException("The database refused a statement.")
