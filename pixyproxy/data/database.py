"""The interface of a database: contexts in which repositories run the same SQL on every kind of database.

SQL has named parameters (``:name``). Times are aware datetimes, and in UTC in results; rows are dicts; errors are
exceptions of ``pixyproxy.core``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Literal

Row = dict[str, Any]
Parameters = Mapping[str, Any]


class DatabaseContext(ABC):
    """A connection in use by one thread, outside of a transaction or within one."""

    is_audited = False
    """Whether changes add lines to the outbox of the audit log."""

    for_update: str
    """The end of a SELECT that locks its rows until the end of the transaction; empty if transactions are
    serialized anyway."""

    now_sql: str
    """A query for the time by the clock of the database."""

    @abstractmethod
    def fetch_all(self, sql: str, parameters: Parameters) -> list[Row]:
        """Run a query and return all its rows.

        Raises:
            DBConnectionError: the database cannot be reached, or did not answer in time.
        """

    def fetch_one(self, sql: str, parameters: Parameters) -> Row | None:
        """Run a query that returns at most one row; return that row, or None."""
        rows = self.fetch_all(sql, parameters)
        return rows[0] if rows else None

    def fetch_value(self, sql: str, parameters: Parameters) -> Any | None:
        """Run a query for one column of at most one row; return the value, or None."""
        row = self.fetch_one(sql, parameters)
        return None if row is None else next(iter(row.values()))

    def fetch_values(self, sql: str, parameters: Parameters) -> list[Any]:
        """Run a query for one column; return its values."""
        return [next(iter(row.values())) for row in self.fetch_all(sql, parameters)]

    def now(self) -> datetime:
        """Return the time by the clock of the database, for times that servers with different clocks compare."""
        now = self.fetch_value(self.now_sql, {})
        assert isinstance(now, datetime)  # noqa: S101  the query always returns a row
        return now

    @abstractmethod
    def execute(self, sql: str, parameters: Parameters) -> int:
        """Run a statement; return the number of rows that it matched.

        Raises:
            DBConnectionError: as for ``fetch_all``.
            ConstraintViolationError: the statement would break a constraint.
            ConflictError: a deadlock; the whole transaction is rolled back and may be repeated.
        """

    @abstractmethod
    def insert(self, sql: str, parameters: Parameters) -> int:
        """Run an INSERT of one row; return the integer id of the row. Raises as ``execute``."""

    def insert_row(self, table: str, row: Parameters) -> int:
        """Insert a row, given by column; return its integer id. Raises as ``execute``."""
        return self.insert(f"INSERT INTO {table} {values_of(row)}", row)

    @abstractmethod
    def execute_many(self, sql: str, rows: Sequence[Parameters]) -> None:
        """Run a statement once for each of ``rows``. Raises as ``execute``."""

    @abstractmethod
    def commit(self) -> None:
        """Commit the transaction, which is otherwise rolled back at the end of the context."""


class Repository:
    """A repository, within one database context."""

    def __init__(self, context: DatabaseContext) -> None:
        self._context = context


class Database(ABC):
    """A database. Safe to use from many threads at once."""

    kind: Literal["mysql", "sqlite"]

    def reading(self) -> AbstractContextManager[DatabaseContext]:
        """Open a context outside of a transaction."""
        return self.context(begin=False)

    def transaction(self) -> AbstractContextManager[DatabaseContext]:
        """Begin a transaction; it is rolled back at the end of the context unless ``commit`` was called."""
        return self.context(begin=True)

    @abstractmethod
    def context(self, *, begin: bool) -> AbstractContextManager[DatabaseContext]:
        """Open a context, and begin a transaction if ``begin``."""

    @abstractmethod
    def migrating(self) -> AbstractContextManager[DatabaseContext]:
        """Open a context for a migration, without time limits, that excludes other migrations.

        Raises:
            ConflictError: another migration has not ended in time.
        """

    @abstractmethod
    def close(self) -> None:
        """Close all connections."""


def in_list(numbers: Iterable[int]) -> str:
    """Return numbers as the list of a condition with IN."""
    return ", ".join(map(str, numbers))


def named_list(name: str, values: Iterable[Any]) -> tuple[str, dict[str, Any]]:
    """Return a list of parameters for a condition with IN, and the values of these parameters."""
    parameters = {f"{name}{number}": value for number, value in enumerate(values)}
    return ", ".join(f":{parameter}" for parameter in parameters), parameters


def values_of(columns: Iterable[str]) -> str:
    """Return the columns of an INSERT or REPLACE, and its VALUES: for each column the parameter of that name."""
    columns = tuple(columns)
    return f"({', '.join(columns)}) VALUES ({', '.join(f':{column}' for column in columns)})"


def statements_of(script: str) -> Iterator[str]:
    """Split a script into statements, which end with a semicolon at the end of a line; skip comment lines."""
    lines: list[str] = []
    for line in script.splitlines():
        if line.startswith("--") or not line.strip():
            continue
        lines.append(line)
        if line.rstrip().endswith(";"):
            yield "\n".join(lines).rstrip().removesuffix(";")
            lines.clear()
