"""Replicas under load on a database cluster that loses nodes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.cluster.fleet import Load, assert_all_there, running_fleet
from tests.support.haproxy import running_haproxy
from tests.support.object_stores import RunningObjectStore
from tests.support.openai_stand_in import RunningStandIn

_CALLERS = 8
# What a caller may be told who has sent a call again for as long as a call may take, on a busy machine not long enough.
_PASSING = {
    "UNAVAILABLE DATABASE_UNAVAILABLE",
    "ABORTED CONFLICT",
    "FAILED_PRECONDITION OUTCOME_UNKNOWN",
    "DEADLINE_EXCEEDED ",
}


@dataclass(frozen=True)
class Fault:
    """A way to lose a node.

    Attributes:
        lose: loses it.
        heal: brings it back, and returns when the cluster is whole.
    """

    lose: Callable[[], None]
    heal: Callable[[], None]


def url_on(url: str, hosts: Sequence[str]) -> str:
    """Return the URL of a database with other hosts, each with its port."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username}:{parts.password}@{','.join(hosts)}").geturl()


def lose_nodes(
    url: str,
    folder: Path,
    object_store: RunningObjectStore,
    stand_in: RunningStandIn,
    faults: Sequence[Fault],
    back_within: float,
) -> None:
    """Run replicas under load, and inject faults one after the other.

    Args:
        url: the database.
        folder: for all that is written.
        object_store: for the images.
        stand_in: the provider.
        faults: the faults.
        back_within: the seconds after which images must be made again though the node is still lost.
    """
    settings = {
        "PIXYPROXY_DATABASE_URL": url,
        # Longer than Galera takes to give a node up, so that it is the node that ends statements.
        "PIXYPROXY_DATABASE_TIMEOUT": "10",
        "OPENAI_API_KEY": stand_in.api_key,
        "OPENAI_BASE_URL": stand_in.base_url,
        "PIXYPROXY_IMAGE_STORE": f"{object_store.url}/{uuid.uuid4().hex}",
        **object_store.env,
    }
    with running_fleet(folder, settings, running_haproxy) as fleet:
        load = Load(fleet)
        with load.running(_CALLERS):
            load.wait_for("create", 10)
            for fault in faults:
                fault.lose()
                lost_at = time.monotonic()
                load.wait_for("create", 10)
                assert time.monotonic() - lost_at < back_within
                fault.heal()
                load.wait_for("create", 5)
        unexpected = {failure: count for failure, count in load.failures.items() if failure[1] not in _PASSING}
        assert not unexpected, unexpected
        assert_all_there(fleet, load, stand_in)
        assert max(stand_in.count(prompt) for prompt in load.asked) == 1
        assert not any("INTERNAL" in server.log for server in fleet.replicas)
