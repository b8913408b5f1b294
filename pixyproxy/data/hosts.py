"""The hosts of a database, and the order in which to try them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple


class Host(NamedTuple):
    """A host of a database server, and its port."""

    name: str
    port: int


class HostOrder:
    """The hosts of one database: first those that have not failed, as given, then the others, the oldest failure first.

    So all processes begin with the same host, and none returns to a host that has failed before the next one fails.
    """

    def __init__(self, hosts: Sequence[Host]) -> None:
        """Take hosts in the order of preference."""
        self._hosts = tuple(hosts)
        self._failed_at: dict[Host, float] = {}

    def __len__(self) -> int:
        """Return the number of hosts."""
        return len(self._hosts)

    def in_order(self) -> list[Host]:
        """Return all hosts, the one to try first at the start."""
        return sorted(self._hosts, key=lambda host: self._failed_at.get(host, 0.0))

    def report_failure(self, host: Host) -> None:
        """Report that a host could not be used just now."""
        self._failed_at[host] = time.monotonic()
