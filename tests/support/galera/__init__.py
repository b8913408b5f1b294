"""A cluster of three MariaDB nodes with Galera on this machine, for tests of faults."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mysql.connector

from tests.support.addresses import free_addresses
from tests.support.database_binaries import DatabaseKind, binary_of_cluster
from tests.support.database_servers import DatabaseServer, RunningServer, execute_on
from tests.support.leaving_out import Required
from tests.support.programs import debian_program
from tests.support.waiting import wait_until

GALERA = debian_program("galera-4", ["galera-4"], "7 MB", "a Galera cluster", Required.CLUSTER)
_NODES = 3
_TIMEOUT = 120.0
# A database of tests needs no log of binary changes; what Galera needs of it is its format.
_OPTIONS = ("--wsrep-on=ON", "--binlog-format=ROW", "--innodb-autoinc-lock-mode=2", "--wsrep-sst-method=copy")


@dataclass
class Node:
    """A node of the cluster."""

    running: RunningServer
    server: DatabaseServer | None = None

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self.running.kill()

    def start(self) -> None:
        """Start it after ``kill``; it joins the cluster, and takes over its state."""
        self.server = self.running.start()

    def freeze(self) -> None:
        """Stop it in its tracks."""
        self.running.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self.running.thaw()

    def isolate(self) -> None:
        """Cut it off from the other nodes; clients still reach it."""
        self._set_isolation(1)

    def reconnect(self) -> None:
        """Connect it to the other nodes again."""
        self._set_isolation(0)

    def is_in_whole_cluster(self) -> bool:
        """Tell whether it is ready, and sees all nodes. A thawed node needs a moment to see that it was lost."""
        with contextlib.suppress(mysql.connector.Error):
            status = dict(self.execute("SHOW STATUS LIKE 'wsrep%'"))
            return (status["wsrep_ready"], status["wsrep_cluster_size"]) == ("ON", str(_NODES))
        return False

    def _set_isolation(self, value: int) -> None:
        self.execute(f"SET GLOBAL wsrep_provider_options = 'gmcast.isolate={value}'")

    def execute(self, sql: str) -> list[Any]:
        """Run a statement as root, and return its rows."""
        assert self.server is not None
        return execute_on(self.server, sql)


@dataclass
class GaleraCluster:
    """Three nodes.

    Attributes:
        nodes: the nodes.
    """

    nodes: list[Node] = field(default_factory=list)

    @property
    def servers(self) -> list[DatabaseServer]:
        """The servers of all nodes."""
        return [node.server for node in self.nodes if node.server is not None]

    def wait_until_whole(self) -> None:
        """Wait until all nodes see all nodes."""
        wait_until(
            lambda: all(node.is_in_whole_cluster() for node in self.nodes), _TIMEOUT, "the nodes to form a cluster"
        )


@contextlib.contextmanager
def galera_cluster(*options: str) -> Iterator[GaleraCluster]:
    """Run three nodes with further options; the test is left out where they are not to be had."""
    with contextlib.ExitStack() as stack:
        cluster = GaleraCluster()
        for running in _nodes(options):
            stack.enter_context(closing(running))
            cluster.nodes.append(Node(running))
        first, *others = cluster.nodes
        first.server = first.running.start("--wsrep-cluster-address=gcomm://")
        with ThreadPoolExecutor(len(others)) as pool:
            list(pool.map(Node.start, others))
        cluster.wait_until_whole()
        yield cluster


def _nodes(options: tuple[str, ...]) -> list[RunningServer]:
    binary = binary_of_cluster(DatabaseKind.MARIADB, "a Galera cluster")
    library = GALERA.folder() / "usr/lib/galera/libgalera_smm.so"
    path = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PATH", os.defpath)))
    addresses = free_addresses(3 * _NODES)
    members, password = ",".join(addresses[:_NODES]), secrets.token_hex(16)
    nodes = []
    for number in range(_NODES):
        member, increments, state = addresses[number::_NODES]
        provider = f"gmcast.listen_addr=tcp://{member};ist.recv_addr={increments};gcache.size=32M"
        of_node = (
            *_OPTIONS,
            f"--wsrep-provider={library}",
            f"--wsrep-provider-options={provider}",
            f"--wsrep-cluster-address=gcomm://{members}",
            "--wsrep-node-address=127.0.0.1",
            f"--wsrep-sst-receive-address={state}",
            # The account comes with the state of the first node.
            *(["--init-file="] if number else []),
            *options,
        )
        nodes.append(RunningServer(binary, options=of_node, password=password, environment={"PATH": path}))
    return nodes
