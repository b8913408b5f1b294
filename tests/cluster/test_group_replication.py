"""Replicas on a group of MySQL servers with Group Replication whose primary is killed and frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.lost_nodes import Fault, lose_nodes, url_on
from tests.support.database_servers import PrivateServer, fresh_database
from tests.support.group_replication import Member, replication_group
from tests.support.object_stores import RunningObjectStore
from tests.support.openai_stand_in import RunningStandIn

# A group takes 10 seconds to expel a member, and then elects a primary.
_BACK_WITHIN = 60.0


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
