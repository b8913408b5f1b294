"""What every database must do with transactions, with errors, and with connections that die."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from pixyproxy.core.exceptions import (
    ConflictError,
    ConstraintViolationError,
    DBConnectionError,
    PixyProxyException,
)
from pixyproxy.core.fields import new_guid
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.hosts import Host
from pixyproxy.data.init import upgrade
from pixyproxy.data.mysql import MySQLDatabase
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.server_values import ServerValueRepository
from pixyproxy.data.transactions import in_transaction
from tests.contract.databases import address_of, on_servers, open_database, sqlite_url
from tests.contract.records import add_caller, add_image, get_image
from tests.faults.tcp_proxy import tcp_proxy
from tests.support.addresses import free_port
from tests.support.database_servers import DatabaseKind, execute_on, fresh_database, private_server
from tests.support.waiting import wait_until

on_sqlite = pytest.mark.parametrize("migrated", ["sqlite"], indirect=True)

INSERT = "INSERT INTO server_values (guid, name, value) VALUES (:guid, :name, :value)"


ORPHAN = """
INSERT INTO generations
  (guid, author_id, request_id, fingerprint, image_guid, state, owner, lease_expires_at, created_at, updated_at)
VALUES ('g', 0, 'r', 'f', 'i', 'sent', 'o', '2026-01-01', '2026-01-01', '2026-01-01')
"""


def value_row(name: str, value: str = "value") -> dict[str, str]:
    return {"guid": new_guid(), "name": name, "value": value}


def insert_one(database: Database) -> None:
    with database.transaction() as context:
        context.insert(INSERT, value_row("one"))
        context.commit()


def names(database: Database) -> list[str]:
    with database.reading() as context:
        rows = context.fetch_all("SELECT name FROM server_values ORDER BY id", {})
    return [row["name"] for row in rows]


def connection_id(context: DatabaseContext) -> int:
    row = context.fetch_one("SELECT CONNECTION_ID() AS id", {})
    assert row is not None
    return int(row["id"])


def lock_owner(context: DatabaseContext, lock: dict[str, str]) -> int | None:
    """Return the id of the connection that holds a named lock.

    The server's list of connections would say more, but MySQL fails to make it while any query holds an emoji.
    """
    row = context.fetch_one("SELECT IS_USED_LOCK(:name) AS owner", lock)
    assert row is not None
    return None if row["owner"] is None else int(row["owner"])


def kill(url: str, connection: int) -> None:
    """End a connection from the server's side."""
    with closing(open_database(url)) as other, other.reading() as context:
        context.execute("KILL :id", {"id": connection})


# --- Statements ------------------------------------------------------------------------------------------------------


def test_rows_are_dicts(database: Database) -> None:
    with database.reading() as context:
        assert context.fetch_all("SELECT 1 AS one, 'a' AS letter UNION ALL SELECT 2, NULL ORDER BY one", {}) == [
            {"one": 1, "letter": "a"},
            {"one": 2, "letter": None},
        ]
        assert context.fetch_one("SELECT 1 AS one", {}) == {"one": 1}
        assert context.fetch_one("SELECT 1 AS one FROM server_values", {}) is None
        assert context.fetch_all("SELECT 1 AS one FROM server_values", {}) == []


def test_one_parameter_may_be_used_twice_and_another_not_at_all(database: Database) -> None:
    with database.reading() as context:
        row = context.fetch_one("SELECT :a AS one, :b AS two, :a AS three", {"a": ":b", "b": "%(a)s", "c": 1})

    assert row == {"one": ":b", "two": "%(a)s", "three": ":b"}


def test_execute_counts_the_rows_that_matched_though_they_do_not_change(database: Database) -> None:
    with database.transaction() as context:
        context.execute_many(INSERT, [value_row(name) for name in "abc"])

        assert context.execute("UPDATE server_values SET value = :value", {"value": "value"}) == 3
        assert context.execute("UPDATE server_values SET value = 'x' WHERE name = :name", {"name": "a"}) == 1
        assert context.execute("UPDATE server_values SET value = 'x' WHERE name = :name", {"name": "z"}) == 0
        assert context.execute("DELETE FROM server_values WHERE name <> :name", {"name": "a"}) == 2


