"""Fills the databases. Images and the index's tail are loaded in bulk; the index is sealed by the code that serves."""

from __future__ import annotations

import itertools
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from argon2 import PasswordHasher
from pydantic import SecretStr

from benchmarks.million import corpus
from benchmarks.million.databases import Kind, MillionDatabase, kept_database, opened
from pixyproxy.core.fields import UserClass
from pixyproxy.core.models import UserCreate
from pixyproxy.data import init
from pixyproxy.data.database import Database, Row
from pixyproxy.data.repositories.images import detail_to_dict
from pixyproxy.data.repositories.users import UserRepository
from pixyproxy.data.search.terms import joined, text_terms
from pixyproxy.service.indexer import seal_all

PASSWORD = "the password of the benchmark"
_ROWS_A_STEP = 5_000


@dataclass
class Progress:
    """Says how far something is, and how long it will go on."""

    what: str
    total: int
    _started: float = 0.0
    _said: float = 0.0

    def __post_init__(self) -> None:
        self._started = self._said = time.monotonic()

    def tell(self, done: int) -> None:
        """Say it, at most every few seconds, and at the end."""
        now = time.monotonic()
        if now - self._said < 5 and done < self.total:
            return
        self._said = now
        left = (now - self._started) * (self.total - done) / max(done, 1)
        print(f"{self.what}: {done:,} of {self.total:,}, {now - self._started:.0f} s, {left:.0f} s to go", flush=True)


def fill(target: MillionDatabase, count: int) -> None:
    """Make a database complete, where it is not yet."""
    if target.is_complete:
        return
    if target.kind is Kind.SOURCE:
        _fill_source(target, count)
    else:
        with kept_database(Kind.SOURCE, count) as source:
            fill(source, count)
            if target.kind is Kind.SQLITE:
                shutil.copyfile(_file(source), _file(target))
            else:
                _copy(source, target, count)
        _seal(target, count)
    target.note_complete()


def _fill_source(source: MillionDatabase, count: int) -> None:
    _file(source).unlink(missing_ok=True)
    progress = Progress("Making images", count)
    hashed = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    with opened(source) as database:
        init.upgrade(database)
        author_ids = _add_users(database, hashed)
        numbered = enumerate(corpus.images(count), start=1)
        while made := list(itertools.islice(numbered, _ROWS_A_STEP)):
            images = [
                detail_to_dict(image.detail) | {"id": number, "author_id": author_ids[image.author]}
                for number, image in made
            ]
            tail = [
                {
                    "image_id": number,
                    "terms": joined(text_terms(image.detail.prompt, image.detail.tags)),
                    "sealed_terms": None,
                }
                for number, image in made
            ]
            _insert(database, {"images": images, "image_tail": tail})
            progress.tell(made[-1][0])


def _add_users(database: Database, hashed: str) -> list[int]:
    """Add all authors and an admin, and return the authors' ids."""
    users = [
        UserCreate(username=name, password=SecretStr(hashed), class_key=class_key)
        for name, class_key in [*((name, UserClass.USER) for name in corpus.AUTHORS), (corpus.ADMIN, UserClass.ADMIN)]
    ]
    with database.transaction() as context:
        ids = [UserRepository(context).insert(user).id for user in users]
        context.commit()
    return ids[:-1]


def _copy(source: MillionDatabase, target: MillionDatabase, count: int) -> None:
    progress = Progress(f"{target.kind.label}: loading", count)
    with opened(source) as origin, opened(target) as database:
        init.upgrade(database)
        with database.transaction() as context:
            for table in ("image_tail", "image_postings", "image_blocks", "images", "users"):
                context.execute(f"DELETE FROM {table}", {})
            context.commit()
        _insert(database, {"users": _rows(origin, "SELECT * FROM users")})
        for first in range(1, count + 1, _ROWS_A_STEP):
            last = first + _ROWS_A_STEP - 1
            images = _rows(origin, f"SELECT * FROM images WHERE id BETWEEN {first} AND {last}")
            tail = _rows(origin, f"SELECT * FROM image_tail WHERE image_id BETWEEN {first} AND {last}")
            _insert(database, {"images": images, "image_tail": tail})
            progress.tell(min(last, count))


def _seal(target: MillionDatabase, count: int) -> None:
    progress = Progress(f"{target.kind.label}: sealing the index", count)
    with opened(target) as database:
        seal_all(database, lambda done, _: progress.tell(done))
        with database.migrating() as context:
            for table in ("images", "image_postings"):
                sql = "ANALYZE" if target.kind is Kind.SQLITE else "ANALYZE TABLE"
                context.fetch_all(f"{sql} {table}", {})


def _rows(database: Database, sql: str) -> list[Row]:
    with database.reading() as context:
        return context.fetch_all(sql, {})


def _insert(database: Database, rows_of_tables: dict[str, list[Row]]) -> None:
    with database.transaction() as context:
        for table, rows in rows_of_tables.items():
            names = list(rows[0])
            context.execute_many(
                f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)})", rows
            )
        context.commit()


def _file(database: MillionDatabase) -> Path:
    return database.folder / "pixyproxy.db"
