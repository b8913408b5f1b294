"""SQLite as the embedded database: one file, nothing to install or to administer."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from pixyproxy.data.database import Database, DatabaseContext, Parameters, Row
from pixyproxy.data.pool import ConnectionPool

_CONFLICT_ERRORS = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_CONNECTION_ERRORS = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
    | {sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_INTERRUPT}
)
_CANNOT_OPEN = (
    "The database file cannot be opened for reading and writing. Check PIXYPROXY_DATABASE_URL, and the permissions of "
    "the file and of its folder."
)
_NO_DATABASE = "The file that PIXYPROXY_DATABASE_URL names is not an SQLite database, or it is damaged."
_DIAGNOSES = {
    sqlite3.SQLITE_CANTOPEN: _CANNOT_OPEN,
    sqlite3.SQLITE_READONLY: _CANNOT_OPEN,
    sqlite3.SQLITE_PERM: _CANNOT_OPEN,
    sqlite3.SQLITE_IOERR: "The database file cannot be read or written. Check the disk that it is on.",
    sqlite3.SQLITE_NOTADB: _NO_DATABASE,
    sqlite3.SQLITE_CORRUPT: _NO_DATABASE,
}


class SQLiteDatabase(Database):
    """A database in one file, shared by threads and processes of one machine."""

    kind: Literal["mysql", "sqlite"] = "sqlite"

    def __init__(
        self,
        path: Path,
        *,
        pool_size: int,
        timeout: float,
        migration_wait: float = 60.0,
        is_audited: bool = False,
    ) -> None:
        """Make a database without opening it.

        Args:
            path: the file, which is made with the first connection; its folder must exist.
            pool_size: the most connections at a time.
            timeout: the most seconds to wait for one of them, and for another writer.
            migration_wait: the most seconds to wait for another migration.
            is_audited: whether changes add lines to the outbox of the audit log.
        """
        self._path = path
        self._timeout = timeout
        self._migration_wait = migration_wait
        self._is_audited = is_audited
        self._pool = ConnectionPool(self._connect, sqlite3.Connection.close, size=pool_size, wait=timeout)

    @contextmanager
    def migrating(self) -> Iterator[DatabaseContext]:  # noqa: D102  inherited
        # Outside of the pool, which may have a single connection. All steps are one transaction.
        connection = self._connect(self._migration_wait)
        try:
            _run(connection, "BEGIN IMMEDIATE", {})
            yield _SQLiteContext(connection)
        finally:
            connection.close()  # This rolls back what was not committed.

    def close(self) -> None:  # noqa: D102  inherited
        self._pool.close()

    def _connect(self, timeout: float | None = None) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self._path,
                timeout=self._timeout if timeout is None else timeout,
                isolation_level=None,
                # The pool gives a connection to one thread at a time.
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise _translated(error) from error
        try:
            # Readers and the writer do not block one another, and a commit is on the disk when it returns.
            with suppress(ConflictError):
                # Refused while another connection sets the mode of a new file, which is stored in the file.
                _run(connection, "PRAGMA journal_mode = WAL", {})
            _run(connection, "PRAGMA synchronous = FULL", {})
            _run(connection, "PRAGMA foreign_keys = ON", {})
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def context(self, *, begin: bool) -> Iterator[DatabaseContext]:  # noqa: D102  inherited
        connection, _ = self._pool.acquire()
        try:
            if begin:
                _run(connection, "BEGIN IMMEDIATE", {})
            yield _SQLiteContext(connection, is_audited=self._is_audited)
        finally:
            if connection.in_transaction:
                with suppress(sqlite3.Error):  # SQLite rolls back by itself after some errors.
                    connection.rollback()
            self._pool.release(connection, reusable=not connection.in_transaction)


class _SQLiteContext(DatabaseContext):
    for_update = ""  # BEGIN IMMEDIATE admits one writer at a time.
    now_sql = "SELECT strftime('%Y-%m-%d %H:%M:%f', 'now') AS now_at"

    def __init__(self, connection: sqlite3.Connection, *, is_audited: bool = False) -> None:
        self._connection = connection
        self.is_audited = is_audited

    def fetch_all(self, sql: str, parameters: Parameters) -> list[Row]:
        return _rows_of(_run(self._connection, sql, parameters))

    def execute(self, sql: str, parameters: Parameters) -> int:
        return _run(self._connection, sql, parameters).rowcount

    def insert(self, sql: str, parameters: Parameters) -> int:
        row_id = _run(self._connection, sql, parameters).lastrowid
        assert row_id is not None  # noqa: S101  set by every INSERT
        return row_id

    def execute_many(self, sql: str, rows: Sequence[Parameters]) -> None:
        _guarded(lambda: self._connection.executemany(sql, map(_to_row, rows)))

    def commit(self) -> None:
        _run(self._connection, "COMMIT", {})


def _run(connection: sqlite3.Connection, sql: str, parameters: Parameters) -> sqlite3.Cursor:
    return _guarded(lambda: connection.execute(sql, _to_row(parameters)))


def _guarded(work: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
    try:
        return work()
    except sqlite3.Error as error:
        raise _translated(error) from error


def _to_row(parameters: Parameters) -> dict[str, Any]:
    return {name: _to_sqlite(value) for name, value in parameters.items()}


def _to_sqlite(value: Any) -> Any:
    """Convert times to text whose order is the order of the times."""
    if isinstance(value, datetime):
        # Unlike strftime, this pads years before 1000 to four digits.
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    return value


def _rows_of(cursor: sqlite3.Cursor) -> list[Row]:
    """Return rows as dicts, with times in place of the texts in columns whose names end in ``_at``."""
    # A row factory, which is called for each row, takes four times as long.
    names = [column[0] for column in cursor.description or ()]
    times = [name for name in names if name.endswith("_at")]
    rows = [dict(zip(names, values, strict=True)) for values in cursor]
    for row in rows if times else ():
        for name in times:
            if isinstance(row[name], str):
                row[name] = datetime.fromisoformat(row[name]).replace(tzinfo=UTC)
    return rows


def _translated(error: sqlite3.Error) -> PixyProxyException:
    if isinstance(error, sqlite3.IntegrityError):
        return ConstraintViolationError("The record breaks a rule of the database.")
    # The lower byte is the primary code. Errors of the driver itself have no code.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageFullError("There is no room left for the details of images.")
    if code in _CONFLICT_ERRORS:
        return ConflictError("The change conflicted with another one; nothing was changed. Try again.", retry_after=0.1)
    if code in _CONNECTION_ERRORS:
        return DBConnectionError(
            "The database cannot be reached; try again.", retry_after=1.0, diagnosis=_DIAGNOSES.get(code, "")
        )
    return PixyProxyException("The database refused a statement.")
