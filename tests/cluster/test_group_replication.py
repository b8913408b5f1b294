"""Replicas on a group of MySQL servers with Group Replication whose primary is killed and frozen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pixyproxy.core.exceptions import DBConnectionError
from pixyproxy.data.database import Database
from pixyproxy.data.hosts import Host
from pixyproxy.data.mysql import MySQLAddress, MySQLDatabase
from tests.cluster.lost_nodes import Fault, lose_nodes, url_on
from tests.contract.databases import address_of
from tests.support.database_servers import PrivateServer, fresh_database
from tests.support.group_replication import Member, replication_group
from tests.support.object_stores import RunningObjectStore
from tests.support.openai_stand_in import RunningStandIn
from tests.support.waiting import wait_until

# A group takes 10 seconds to expel a member, and then elects a primary.
_BACK_WITHIN = 60.0
_READERS = 16


@pytest.mark.usefixtures("long_form")
def test_lost_primary_loses_no_image_and_bills_none_twice(
    stand_in: RunningStandIn, s3_server: RunningObjectStore, tmp_path: Path
) -> None:
    with replication_group() as group:
        lost: list[Member] = []

        def lose_primary(lose: Callable[[PrivateServer], None]) -> None:
            lost.append(group.primary())
            lose(lost[-1].server)

        def heal(heal: Callable[[Member], None]) -> None:
            heal(lost[-1])
            group.wait_until_whole()

        faults = [
            Fault(lambda: lose_primary(PrivateServer.kill), lambda: heal(Member.start)),
            Fault(lambda: lose_primary(PrivateServer.freeze), lambda: heal(lambda member: member.server.thaw())),
        ]
        with fresh_database(group.primary().server) as url:
            # The secondaries first, which take no writes.
            hosts = [f"{server.host}:{server.port}" for server in reversed(group.servers)]
            lose_nodes(url_on(url, hosts), tmp_path, s3_server, stand_in, faults, _BACK_WITHIN)


@pytest.mark.usefixtures("long_form")
def test_a_former_primary_is_not_read_from_on_old_connections() -> None:
    with replication_group() as group:
        former = group.primary()
        with fresh_database(former.server) as on_primary:
            hosts = tuple(Host(server.host, server.port) for server in group.servers)
            address = replace(address_of(on_primary), hosts=hosts)
            with (
                closing(open_database(address)) as readers,
                closing(open_database(address)) as writer,
                ThreadPoolExecutor(_READERS) as threads,
            ):
                insert(writer, "CREATE TABLE seen (id INT PRIMARY KEY)")
                insert(writer, "INSERT INTO seen VALUES (1)")
                assert read_at_once(readers, threads) == {1}

                former.server.freeze()
                wait_until(lambda: insert(writer, "INSERT INTO seen VALUES (2)"), _BACK_WITHIN, "another primary")
                former.server.thaw()

                assert read_at_once(readers, threads) <= {2, "away"}
                group.wait_until_whole()
                wait_until(lambda: read_at_once(readers, threads) == {2}, _BACK_WITHIN, "answers to all readers")


def open_database(address: MySQLAddress) -> Database:
    """Open a database with a connection for each reader."""
    return MySQLDatabase(address, pool_size=_READERS, timeout=10)


def insert(database: Database, statement: str) -> bool:
    """Whether a statement has been committed."""
    try:
        with database.transaction() as context:
            context.execute(statement, {})
            context.commit()
    except DBConnectionError:
        return False
    return True


def read_at_once(database: Database, threads: ThreadPoolExecutor) -> set[object]:
    """Return what readers see in the table, on a connection each."""
    together = threading.Barrier(_READERS)

    def read(number: int) -> object:
        try:
            # Half of them read in a transaction.
            with database.transaction() if number % 2 else database.reading() as context:
                seen = context.fetch_value("SELECT MAX(id) FROM seen", {})
                together.wait(_BACK_WITHIN)  # Nobody uses a connection of another one.
                return seen
        except DBConnectionError:
            together.wait(_BACK_WITHIN)
            return "away"

    return set(threads.map(read, range(_READERS)))
