"""What repositories know of a database: contexts to run SQL in, alike on every kind of database.

SQL is written once, with named parameters (``:name``). Times go in and come out as aware datetimes in UTC, rows come
out as dicts, and errors as exceptions of ``pixyproxy.core``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

Row = dict[str, Any]
Parameters = Mapping[str, Any]


class DatabaseContext(ABC):
    """A connection in use by one thread: either reading, or inside a transaction."""

    @abstractmethod
    def fetch_all(self, sql: str, parameters: Parameters) -> list[Row]:
        """Run a query and return all its rows.

        Raises:
            DBConnectionError: the database cannot be reached or did not answer in time.
        """

    def fetch_one(self, sql: str, parameters: Parameters) -> Row | None:
        """Run a query that gives at most one row, and return it, or None."""
        rows = self.fetch_all(sql, parameters)
        return rows[0] if rows else None

    @abstractmethod
    def execute(self, sql: str, parameters: Parameters) -> int:
        """Run a statement and return the number of rows that it matched.

        Raises:
            DBConnectionError: as for ``fetch_all``.
            ConstraintViolationError: the statement would break a constraint.
            ConflictError: a deadlock; the whole transaction is rolled back and may be tried again.
        """

    @abstractmethod
    def insert(self, sql: str, parameters: Parameters) -> int:
        """Run an INSERT of one row and return the integer id that it was given. Raises as ``execute``."""

    @abstractmethod
    def execute_many(self, sql: str, rows: Sequence[Parameters]) -> None:
        """Run a statement once for each of ``rows``. Raises as ``execute``."""

    @abstractmethod
    def commit(self) -> None:
        """Make the transaction's changes last. Without it they are rolled back at the end of the context."""


class Database(ABC):
    """A database that contexts are taken from. Safe to use from many threads at once."""

    kind: Literal["mysql", "sqlite"]
    for_update: str
    """What a SELECT ends with that locks its rows until the transaction ends; empty where transactions exclude
    one another anyway."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[DatabaseContext]:
        """Give a context in which every query stands alone, without a transaction around it."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[DatabaseContext]:
        """Begin a transaction; it is rolled back at the end of the context unless ``commit`` was called."""

    @abstractmethod
    def migrating(self) -> AbstractContextManager[DatabaseContext]:
        """Give a context to change the tables in, without a limit of time, while nobody else can.

        Raises:
            ConflictError: somebody else has been changing them for a minute.
        """

    @abstractmethod
    def has_table(self, name: str) -> bool:
        """Tell whether there is such a table."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections."""


def in_list(numbers: Iterable[int]) -> str:
    """Return numbers as the list of a condition with IN."""
    return ", ".join(map(str, numbers))


def statements_of(script: str) -> Iterator[str]:
    """Split a script into statements, which end with a semicolon at the end of a line, and drop comment lines."""
    lines: list[str] = []
    for line in script.splitlines():
        if line.startswith("--") or not line.strip():
            continue
        lines.append(line)
        if line.rstrip().endswith(";"):
            yield "\n".join(lines).rstrip().removesuffix(";")
            lines.clear()