def test_insert_returns_the_id_of_the_row(database: Database) -> None:
    with database.transaction() as context:
        ids = {name: context.insert(INSERT, value_row(name)) for name in "abc"}

        rows = context.fetch_all("SELECT id, name FROM server_values", {})

    assert {row["name"]: row["id"] for row in rows} == ids


@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 1001])
def test_execute_many_runs_once_for_each_row(database: Database, count: int) -> None:
    expected = [f"name{number:04}" for number in range(count)]

    with database.transaction() as context:
        context.execute_many(INSERT, [value_row(name) for name in expected])
        context.commit()

    assert names(database) == expected


def test_execute_many_stores_nothing_where_one_row_breaks_a_rule(database: Database) -> None:
    rows = [value_row(f"name{number}") for number in range(600)]

    with pytest.raises(ConstraintViolationError), database.transaction() as context:
        context.execute_many(INSERT, [*rows, rows[0]])

    assert names(database) == []


# --- Transactions ----------------------------------------------------------------------------------------------------


def test_a_transaction_is_rolled_back_unless_it_is_committed(database: Database) -> None:
    with database.transaction() as context:
        context.insert(INSERT, value_row("lost"))
    with database.transaction() as context:
        context.insert(INSERT, value_row("kept"))
        context.commit()

    assert names(database) == ["kept"]


