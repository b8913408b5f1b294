"""What the values that all servers share must do on every database."""

from __future__ import annotations

import pytest

from pixyproxy.core.exceptions import ConstraintViolationError
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.server_values import ServerValueRepository


def get(database: Database, name: str) -> str | None:
    with database.reading() as context:
        return ServerValueRepository(context).get(name)


def insert(database: Database, name: str, value: str) -> None:
    with database.transaction() as context:
        ServerValueRepository(context).insert(name, value)
        context.commit()


def put(database: Database, name: str, value: str) -> None:
    with database.transaction() as context:
        ServerValueRepository(context).set(name, value)
        context.commit()


def test_a_value_comes_back_as_it_was_inserted(database: Database) -> None:
    values = {
        "name": "value",
        "NAME": "VALUE",
        "name2": "x" * 255,
        "n" * 64: "",
        "quoted": "it's 100% \\ \"",
        "n ": " ",
    }
    for name, value in values.items():
        insert(database, name, value)

    assert {name: get(database, name) for name in values} == values


def test_an_unknown_name_has_no_value(database: Database) -> None:
    insert(database, "known", "value")

    assert get(database, "unknown") is None


def test_the_first_value_stays(database: Database) -> None:
    insert(database, "name", "first")

    with pytest.raises(ConstraintViolationError):
        insert(database, "name", "second")

    assert get(database, "name") == "first"


def test_set_stores_and_replaces(database: Database) -> None:
    insert(database, "other", "stays")

    for value in ("first", "second", "second"):
        put(database, "name", value)
        assert get(database, "name") == value

    assert get(database, "other") == "stays"


def test_what_is_not_committed_has_not_happened(database: Database) -> None:
    insert(database, "name", "first")

    with database.transaction() as context:
        values = ServerValueRepository(context)
        values.set("name", "second")
        values.insert("other", "value")
        assert (values.get("name"), values.get("other")) == ("second", "value")

    assert (get(database, "name"), get(database, "other")) == ("first", None)


def test_a_value_is_replaced_only_if_it_is_as_it_was_read(database: Database) -> None:
    with database.transaction() as context:
        values = ServerValueRepository(context)
        assert not values.replace("position", "0", "1")
        values.insert("position", "0")
        assert values.replace("position", "0", "1")
        assert not values.replace("position", "0", "2")
        assert values.get("position") == "1"
