"""The lease that one process at a time holds to change the tables, in the whole of a Galera cluster.

A named lock of the server (``GET_LOCK``) holds on one node. So whoever has that lock on its node also takes this lease,
a row that all nodes have: of several transactions that take it, the cluster commits one.
"""

from __future__ import annotations

import time
from contextlib import suppress

from pixyproxy.core.exceptions import ConflictError
from pixyproxy.core.fields import new_guid
from pixyproxy.data.database import DatabaseContext

_LEASE, _POLLS = 1, 2
_NOBODY = ""
RENEWAL_SECONDS = 2.0
_POLLS_WITHOUT_RENEWAL = 30
# The table of migrations does not exist before the first one.
_CREATE = """
CREATE TABLE IF NOT EXISTS migration_lease (
  id TINYINT UNSIGNED NOT NULL,
  holder CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  node VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  counter BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (id)
) ENGINE = InnoDB
"""
_FILL = "INSERT IGNORE INTO migration_lease (id, holder, node, counter) VALUES (:lease, '', '', 0), (:polls, '', '', 0)"
_NODE = "CONCAT(@@hostname, ':', @@port)"
# If its holder was on this node, it has ended: this process has the lock of the node.
_TAKE = f"""
UPDATE migration_lease SET holder = :holder, node = {_NODE}, counter = counter + 1
WHERE id = :lease AND (holder = :nobody OR node = {_NODE} OR counter = :quiet_since)
"""  # noqa: S608
_COUNT = "UPDATE migration_lease SET counter = counter + 1 WHERE id = :id AND holder = :holder"


class MigrationLease:
    """The lease, as one process sees it."""

    def __init__(self, poll_interval: float = 0.5) -> None:
        """Initialize without taking the lease; that of another process is polled every ``poll_interval`` seconds."""
        self._holder = new_guid()
        self._poll_interval = poll_interval

    def take(self, context: DatabaseContext, wait: float) -> None:
        """Wait until no other process has the lease, and take it.

        The holder renews the lease every few seconds; one that does not is regarded as dead. Its silence is measured in
        writes of this process, because while the cluster changes a large table, neither can write.

        Raises:
            ConflictError: another process still has it after ``wait`` seconds.
        """
        context.execute(_CREATE, {})
        with suppress(ConflictError):  # Another process on another node has done it.
            context.execute(_FILL, {"lease": _LEASE, "polls": _POLLS})
        give_up_at = time.monotonic() + wait
        last_counter, polls = None, 0
        while not self._try(context, last_counter if polls >= _POLLS_WITHOUT_RENEWAL else None):
            if time.monotonic() >= give_up_at:
                raise ConflictError("Another process is changing the tables; try again in a minute.", retry_after=60)
            time.sleep(self._poll_interval)
            with suppress(ConflictError):  # With another process that waits; the cluster takes writes.
                context.execute(_COUNT, {"id": _POLLS, "holder": _NOBODY})
            counter = context.fetch_value("SELECT counter FROM migration_lease WHERE id = :id", {"id": _LEASE})
            last_counter, polls = counter, polls + 1 if counter == last_counter else 0

    def renew(self, context: DatabaseContext) -> None:
        """Show that the holder is alive."""
        context.execute(_COUNT, {"id": _LEASE, "holder": self._holder})

    def give_back(self, context: DatabaseContext) -> None:
        """Let another process take the lease at once."""
        sql = "UPDATE migration_lease SET holder = :nobody, node = '' WHERE id = :id AND holder = :holder"
        context.execute(sql, {"id": _LEASE, "holder": self._holder, "nobody": _NOBODY})

    def _try(self, context: DatabaseContext, quiet_since: int | None) -> bool:
        parameters = {"lease": _LEASE, "holder": self._holder, "nobody": _NOBODY, "quiet_since": quiet_since}
        try:
            return context.execute(_TAKE, parameters) == 1
        except ConflictError:
            return False  # Another process was faster.
