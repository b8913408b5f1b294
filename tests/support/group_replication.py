"""A group of three MySQL servers with Group Replication, single-primary, on this machine, for tests of faults."""

from __future__ import annotations

import contextlib
import secrets
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import mysql.connector

from tests.support.addresses import free_addresses
from tests.support.database_binaries import DatabaseKind, binary_of_cluster
from tests.support.database_servers import PrivateServer, RunningServer, execute_on
from tests.support.waiting import wait_until

_MEMBERS = 3
_TIMEOUT = 120.0
_OPTIONS = (
    "--log-bin=binlog",
    "--gtid-mode=ON",
    "--enforce-gtid-consistency=ON",
    "--report-host=127.0.0.1",
    "--performance-schema=ON",
    "--plugin-load-add=group_replication.so",
    "--loose-group-replication-start-on-boot=OFF",
    "--loose-group-replication-recovery-get-public-key=ON",
    "--loose-group-replication-unreachable-majority-timeout=10",
)
_NOT_TAKEN = 3092
_STATES = "SELECT MEMBER_STATE FROM performance_schema.replication_group_members"


@dataclass
class Member:
    """A member of the group."""

    server: PrivateServer

    @property
    def is_primary(self) -> bool:
        """Whether it takes writes."""
        return execute_on(self.server, "SELECT @@GLOBAL.read_only") == [(0,)]

    def start(self) -> None:
        """Start it after it was killed; it joins the group again."""
        self.server.start()
        wait_until(self._joins, _TIMEOUT, "the group to take the member again")

    def _joins(self) -> bool:
        try:
            execute_on(self.server, "START GROUP_REPLICATION")
        except mysql.connector.Error as error:
            # The group still has the one that was killed.
            if error.errno != _NOT_TAKEN:
                raise
            return False
        return True


@dataclass
class ReplicationGroup:
    """Three members."""

    members: list[Member]

    @property
    def servers(self) -> list[PrivateServer]:
        """The servers of all members."""
        return [member.server for member in self.members]

    def primary(self) -> Member:
        """Return the member that takes writes; all must run."""
        return wait_until(
            lambda: next((member for member in self.members if member.is_primary), None), _TIMEOUT, "a primary"
        )

    def wait_until_whole(self) -> None:
        """Wait until all members see all members."""

        def is_whole() -> bool:
            return all(execute_on(server, _STATES) == [("ONLINE",)] * _MEMBERS for server in self.servers)

        wait_until(is_whole, _TIMEOUT, "the members to form a group")


@contextlib.contextmanager
def replication_group() -> Iterator[ReplicationGroup]:
    """Run three members; the test is left out where they are not to be had."""
    binary = binary_of_cluster(DatabaseKind.MYSQL, "a group of MySQL servers")
    addresses, name, password = free_addresses(_MEMBERS), uuid.uuid4(), secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        running = []
        for number, address in enumerate(addresses, start=1):
            of_member = (
                *_OPTIONS,
                f"--server-id={number}",
                f"--loose-group-replication-group-name={name}",
                f"--loose-group-replication-local-address={address}",
                f"--loose-group-replication-group-seeds={','.join(addresses)}",
            )
            running.append(stack.enter_context(closing(RunningServer(binary, options=of_member, password=password))))
        with ThreadPoolExecutor(_MEMBERS) as pool:
            servers = list(pool.map(RunningServer.start, running))
        first, *others = servers
        for server in servers:
            execute_on(
                server,
                f"CHANGE REPLICATION SOURCE TO SOURCE_USER = 'root', SOURCE_PASSWORD = '{password}' "
                "FOR CHANNEL 'group_replication_recovery'",
            )
        execute_on(first, "SET GLOBAL group_replication_bootstrap_group = ON", "START GROUP_REPLICATION")
        execute_on(first, "SET GLOBAL group_replication_bootstrap_group = OFF")
        for server in others:
            execute_on(server, "START GROUP_REPLICATION")
        group = ReplicationGroup(
            [Member(PrivateServer(**vars(server), running=one)) for one, server in zip(running, servers, strict=True)]
        )
        group.wait_until_whole()
        yield group
