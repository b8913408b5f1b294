"""Opening the databases that the contract suites run on."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pydantic import SecretStr

from pixyproxy.data.database import Database
from pixyproxy.data.hosts import Host
from pixyproxy.data.mysql import MySQLAddress, MySQLDatabase
from pixyproxy.data.sqlite import SQLiteDatabase

SERVERS = ("mysql", "mariadb")
on_servers = pytest.mark.parametrize("migrated", SERVERS, indirect=True)
KINDS = ("sqlite", *SERVERS)

_SQLITE = "sqlite:///"
_TIMEOUT = 20.0


def sqlite_url(path: Path) -> str:
    return f"{_SQLITE}{path}"


def address_of(url: str) -> MySQLAddress:
    """Take the URL of a server's database apart."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return MySQLAddress(
        hosts=(Host(parts.hostname, parts.port),),
        user=unquote(parts.username or ""),
        password=SecretStr(unquote(parts.password or "")),
        database=parts.path.removeprefix("/"),
    )


def open_database(
    url: str, *, pool_size: int = 8, timeout: float = _TIMEOUT, is_audited: bool = False, **waits: float
) -> Database:
    """Open a database; ``timeout``, in seconds, is that of every step, and ``waits`` those of this kind of database."""
    if url.startswith(_SQLITE):
        path = Path(url.removeprefix(_SQLITE))
        return SQLiteDatabase(path, pool_size=pool_size, timeout=timeout, is_audited=is_audited, **waits)
    return MySQLDatabase(address_of(url), pool_size=pool_size, timeout=timeout, is_audited=is_audited, **waits)
