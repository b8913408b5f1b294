"""Replicas on a Galera cluster whose nodes are killed, frozen and cut off."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pixyproxy.bootstrap import warn_of_stale_reads
from tests.cluster.fleet import Load, assert_all_there, running_fleet
from tests.contract.databases import open_database
from tests.contract.test_migrations import VERSIONS, outcomes_of_upgrades
from tests.support.addresses import free_addresses
from tests.support.database_servers import fresh_database
from tests.support.galera import GaleraCluster, Node, galera_cluster
from tests.support.haproxy import running_database_haproxy
from tests.support.object_stores import RunningObjectStore
from tests.support.openai_stand_in import RunningStandIn, start_stand_in

_CALLERS = 8
# What a caller may be told who has sent a call again for as long as a call may take, on a busy machine not long enough.
_PASSING = {
    "UNAVAILABLE DATABASE_UNAVAILABLE",
    "ABORTED CONFLICT",
    "FAILED_PRECONDITION OUTCOME_UNKNOWN",
    "DEADLINE_EXCEEDED ",
}
_BACK_WITHIN = 30.0
"""Seconds; Galera takes 6 to give a node up, and a statement that waits for a lost node ends after 10."""


@dataclass(frozen=True)
class Fault:
    """A way to lose a node.

    Attributes:
        node: the number of the node that is lost.
        lose: loses it.
        heal: brings it back.
    """

    node: int
    lose: Callable[[Node], None]
    heal: Callable[[Node], None]


@pytest.fixture(scope="module")
def galera() -> Iterator[GaleraCluster]:
    with galera_cluster("--wsrep-sync-wait=1") as cluster:
        cluster.nodes[0].execute("CREATE USER haproxy@'127.0.0.1' IDENTIFIED VIA mysql_native_password")
        yield cluster


@pytest.fixture(scope="module")
def stand_in() -> Iterator[RunningStandIn]:
    with start_stand_in() as running:
        yield running


@contextlib.contextmanager
def _database(galera: GaleraCluster, folder: Path, *, balanced: bool) -> Iterator[str]:
    """The URL of a database on the cluster: with a list of its nodes, or with a balancer in front of them."""
    nodes = [f"{server.host}:{server.port}" for server in galera.servers]
    with contextlib.ExitStack() as stack:
        url = urlsplit(stack.enter_context(fresh_database(galera.servers[0])))
        hosts = ",".join(nodes)
        if balanced:
            (hosts,) = free_addresses(1)
            stack.enter_context(running_database_haproxy(folder / "database", hosts, nodes))
        yield url._replace(netloc=f"{url.username}:{url.password}@{hosts}").geturl()


def test_server_warns_of_stale_reads(galera: GaleraCluster, caplog: pytest.LogCaptureFixture) -> None:
    with (
        fresh_database(galera.servers[0]) as url,
        closing(open_database(url, pool_size=1)) as database,
    ):
        warn_of_stale_reads(database)
        assert not caplog.messages
        with database.reading() as context:
            context.execute("SET SESSION wsrep_sync_wait = 0", {})
        warn_of_stale_reads(database)
        (message,) = caplog.messages
        assert "wsrep_sync_wait=1" in message


def test_processes_that_upgrade_on_all_nodes_at_once_do_it_once(galera: GaleraCluster) -> None:
    with fresh_database(galera.servers[0]) as url:
        name = urlsplit(url).path.removeprefix("/")
        assert outcomes_of_upgrades([server.url(name) for server in galera.servers]) == ["[]", "[]", str(VERSIONS)]


@pytest.mark.parametrize(
    ("balanced", "faults"),
    [
        # Of a list, the node after the one that was lost is used next.
        (
            False,
            [
                Fault(0, Node.kill, Node.start),
                Fault(1, Node.freeze, Node.thaw),
                Fault(2, Node.isolate, Node.reconnect),
            ],
        ),
        # The balancer uses the first node that there is.
        (True, [Fault(0, Node.freeze, Node.thaw), Fault(0, Node.kill, Node.start)]),
    ],
    ids=["hosts", "balancer"],
)
def test_lost_node_loses_no_image_and_bills_none_twice(
    galera: GaleraCluster,
    stand_in: RunningStandIn,
    s3_server: RunningObjectStore,
    tmp_path: Path,
    balanced: bool,
    faults: list[Fault],
) -> None:
    with _database(galera, tmp_path, balanced=balanced) as url:
        settings = {
            "PIXYPROXY_DATABASE_URL": url,
            # Longer than Galera takes to give a node up, so that it is the node that ends statements.
            "PIXYPROXY_DATABASE_TIMEOUT": "10",
            "OPENAI_API_KEY": stand_in.api_key,
            "OPENAI_BASE_URL": stand_in.base_url,
            "PIXYPROXY_IMAGE_STORE": f"{s3_server.url}/{uuid.uuid4().hex}",
            **s3_server.env,
        }
        with running_fleet(tmp_path, settings) as fleet:
            load = Load(fleet)
            with load.running(_CALLERS):
                load.wait_for("create", 10)
                for fault in faults:
                    fault.lose(galera.nodes[fault.node])
                    lost_at = time.monotonic()
                    load.wait_for("create", 10)
                    assert time.monotonic() - lost_at < _BACK_WITHIN
                    fault.heal(galera.nodes[fault.node])
                    galera.wait_until_whole()
                    load.wait_for("create", 5)
            assert {told for _, told in load.failures} <= _PASSING
            assert_all_there(fleet, load, stand_in)
            assert max(stand_in.count(prompt) for prompt in load.asked) == 1
            assert not any("INTERNAL" in server.log for server in fleet.replicas)
