"""The file descriptors of a process, and how many of them connections of callers may take."""

from __future__ import annotations

import resource
from contextlib import suppress

from pixyproxy.core.exceptions import ConfigurationError
from pixyproxy.resource.connections import ConnectionLimits
from pixyproxy.settings import Settings

# Idle connections cost 20 KiB of memory each.
_MOST_CONNECTIONS = 4096
# A database connection to SQLite has the database and its log open, and others temporary files.
_DESCRIPTORS_A_DATABASE_CONNECTION = 3
_OTHER_DESCRIPTORS = 64
# Of few descriptors, as many are left to callers, even if not all streams and generations could then be under way.
_CALLERS_SHARE = 2


def limit_connections(settings: Settings, workers: int = 1) -> ConnectionLimits:
    """Raise the process's soft limit of descriptors to the hard one, and return how many connections that allows.

    Args:
        settings: all settings.
        workers: how many processes serve.

    Raises:
        ConfigurationError: the settings ask for more connections than that.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS has a limit of its own below the hard one.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    own = (
        _DESCRIPTORS_A_DATABASE_CONNECTION * settings.database_pool_size
        + settings.max_streams
        + settings.generation_limit(workers)
        + _OTHER_DESCRIPTORS
    )
    available = max(descriptors - own, descriptors // _CALLERS_SHARE)
    total = settings.max_connections or min(available, _MOST_CONNECTIONS)
    if total > available:
        raise ConfigurationError(
            f"PIXYPROXY_MAX_CONNECTIONS: of the {descriptors} file descriptors that a process may have open here, "
            f"{available} are left for connections; raise the limit (ulimit -Hn, LimitNOFILE=) or lower the setting."
        )
    return ConnectionLimits(total, settings.max_connections_per_address or max(1, total // 2))
