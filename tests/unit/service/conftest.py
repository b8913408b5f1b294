"""A database and a store of each test's own, and users in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr

from pixyproxy.core.fields import UserClass
from pixyproxy.core.models import Caller, UserCreate
from pixyproxy.data import init
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.users import UserRepository
from pixyproxy.data.sqlite import SQLiteDatabase
from pixyproxy.data.stores.local_image_store import LocalImageStore


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(SQLiteDatabase(tmp_path / "test.db", pool_size=20, timeout=10)) as database:
        init.upgrade(database)
        yield database


@pytest.fixture
def store(tmp_path: Path) -> LocalImageStore:
    return LocalImageStore(tmp_path / "images")


def make_caller(database: Database, name: str, class_key: UserClass = UserClass.USER) -> Caller:
    """Add a user whose password is never asked for."""
    with database.transaction() as context:
        create = UserCreate(username=name, password=SecretStr("not-a-hash"), class_key=class_key)
        user = UserRepository(context).insert(create)
        context.commit()
    return Caller(user_id=user.id, guid=user.guid, username=user.username, class_key=user.class_key)


@pytest.fixture
def alice(database: Database) -> Caller:
    return make_caller(database, "alice")