def test_a_transaction_is_rolled_back_by_any_exception(database: Database) -> None:
    def fail() -> None:
        with database.transaction() as context:
            context.insert(INSERT, value_row("lost"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()

    assert names(database) == []


def test_changes_are_seen_by_others_once_they_are_committed(database: Database) -> None:
    with database.transaction() as context:
        context.insert(INSERT, value_row("new"))
        assert names(database) == []
        context.commit()
        assert names(database) == ["new"]


def test_every_query_outside_of_a_transaction_sees_the_latest(database: Database) -> None:
    with database.reading() as context:
        assert context.fetch_all("SELECT name FROM server_values", {}) == []
        with database.transaction() as other:
            other.insert(INSERT, value_row("new"))
            other.commit()
        assert context.fetch_all("SELECT name FROM server_values", {}) == [{"name": "new"}]


def test_a_broken_rule_leaves_the_transaction_as_it_was(database: Database) -> None:
    with database.transaction() as context:
        context.insert(INSERT, value_row("first"))
        with pytest.raises(ConstraintViolationError):
            context.insert(INSERT, value_row("first"))
        context.insert(INSERT, value_row("second"))
        context.commit()

    assert names(database) == ["first", "second"]


@pytest.mark.parametrize(
    ("broken", "row"),
    [
        ("unique", value_row("first")),
        ("not null", value_row("name") | {"value": None}),
        ("foreign key", None),
    ],
)
def test_a_broken_rule_says_nothing_of_the_database(
    database: Database, broken: str, row: dict[str, str | None] | None
) -> None:
    sql = INSERT if row else ORPHAN

    with database.transaction() as context:
        context.insert(INSERT, value_row("first"))
        with pytest.raises(ConstraintViolationError) as refused:
            context.execute(sql, row or {})

    assert refused.value.__cause__ is not None
    for word in ("server_values", "generations", "first", broken, "constraint"):
        assert word not in refused.value.message.lower()


@pytest.mark.parametrize("sql", ["SELECT * FROM no_such_table", "SELEC 1"])
def test_a_wrong_statement_is_neither_the_connections_nor_the_datas_fault(database: Database, sql: str) -> None:
    with database.reading() as context, pytest.raises(PixyProxyException) as refused:
        context.fetch_all(sql, {"other": 1})

    assert type(refused.value) is PixyProxyException
    assert refused.value.__cause__ is not None
    assert "no_such_table" not in refused.value.message
    assert names(database) == []  # The pool still works.


@on_servers
def test_a_value_too_long_is_refused_and_not_cut(database: Database) -> None:
    with pytest.raises(PixyProxyException), database.transaction() as context:
        context.insert(INSERT, value_row("x" * 65))


def test_one_change_after_the_other_where_images_are_locked(database: Database) -> None:
    ann = add_caller(database)
    image = add_image(database, ann)
    barrier = threading.Barrier(4)

    def add_tags(writer: int) -> None:
        for number in range(5):
            barrier.wait(timeout=30)
            with database.transaction() as context:
                images = ImageRepository(context)
                images.lock(image.guid)
                current = images.get(image.guid, ann)
                images.update(current.model_copy(update={"tags": (*current.tags, f"{writer}.{number}")}))
                context.commit()

    with ThreadPoolExecutor(4) as threads:
        for future in [threads.submit(add_tags, writer) for writer in range(4)]:
            future.result()

    tags = get_image(database, image.guid, ann).tags
    assert sorted(tags) == [f"{writer}.{number}" for writer in range(4) for number in range(5)]


@on_servers
def test_a_deadlock_is_a_conflict_that_changes_nothing(database: Database) -> None:
    with database.transaction() as context:
        context.execute_many(INSERT, [value_row(name, "old") for name in "ab"])
        context.commit()
    both_hold_one = threading.Barrier(2)

    def change(first: str, second: str) -> str:
        sql = "UPDATE server_values SET value = :value WHERE name = :name"
        try:
            with database.transaction() as context:
                context.execute(sql, {"name": first, "value": f"{first} then {second}"})
                both_hold_one.wait(timeout=30)
                context.execute(sql, {"name": second, "value": f"{first} then {second}"})
                context.commit()
        except ConflictError:
            return "conflict"
        return f"{first} then {second}"

    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(change, *order) for order in ("ab", "ba")]
        outcomes = [future.result() for future in futures]

    assert outcomes.count("conflict") == 1
    winner = next(outcome for outcome in outcomes if outcome != "conflict")
    with database.reading() as context:
        assert context.fetch_all("SELECT DISTINCT value FROM server_values", {}) == [{"value": winner}]


@on_sqlite
def test_a_second_writer_that_waits_too_long_gets_a_conflict(database_url: str) -> None:
    with closing(open_database(database_url, timeout=0.05)) as database:
        with database.transaction() as context:
            context.insert(INSERT, value_row("first"))
            with pytest.raises(ConflictError), database.transaction():
                pytest.fail("two write at once")
            assert names(database) == []  # Readers do not wait.
            context.commit()

        with database.transaction() as context:
            context.insert(INSERT, value_row("second"))
            context.commit()
        assert names(database) == ["first", "second"]


# --- Connections -----------------------------------------------------------------------------------------------------


def test_more_threads_than_connections_take_turns(database_url: str) -> None:
    def add(number: int) -> None:
        with database.transaction() as context:
            ServerValueRepository(context).insert(f"name{number}", "value")
            context.commit()

    with closing(open_database(database_url, pool_size=2)) as database:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(add, range(40)))
        assert sorted(names(database)) == sorted(f"name{number}" for number in range(40))


def test_a_thread_waits_for_a_connection_only_so_long(database_url: str) -> None:
    with closing(open_database(database_url, pool_size=1, timeout=0.5)) as database:
        with database.reading(), pytest.raises(DBConnectionError) as refused, database.reading():
            pytest.fail("two use one connection")
        assert refused.value.retry_after is not None
        assert names(database) == []


