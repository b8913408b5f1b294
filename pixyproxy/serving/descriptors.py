"""The file descriptors of a process, and how many of them connections may use."""

from __future__ import annotations

import resource
from contextlib import suppress

from pixyproxy.core.exceptions import ConfigurationError
from pixyproxy.resource.connections import ConnectionLimits
from pixyproxy.settings import Settings

# 5,000 from one address, which may have half of them. Idle connections cost 20 KiB of memory each.
_MOST_CONNECTIONS = 10_240
# A connection to SQLite has the database, its log and temporary files open.
_DESCRIPTORS_A_DATABASE_CONNECTION = 3
_OTHER_DESCRIPTORS = 64
# At least half of the descriptors are for connections, even if that leaves too few for all streams and generations.
_CONNECTIONS_SHARE = 2


def limit_connections(settings: Settings, workers: int = 1) -> ConnectionLimits:
    """Raise the soft limit of descriptors to the hard limit, and return how many connections each RPC worker may have.

    Raises:
        ConfigurationError: the settings ask for more connections.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS has another limit below the hard one.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    own = (
        _DESCRIPTORS_A_DATABASE_CONNECTION * settings.database_pool_size
        + settings.max_streams
        + settings.generation_limit(workers)
        + _OTHER_DESCRIPTORS
    )
    available = max(descriptors - own, descriptors // _CONNECTIONS_SHARE)
    total = settings.max_connections or min(available, _MOST_CONNECTIONS)
    if total > available:
        raise ConfigurationError(
            f"PIXYPROXY_MAX_CONNECTIONS: of the {descriptors} file descriptors that a process may open, "
            f"{available} are left for connections; raise the limit (ulimit -Hn, LimitNOFILE=) or lower the setting."
        )
    return ConnectionLimits(total, settings.max_connections_per_address or max(1, total // 2))
