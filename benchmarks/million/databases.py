"""The databases that are measured: kept in the cache, because they take minutes to make."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import mysql.connector
from pydantic import SecretStr

from benchmarks.million import corpus
from pixyproxy.bootstrap import open_database
from pixyproxy.data.database import Database
from pixyproxy.data.search.postings import DEFAULT_LAYOUT
from pixyproxy.settings import Settings
from tests.support.database_binaries import DatabaseKind, find_binary, install_binary
from tests.support.database_servers import RunningServer

_SCRIPTS = Path(__file__).parents[2] / "sql"
_DATABASE = "pixyproxy_million"
_FRESH_DATABASE = "pixyproxy_fresh"
# As a server for a million images would be set up: data in memory, each commit on the disk when it returns.
_MEMORY = "2G"
_OPTIONS = (
    f"--innodb-buffer-pool-size={_MEMORY}",
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-flush-method=fsync",
    "--innodb-buffer-pool-dump-at-shutdown=OFF",
)
_LOG_OPTIONS = {
    DatabaseKind.MYSQL: ("--innodb-redo-log-capacity=1G",),
    DatabaseKind.MARIADB: ("--innodb-log-file-size=1G",),
}


class Kind(StrEnum):
    """A kind of database to measure; ``SOURCE`` is what the others are made from, with nothing sealed."""

    SOURCE = "source"
    SQLITE = "sqlite"
    MYSQL = "mysql"
    MARIADB = "mariadb"

    @property
    def label(self) -> str:
        """The name as it is written."""
        return {Kind.SOURCE: "Images", Kind.SQLITE: "SQLite", Kind.MYSQL: "MySQL", Kind.MARIADB: "MariaDB"}[self]


@dataclass(frozen=True)
class MillionDatabase:
    """A database with a place for its data.

    Attributes:
        kind: what it is.
        folder: where its data is kept.
        url: its address, as PixyProxy's settings take it.
        version: the server's, or SQLite's.
    """

    kind: Kind
    folder: Path
    url: str
    version: str

    @property
    def is_complete(self) -> bool:
        """Whether all images are in it."""
        return self._mark.exists()

    def note_complete(self) -> None:
        """Write down that all images are in it."""
        self._mark.touch()

    @property
    def _mark(self) -> Path:
        return self.folder / "complete"


@contextlib.contextmanager
def kept_database(kind: Kind, count: int) -> Iterator[MillionDatabase]:
    """Run the database for so many images, with whatever is in it already."""
    if kind in {Kind.SOURCE, Kind.SQLITE}:
        folder = _folder(_cache(), kind, count)
        folder.mkdir(parents=True, exist_ok=True)
        yield MillionDatabase(kind, folder, f"sqlite:///{folder / 'pixyproxy.db'}", sqlite3.sqlite_version)
        return
    server_kind = DatabaseKind(kind)
    binary = find_binary(server_kind) or install_binary(server_kind)
    folder = _folder(binary.work / "bench", kind, count)
    folder.mkdir(parents=True, exist_ok=True)
    running = RunningServer(binary, folder / "data", (*_OPTIONS, *_LOG_OPTIONS[server_kind]))
    with contextlib.closing(running):
        server = running.start()
        with contextlib.closing(
            mysql.connector.connect(host=server.host, port=server.port, user=server.user, password=server.password)
        ) as connection:
            connection.cmd_query(f"CREATE DATABASE IF NOT EXISTS {_DATABASE} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
        try:
            yield MillionDatabase(kind, folder, server.url(_DATABASE), server.version)
        finally:
            running.stop()


def opened(database: MillionDatabase) -> contextlib.AbstractContextManager[Database]:
    """Open a database as the server does, with more patience."""
    return open_database(Settings(database_url=SecretStr(database.url), database_timeout=600))


@contextlib.contextmanager
def fresh_database(beside: MillionDatabase) -> Iterator[Database]:
    """Give an empty database beside another, and remove it at the end."""
    if beside.kind is Kind.SQLITE:
        with (
            tempfile.TemporaryDirectory(dir=beside.folder) as folder,
            opened(replace(beside, url=f"sqlite:///{folder}/pixyproxy.db")) as database,
        ):
            yield database
        return
    with opened(beside) as database, database.transaction() as context:
        context.execute(f"DROP DATABASE IF EXISTS {_FRESH_DATABASE}", {})
        context.execute(f"CREATE DATABASE {_FRESH_DATABASE} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", {})
    with opened(replace(beside, url=beside.url.replace(_DATABASE, _FRESH_DATABASE))) as database:
        yield database
        with database.transaction() as context:
            context.execute(f"DROP DATABASE {_FRESH_DATABASE}", {})


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixyproxy" / "bench"


def _folder(base: Path, kind: Kind, count: int) -> Path:
    """The folder for what is made today; those for what was made by other rules are removed."""
    texts = [script.read_text(encoding="utf-8") for script in sorted(_SCRIPTS.rglob("*.sql"))]
    rules = repr((corpus.VERSION, corpus.SEED, DEFAULT_LAYOUT.block_bits, DEFAULT_LAYOUT.run_bits, texts))
    name = f"{kind}-{count}-"
    folder = base / f"{name}{hashlib.sha256(rules.encode()).hexdigest()[:12]}"
    for old in base.glob(f"{name}*"):
        if old != folder:
            shutil.rmtree(old)
    return folder
