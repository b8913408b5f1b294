"""What the leases that one server at a time has must do on every database."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta

import pytest

from pixyproxy.core.exceptions import ConflictError
from pixyproxy.data.database import Database
from pixyproxy.data.migration_lease import MigrationLease
from pixyproxy.data.shared_lease import SharedLease
from tests.contract.databases import on_servers, open_database
from tests.support.waiting import wait_until

MINUTE = timedelta(minutes=1)
# As a process on another node of a cluster leaves it, whose lock this node does not know.
OTHER_NODE = "UPDATE migration_lease SET holder = 'somebody', node = 'another:3306' WHERE id = 1"


def test_one_holder_at_a_time_has_a_lease(database: Database) -> None:
    leases = [SharedLease(database, "lease", MINUTE) for _ in range(4)]
    started = threading.Barrier(len(leases))

    def take(lease: SharedLease) -> bool:
        started.wait()
        return lease.take()

    with ThreadPoolExecutor(len(leases)) as threads:
        taken = list(threads.map(take, leases))
    holder = leases[taken.index(True)]

    assert taken.count(True) == 1
    assert [lease.take() for lease in leases] == taken
    assert holder.take()
    assert SharedLease(database, "another lease", MINUTE).take()


def test_a_lease_that_has_ended_is_taken(database: Database) -> None:
    first, second = SharedLease(database, "lease", timedelta(seconds=0.2)), SharedLease(database, "lease", MINUTE)

    assert first.take()
    wait_until(second.take, 60, "the lease to end")
    assert not first.take()


@on_servers
def test_lease_of_a_process_that_has_died_on_this_node_is_taken_at_once(database: Database) -> None:
    with database.reading() as context:
        MigrationLease().take(context, wait=0)
        MigrationLease().take(context, wait=0)


@on_servers
def test_lease_of_another_node_is_taken_when_it_is_not_renewed_any_more(database: Database) -> None:
    with database.migrating() as context:
        context.execute(OTHER_NODE, {})
        with pytest.raises(ConflictError):
            MigrationLease(0.001).take(context, wait=0)
        MigrationLease(0.001).take(context, wait=20)


@on_servers
def test_lease_of_another_node_is_not_taken_while_it_is_renewed(database: Database, database_url: str) -> None:
    stopping = threading.Event()
    renew = "UPDATE migration_lease SET counter = counter + 1 WHERE id = 1"

    def keep_renewing() -> None:
        with closing(open_database(database_url)) as other, other.reading() as context:
            while not stopping.wait(0.01):
                context.execute(renew, {})

    with database.migrating() as context, ThreadPoolExecutor(1) as threads:
        context.execute(OTHER_NODE, {})
        renewing = threads.submit(keep_renewing)
        try:
            with pytest.raises(ConflictError):
                MigrationLease(0.1).take(context, wait=4)
        finally:
            stopping.set()
        renewing.result()
        context.execute("UPDATE migration_lease SET holder = '' WHERE id = 1", {})
        MigrationLease(0.1).take(context, wait=0)
