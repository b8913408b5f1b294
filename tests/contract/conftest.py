from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache

import pytest

from pixyproxy.data.database import Database
from pixyproxy.data.init import upgrade
from tests.contract.databases import KINDS, open_database, sqlite_url
from tests.support.database_servers import DatabaseServer, fresh_database

# What has a foreign key comes before what it points at.
_EMPTIED_TABLES = (
    "image_tail",
    "image_postings",
    "image_batches",
    "image_blocks",
    "image_copies",
    "renditions",
    "images",
    "partial_images",
    "usage_days",
    "usage_sums",
    "usage_tail",
    "quotas",
    "audit_outbox",
    "generations",
    "users",
    "server_values",
    "provider_turns",
    "failed_sign_ins",
    "past_sign_ins",
)


@dataclass(frozen=True)
class MigratedDatabase:
    """A database with all tables, which serves the whole session, and its URL."""

    url: str
    database: Database

    def empty(self) -> None:
        """Remove all rows, which is much cheaper than a database for each test."""
        with self.database.transaction() as context:
            for table in _EMPTIED_TABLES:
                context.execute(f"DELETE FROM {table}", {})
            context.commit()


@pytest.fixture(scope="session")
def migrated_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[DatabaseServer | None], MigratedDatabase]]:
    """The migrated database on a server, or the embedded one."""
    with ExitStack() as stack:

        @cache
        def migrated(server: DatabaseServer | None) -> MigratedDatabase:
            if server is None:
                url = sqlite_url(tmp_path_factory.mktemp("sqlite") / "pixyproxy.db")
            else:
                url = stack.enter_context(fresh_database(server))
            database = stack.enter_context(closing(open_database(url)))
            upgrade(database)
            return MigratedDatabase(url, database)

        yield migrated


@pytest.fixture(params=KINDS)
def migrated(
    request: pytest.FixtureRequest, migrated_on: Callable[[DatabaseServer | None], MigratedDatabase]
) -> MigratedDatabase:
    migrated = migrated_on(None if request.param == "sqlite" else request.getfixturevalue(f"{request.param}_server"))
    migrated.empty()
    return migrated


@pytest.fixture
def database(migrated: MigratedDatabase) -> Database:
    """A database with all tables and nothing in them."""
    return migrated.database


@pytest.fixture
def database_url(migrated: MigratedDatabase) -> str:
    """The URL of that database, to connect to it anew."""
    return migrated.url


@pytest.fixture(params=KINDS)
def empty_database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database of this test's own, without tables."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path_factory.mktemp("sqlite") / "pixyproxy.db")
    else:
        with fresh_database(request.getfixturevalue(f"{request.param}_server")) as url:
            yield url


@pytest.fixture
def empty_database(empty_database_url: str) -> Iterator[Database]:
    """A database of this test's own, without tables."""
    with closing(open_database(empty_database_url)) as database:
        yield database