@on_servers
def test_connections_are_used_again_and_closed_at_the_end(database_url: str) -> None:
    with closing(open_database(database_url)) as observer, observer.reading() as context:
        lock = {"name": f"lock of {database_url.rpartition('/')[2]}"}

        with closing(open_database(database_url)) as database:
            used = set()
            with database.reading() as reading:
                # A named lock is its connection's until that is closed.
                reading.fetch_one("SELECT GET_LOCK(:name, 0) AS locked", lock)
            for _ in range(3):
                with database.reading() as reading:
                    used.add(connection_id(reading))
                with database.transaction() as transaction:
                    used.add(connection_id(transaction))
                with database.transaction() as transaction:
                    used.add(connection_id(transaction))
                    with pytest.raises(ConstraintViolationError):
                        transaction.execute_many(INSERT, [value_row("same"), value_row("same")])
            assert len(used) == 1
            assert lock_owner(context, lock) in used

        wait_until(lambda: lock_owner(context, lock) is None, 60, "the connection to be closed")


@on_servers
@pytest.mark.parametrize("method", ["reading", "transaction"])
def test_a_connection_that_died_unused_is_replaced(database: Database, database_url: str, method: str) -> None:
    begin: Callable[[], AbstractContextManager[DatabaseContext]] = getattr(database, method)
    with begin() as first, begin() as second:
        dead = {connection_id(first), connection_id(second)}
    for connection in dead:
        kill(database_url, connection)

    for _ in range(3):
        with begin() as context:
            assert connection_id(context) not in dead


@on_servers
@pytest.mark.parametrize(
    "last_step",
    [lambda context: context.insert(INSERT, value_row("never stored")), lambda context: context.commit()],
    ids=["change", "commit"],
)
def test_a_connection_that_dies_in_a_transaction_loses_all_of_it(
    database: Database, database_url: str, last_step: Callable[[DatabaseContext], None]
) -> None:
    def change() -> None:
        with database.transaction() as context:
            context.insert(INSERT, value_row("lost"))
            kill(database_url, connection_id(context))
            last_step(context)

    with pytest.raises(DBConnectionError):
        change()

    assert names(database) == []


@on_servers
def test_a_connection_that_dies_before_the_rollback_does_no_harm(database_url: str) -> None:
    with closing(open_database(database_url, pool_size=1, timeout=2)) as database:
        for _ in range(2):  # A turn that was not given back would be missing.
            with database.transaction() as context:
                context.insert(INSERT, value_row("lost"))
                kill(database_url, connection_id(context))

        assert names(database) == []


@on_servers
def test_a_lock_that_is_held_for_long_is_a_conflict(database: Database, database_url: str) -> None:
    change = "UPDATE server_values SET value = 'changed' WHERE name = 'one'"
    insert_one(database)
    with closing(open_database(database_url, timeout=4.0)) as other, database.transaction() as context:
        context.execute(change, {})
        with pytest.raises(ConflictError), other.transaction() as waiting:
            waiting.execute(change, {})


@on_servers
def test_a_process_that_freezes_in_a_transaction_gives_its_locks_up(database: Database, database_url: str) -> None:
    change = "UPDATE server_values SET value = :value WHERE name = 'one'"
    insert_one(database)
    with closing(open_database(database_url, idle_limit=1.0)) as other:
        with other.transaction() as frozen:
            frozen.execute(change, {"value": "frozen"})
            with database.transaction() as context:
                context.execute(change, {"value": "changed"})
                context.commit()
            with pytest.raises(DBConnectionError):
                frozen.commit()
        with other.reading() as context:
            assert ServerValueRepository(context).get("one") == "changed"


@on_servers
def test_a_query_that_is_killed_is_an_error_and_the_next_one_works(database: Database, database_url: str) -> None:
    lock = {"name": f"query of {database_url.rpartition('/')[2]}"}
    with (
        ThreadPoolExecutor(1) as threads,
        closing(open_database(database_url)) as other,
        database.reading() as context,
        other.reading() as killer,
    ):
        connection = {"id": connection_id(context)}
        future = threads.submit(context.fetch_all, "SELECT GET_LOCK(:name, 0) AS locked, SLEEP(15) AS slept", lock)
        wait_until(lambda: lock_owner(killer, lock) is not None, 60, "the query to run")
        killer.execute("KILL :id", connection)
        with pytest.raises(DBConnectionError):
            future.result()

    assert names(database) == []


