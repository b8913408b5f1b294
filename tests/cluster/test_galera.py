"""Replicas on a Galera cluster whose nodes are killed, frozen and cut off."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pixyproxy.data.galera import warn_of_node_settings
from tests.cluster.lost_nodes import Fault, lose_nodes, url_on
from tests.contract.databases import open_database
from tests.contract.test_migrations import PROJECT, VERSIONS, outcomes_of_upgrades
from tests.support.addresses import free_addresses
from tests.support.database_binaries import DatabaseKind
from tests.support.database_servers import execute_on, fresh_database
from tests.support.galera import GaleraCluster, Node, galera_cluster
from tests.support.haproxy import running_database_haproxy
from tests.support.object_stores import RunningObjectStore
from tests.support.openai_stand_in import RunningStandIn

# Galera takes 6 seconds to give a node up, and a statement that waits for a lost node ends after 10.
_BACK_WITHIN = 30.0
_SUITES = ("deletions_repository", "generations_repository")


@pytest.fixture(scope="module")
def galera() -> Iterator[GaleraCluster]:
    with galera_cluster("--wsrep-sync-wait=1", "--wsrep-auto-increment-control=OFF") as cluster:
        cluster.nodes[0].execute("CREATE USER haproxy@'127.0.0.1' IDENTIFIED VIA mysql_native_password")
        yield cluster


def test_contract_suites_pass_on_a_node(galera: GaleraCluster) -> None:
    check_contract_suites(galera, *(f"tests/contract/test_{name}.py" for name in _SUITES))


@pytest.mark.usefixtures("long_form")
def test_the_whole_contract_suite_passes_on_a_node(galera: GaleraCluster) -> None:
    check_contract_suites(galera, "tests/contract")


def check_contract_suites(galera: GaleraCluster, *paths: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "mariadb", *paths],
        env=os.environ | {DatabaseKind.MARIADB.url_variable: galera.servers[0].url("")},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_server_warns_of_stale_reads_and_of_gaps(galera: GaleraCluster, caplog: pytest.LogCaptureFixture) -> None:
    with fresh_database(galera.servers[0]) as url, closing(open_database(url, pool_size=1)) as database:
        warn_of_node_settings(database)
        assert not caplog.messages
        with database.reading() as context:
            context.execute("SET SESSION wsrep_sync_wait = 0, auto_increment_increment = 3", {})
        warn_of_node_settings(database)
        stale, gaps = caplog.messages
        assert "wsrep_sync_wait=1" in stale
        assert "one id in 3" in gaps
        assert "wsrep_auto_increment_control=OFF" in gaps


def test_ids_have_no_gaps_whichever_node_is_used(galera: GaleraCluster) -> None:
    with fresh_database(galera.servers[0]) as url:
        table = f"{urlsplit(url).path.removeprefix('/')}.numbers"
        galera.nodes[0].execute(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY AUTO_INCREMENT)")
        for server in galera.servers:
            # The query waits for the rows of the other nodes.
            execute_on(server, f"SELECT * FROM {table}", f"INSERT INTO {table} VALUES (), ()", "COMMIT")
        assert galera.nodes[0].execute(f"SELECT id FROM {table} ORDER BY id") == [(number,) for number in range(1, 7)]


def test_processes_that_upgrade_on_all_nodes_at_once_do_it_once(galera: GaleraCluster) -> None:
    with fresh_database(galera.servers[0]) as url:
        name = urlsplit(url).path.removeprefix("/")
        assert outcomes_of_upgrades([server.url(name) for server in galera.servers]) == ["[]", "[]", str(VERSIONS)]


def _fault(galera: GaleraCluster, number: int, lose: Callable[[Node], None], heal: Callable[[Node], None]) -> Fault:
    node = galera.nodes[number]

    def heal_and_wait() -> None:
        heal(node)
        galera.wait_until_whole()

    return Fault(lambda: lose(node), heal_and_wait)


@pytest.mark.parametrize("form", ["short", "long"])
def test_lost_node_of_a_list_loses_no_image_and_bills_none_twice(
    galera: GaleraCluster,
    stand_in: RunningStandIn,
    s3_server: RunningObjectStore,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    form: str,
) -> None:
    faults = [_fault(galera, 0, Node.kill, Node.start)]
    if form == "long":
        request.getfixturevalue("long_form")
        # The node after the one that was lost is used next.
        faults += [_fault(galera, 1, Node.freeze, Node.thaw), _fault(galera, 2, Node.isolate, Node.reconnect)]
    with fresh_database(galera.servers[0]) as url:
        hosts = [f"{server.host}:{server.port}" for server in galera.servers]
        lose_nodes(url_on(url, hosts), tmp_path, s3_server, stand_in, faults, _BACK_WITHIN)


@pytest.mark.parametrize("form", ["short", "long"])
def test_lost_node_behind_a_balancer_loses_no_image_and_bills_none_twice(
    galera: GaleraCluster,
    stand_in: RunningStandIn,
    s3_server: RunningObjectStore,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    form: str,
) -> None:
    # The balancer uses the first node that there is.
    faults = [_fault(galera, 0, Node.isolate, Node.reconnect)]
    if form == "long":
        request.getfixturevalue("long_form")
        faults = [_fault(galera, 0, Node.freeze, Node.thaw), _fault(galera, 0, Node.kill, Node.start)]
    (balancer,) = free_addresses(1)
    nodes = [f"{server.host}:{server.port}" for server in galera.servers]
    with fresh_database(galera.servers[0]) as url, running_database_haproxy(tmp_path / "database", balancer, nodes):
        lose_nodes(url_on(url, [balancer]), tmp_path, s3_server, stand_in, faults, _BACK_WITHIN)
