"""Warnings of settings of Galera nodes that do not suit PixyProxy."""

from __future__ import annotations

import logging

from pixyproxy.data.database import Database

_logger = logging.getLogger(__name__)


def warn_of_node_settings(database: Database) -> None:
    """Log a warning for each setting of a Galera node that makes reads stale or searches slow."""
    if database.kind != "mysql":
        return
    names = "'wsrep_on', 'wsrep_sync_wait', 'auto_increment_increment'"
    with database.reading() as context:
        rows = context.fetch_all(f"SHOW VARIABLES WHERE Variable_name IN ({names})", {})
    values = {row["Variable_name"]: row["Value"] for row in rows}
    if values.get("wsrep_on") != "ON":
        return
    if not int(values["wsrep_sync_wait"]) & 1:
        _logger.warning(
            "The database is a Galera cluster with wsrep_sync_wait=0: a read on one node may miss what was just "
            "written on another one. Set wsrep_sync_wait=1 on all nodes, unless a balancer sends all servers to one."
        )
    if (increment := int(values["auto_increment_increment"])) > 1:
        _logger.warning(
            "The database is a Galera cluster that uses one id in %d: searches read %d times as many blocks of the "
            "index. Set wsrep_auto_increment_control=OFF on all nodes.",
            increment,
            increment,
        )