@on_servers
def test_a_closed_port_is_an_error_without_details(database_url: str) -> None:
    host = Host("127.0.0.1", free_port())
    address = replace(address_of(database_url), hosts=(host,))
    database = MySQLDatabase(address, pool_size=1, timeout=1)

    with closing(database), pytest.raises(DBConnectionError) as refused:
        names(database)

    assert refused.value.retry_after is not None
    for secret in (host.name, str(host.port), address.user, address.database):
        assert secret not in refused.value.message


@on_servers
@pytest.mark.parametrize(
    "wrong",
    [{"password": SecretStr("not the password")}, {"user": "nobody"}, {"database": "no_such_database"}],
    ids=str,
)
def test_a_refused_sign_in_is_an_error_without_details(database_url: str, wrong: dict[str, Any]) -> None:
    address = replace(address_of(database_url), **wrong)
    database = MySQLDatabase(address, pool_size=1, timeout=5)

    for _ in range(2):  # A failed connection gives its turn back.
        with pytest.raises(DBConnectionError) as refused:
            names(database)
        assert address.user not in refused.value.message
        assert address.database not in refused.value.message


# --- Clusters --------------------------------------------------------------------------------------------------------


@on_servers
@pytest.mark.parametrize(
    ("number", "text", "error"),
    [
        (1047, "WSREP has not yet prepared node for application use", DBConnectionError),
        (1180, "Got error 149 'Lock deadlock; Retry transaction' during COMMIT", ConflictError),
        (1180, "Got error 35 'Resource deadlock avoided' during COMMIT", ConflictError),
        (1180, "Got error 5 'Input/output error' during COMMIT", DBConnectionError),
        (1180, "Got error 1149 'Something else' during COMMIT", DBConnectionError),
        (3100, "Error on observer while running replication hook 'before_commit'.", DBConnectionError),
        (3101, "Plugin instructed the server to rollback the current transaction.", ConflictError),
        (3797, "Error while waiting for group transactions commit", DBConnectionError),
    ],
)
def test_conditions_of_a_cluster_are_conflicts_and_connection_errors(
    database: Database, number: int, text: str, error: type[PixyProxyException]
) -> None:
    signal = f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = :text"
    with pytest.raises(error), database.transaction() as context:
        context.execute(signal, {"text": text})

    assert names(database) == []


def open_on(url: str, *hosts: Host, timeout: float = 20) -> Database:
    """Open the database of a URL on some hosts."""
    address = replace(address_of(url), hosts=hosts)
    return MySQLDatabase(address, pool_size=4, timeout=timeout)


@on_servers
def test_the_next_host_is_used_if_one_is_away(database_url: str) -> None:
    (host,) = address_of(database_url).hosts

    with closing(open_on(database_url, Host(host.name, free_port()), host)) as database:
        assert names(database) == []


@on_servers
def test_a_lost_connection_is_replaced_by_one_to_the_next_host(database_url: str) -> None:
    (host,) = address_of(database_url).hosts
    attempts: list[int] = []

    with (
        tcp_proxy(*host) as first,
        tcp_proxy(*host) as second,
        closing(open_on(database_url, Host("127.0.0.1", first.port), Host("127.0.0.1", second.port))) as database,
    ):

        def insert(context: DatabaseContext) -> None:
            attempts.append(1)
            if len(attempts) == 1:
                first.refuse()
            context.insert(INSERT, value_row("once"))

        in_transaction(database, insert)
        assert names(database) == ["once"]
        assert len(attempts) == 2

        first.resume()
        second.refuse()
        assert names(database) == ["once"]


