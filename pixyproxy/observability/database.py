"""A database whose statements, and waits for connections, are recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from pixyproxy.data.database import Database, DatabaseContext, Parameters, Row
from pixyproxy.observability.recording import Record, recorded

WAIT = "wait"
"""The operation that stands for waiting until a context is entered."""


class ObservedDatabase(Database):
    """Wraps a database, and records how long operations take."""

    def __init__(self, database: Database, record: Record, held: Callable[[float], object] = lambda _: None) -> None:
        """Wrap a database, which is closed with this one.

        Args:
            database: the wrapped one.
            record: called for each statement, and with ``WAIT`` for each wait until a context is entered.
            held: called when a context is left, with the seconds since it was entered.
        """
        self.kind = database.kind
        self._database = database
        self._record = record
        self._held = held

    def context(self, *, begin: bool) -> AbstractContextManager[DatabaseContext]:  # noqa: D102  inherited
        return _ObservedUse(self._database.context(begin=begin), self._record, self._held)

    def migrating(self) -> AbstractContextManager[DatabaseContext]:  # noqa: D102  inherited
        return self._database.migrating()

    def close(self) -> None:  # noqa: D102  inherited
        self._database.close()


class _ObservedUse(AbstractContextManager[DatabaseContext]):
    """A class, because a context manager from a generator costs three times as much."""

    def __init__(
        self, use: AbstractContextManager[DatabaseContext], record: Record, held: Callable[[float], object]
    ) -> None:
        self._use = use
        self._record = record
        self._held = held
        self._entered = 0.0

    def __enter__(self) -> DatabaseContext:
        began = time.perf_counter()
        try:
            context = self._use.__enter__()
        except BaseException as error:
            self._record(WAIT, began, time.perf_counter(), error, "")
            raise
        self._entered = time.perf_counter()
        self._record(WAIT, began, self._entered, None, "")
        return _ObservedContext(context, self._record)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            return self._use.__exit__(kind, error, traceback)
        finally:
            self._held(time.perf_counter() - self._entered)


class _ObservedContext(DatabaseContext):
    def __init__(self, context: DatabaseContext, record: Record) -> None:
        self.is_audited = context.is_audited
        self.for_update = context.for_update
        self.now_sql = context.now_sql
        self._context = context
        self._record = record

    def fetch_all(self, sql: str, parameters: Parameters) -> list[Row]:
        return recorded(self._record, "fetch", sql, self._context.fetch_all, sql, parameters)

    def execute(self, sql: str, parameters: Parameters) -> int:
        return recorded(self._record, "execute", sql, self._context.execute, sql, parameters)

    def insert(self, sql: str, parameters: Parameters) -> int:
        return recorded(self._record, "insert", sql, self._context.insert, sql, parameters)

    def execute_many(self, sql: str, rows: Sequence[Parameters]) -> None:
        recorded(self._record, "execute_many", sql, self._context.execute_many, sql, rows)

    def commit(self) -> None:
        recorded(self._record, "commit", "", self._context.commit)
