from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pixyproxy.core.exceptions import ConflictError, ConstraintViolationError, DBConnectionError
from pixyproxy.data import init
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.server_values import ServerValueRepository
from pixyproxy.data.sqlite import SQLiteDatabase
from pixyproxy.data.transactions import in_transaction


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(SQLiteDatabase(tmp_path / "test.db", pool_size=2, timeout=5)) as database:
        init.upgrade(database)
        yield database


def value_of(database: Database, name: str) -> str | None:
    with database.reading() as context:
        return ServerValueRepository(context).get(name)


def test_what_it_does_lasts_and_what_it_returns_comes_back(database: Database) -> None:
    def work(context: DatabaseContext) -> str:
        ServerValueRepository(context).insert("name", "value")
        return "done"

    assert in_transaction(database, work) == "done"
    assert value_of(database, "name") == "value"


def test_after_a_conflict_all_of_it_is_run_again(database: Database) -> None:
    runs: list[str | None] = []

    def work(context: DatabaseContext) -> None:
        values = ServerValueRepository(context)
        runs.append(values.get("name"))
        values.insert("name", "value")
        if len(runs) < 3:
            raise ConflictError("deadlock")

    in_transaction(database, work)

    assert runs == [None, None, None]  # what was done before the conflict was rolled back
    assert value_of(database, "name") == "value"


def test_conflicts_without_end_are_told(database: Database) -> None:
    runs: list[int] = []

    def work(_: DatabaseContext) -> None:
        runs.append(1)
        raise ConflictError("deadlock")

    with pytest.raises(ConflictError):
        in_transaction(database, work)
    assert 1 < len(runs) < 10


def test_connection_lost_before_the_commit_is_no_reason_to_give_up(database: Database) -> None:
    runs: list[int] = []

    def work(context: DatabaseContext) -> None:
        ServerValueRepository(context).insert("name", "value")
        runs.append(1)
        if len(runs) == 1:
            raise DBConnectionError("lost")

    in_transaction(database, work)
    assert runs == [1, 1]
    assert value_of(database, "name") == "value"


def test_other_errors_are_not_tried_again_and_roll_back(database: Database) -> None:
    runs: list[int] = []

    def work(context: DatabaseContext) -> None:
        runs.append(1)
        ServerValueRepository(context).insert("name", "value")
        raise ConstraintViolationError("taken")

    with pytest.raises(ConstraintViolationError):
        in_transaction(database, work)
    assert runs == [1]
    assert value_of(database, "name") is None