@on_servers
def test_a_host_that_does_not_answer_is_tried_last(database_url: str) -> None:
    (host,) = address_of(database_url).hosts

    with (
        tcp_proxy(*host) as first,
        closing(open_on(database_url, Host("127.0.0.1", first.port), host, timeout=3)) as database,
    ):
        assert names(database) == []
        first.silence()
        with pytest.raises(DBConnectionError):
            names(database)
        started = time.monotonic()
        assert names(database) == []
        assert time.monotonic() - started < 3, "the first host was not waited for again"


@on_servers
def test_if_no_host_can_be_used_each_one_s_reason_is_told_to_the_operator(database_url: str) -> None:
    away = Host("127.0.0.1", free_port())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = Host("localhost", listener.getsockname()[1])

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        with ThreadPoolExecutor(1) as threads, closing(open_on(database_url, away, other, timeout=5)) as database:
            threads.submit(greet)
            with pytest.raises(DBConnectionError) as refused:
                names(database)

    first, second = refused.value.diagnosis.splitlines()
    assert first.startswith(f"No database server answers at 127.0.0.1:{away.port}.")
    assert second.startswith(f"No database server answers at localhost:{other.port}.")
    assert str(away.port) not in refused.value.message


@pytest.mark.parametrize("kind", DatabaseKind)
def test_a_frozen_server_is_an_error_in_time_and_no_harm(kind: DatabaseKind) -> None:
    # A second to answer, as long to connect again, and slack for a busy machine.
    in_time = 6.0
    with (
        private_server(kind) as server,
        fresh_database(server) as url,
        closing(open_database(url, pool_size=2, timeout=1)) as database,
        closing(open_database(url, pool_size=2, timeout=1)) as unconnected,
    ):
        with closing(open_database(url)) as patient:
            upgrade(patient)

        def fail_in_time(broken: Database) -> None:
            started = time.monotonic()
            with pytest.raises(DBConnectionError):
                names(broken)
            assert time.monotonic() - started < in_time

        def change_and_freeze() -> None:
            with database.transaction() as context:
                context.insert(INSERT, value_row("lost"))
                server.freeze()
                context.insert(INSERT, value_row("never stored"))

        assert names(database) == []
        server.freeze()
        fail_in_time(database)
        fail_in_time(unconnected)
        server.thaw()
        assert names(database) == []

        with pytest.raises(DBConnectionError):
            change_and_freeze()
        server.thaw()
        assert wait_until(lambda: [names(database)], 60, "an answer") == [[]]


@pytest.mark.parametrize("broken", ["no folder", "a folder", "no database"])
def test_a_file_that_cannot_be_opened_is_an_error_without_details(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "folder" / "pixyproxy.db"
    if broken == "a folder":
        path.mkdir(parents=True)
    elif broken == "no database":
        path.parent.mkdir()
        path.write_bytes(b"This is no database. " * 100)

    with closing(open_database(sqlite_url(path), pool_size=1, timeout=1)) as database:
        for _ in range(2):  # A failed connection gives its turn back.
            with pytest.raises(DBConnectionError) as refused:
                names(database)
            assert isinstance(refused.value.__cause__, sqlite3.Error)
            assert str(tmp_path) not in refused.value.message


@pytest.mark.parametrize("kind", DatabaseKind)
def test_a_server_of_several_that_has_become_read_only_is_not_read_from(kind: DatabaseKind) -> None:
    with private_server(kind) as server, fresh_database(server) as url:
        (host,) = address_of(url).hosts
        with (
            closing(open_on(url, host, Host("localhost", host.port))) as several,
            closing(open_on(url, host)) as single,
        ):
            assert answers(several)
            assert answers(single)

            execute_on(server, "SET GLOBAL read_only = ON")
            wait_until(lambda: not answers(several), 60, "the server to be passed over")
            assert answers(single)

            execute_on(server, "SET GLOBAL read_only = OFF")
            wait_until(lambda: answers(several), 60, "the server to be used again")


def answers(database: Database) -> bool:
    """Whether it can be read from."""
    try:
        with database.reading() as context:
            return context.fetch_value("SELECT 1", {}) == 1
    except DBConnectionError:
        return False
