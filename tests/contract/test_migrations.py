"""What making and upgrading the tables must do on every database, and how everything there must be named."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mysql.connector
import pytest
from pydantic import SecretStr

from pixyproxy.core.exceptions import ConfigurationError, ConflictError, PixyProxyException
from pixyproxy.core.fields import GenerationState, Origin, Visibility, new_guid
from pixyproxy.core.models import (
    Caller,
    GenerationKey,
    GenerationOptions,
    Image,
    ImageCreation,
    ImageDetailCreate,
    ImageFilter,
    Usage,
)
from pixyproxy.core.search_terms import index_terms
from pixyproxy.data.database import Database, statements_of
from pixyproxy.data.init import HAS_TABLE, migrations_for, require_current, schema_version, upgrade
from pixyproxy.data.mysql import MySQLDatabase
from pixyproxy.data.repositories.generation_details import GenerationDetailRepository
from pixyproxy.data.repositories.generations import GenerationRepository
from pixyproxy.data.repositories.images import detail_to_dict
from pixyproxy.service.creation.recording import _fingerprint
from pixyproxy.service.indexer import seal_all
from tests.contract.databases import SERVERS, address_of, on_servers, open_database
from tests.contract.records import add_caller, add_image, detail_of, get_image, get_page
from tests.support.database_servers import DatabaseKind, DatabaseServer, private_server

PROJECT = Path(__file__).parents[2]
SCRIPTS = PROJECT / "sql"
LATER_COLUMNS = {
    "options",
    "origin",
    "source_guids",
    "input_text_tokens",
    "input_image_tokens",
    "output_text_tokens",
    "output_image_tokens",
    "cost_nano_usd",
    "price_list",
    "is_accounted",
}
VERSIONS = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
# It is there before the first step, on servers only.
_NOT_LEASE = "table_name <> 'migration_lease'"
ENTITIES = {"deletions", "generations", "images", "migrations", "pending_imports", "server_values", "users"}
TABLES = ENTITIES | {
    "audit_outbox",
    "failed_sign_ins",
    "image_batches",
    "image_blocks",
    "image_copies",
    "image_postings",
    "image_tail",
    "partial_images",
    "past_sign_ins",
    "provider_turns",
    "quotas",
    "renditions",
    "usage_days",
    "usage_sums",
    "usage_tail",
}

on_sqlite = pytest.mark.parametrize("migrated", ["sqlite"], indirect=True)


def rows_of(database: Database, sql: str) -> list[dict[str, Any]]:
    with database.reading() as context:
        return context.fetch_all(sql, {})


def tables_of(database: Database) -> set[str]:
    with database.reading() as context:
        has_table = HAS_TABLE[database.kind]
        return {table for table in TABLES | {"something_else"} if context.fetch_value(has_table, {"name": table})}


# --- Making the tables -----------------------------------------------------------------------------------------------


def test_upgrade_makes_all_tables_of_an_empty_database(empty_database: Database) -> None:
    assert schema_version(empty_database) == 0
    assert tables_of(empty_database) == set()

    assert upgrade(empty_database) == VERSIONS

    assert schema_version(empty_database) == VERSIONS[-1]
    assert tables_of(empty_database) == TABLES
    require_current(empty_database)
    recorded = rows_of(empty_database, "SELECT version, applied_at FROM migrations ORDER BY id")
    assert [row["version"] for row in recorded] == VERSIONS
    assert abs((datetime.now(UTC) - recorded[-1]["applied_at"]).total_seconds()) < 60


def test_upgrade_of_a_current_database_changes_nothing(database: Database) -> None:
    ann = add_caller(database)
    image = add_image(database, ann, tags=("kept",))
    recorded = rows_of(database, "SELECT * FROM migrations")

    assert upgrade(database) == []

    assert rows_of(database, "SELECT * FROM migrations") == recorded
    assert get_image(database, image.guid, ann) == image


def test_upgrade_goes_on_where_it_was_cut_off(empty_database: Database) -> None:
    if empty_database.kind == "sqlite":
        return  # There the upgrade is one transaction.
    upgrade(empty_database)
    ann = add_caller(empty_database)
    image = add_image(empty_database, ann)
    with empty_database.transaction() as context:
        # As if it had been cut off before it was noted, and before its last table.
        context.execute("DELETE FROM migrations", {})
        context.execute("DROP TABLE partial_images", {})
        context.execute("DROP TABLE generations", {})
        context.commit()

    with pytest.raises(ConfigurationError):
        require_current(empty_database)
    assert upgrade(empty_database) == VERSIONS

    require_current(empty_database)
    assert tables_of(empty_database) == TABLES
    assert get_image(empty_database, image.guid, ann) == image


def test_a_later_step_keeps_all_data(empty_database: Database, tmp_path: Path) -> None:
    upgrade(empty_database)
    ann = add_caller(empty_database)
    image = add_image(empty_database, ann)
    folder = tmp_path / empty_database.kind
    folder.mkdir()
    for path in migrations_for(empty_database.kind).values():
        (folder / path.name).write_text(path.read_text())
    (folder / "904_add_colour.sql").write_text(
        "-- A comment; with a semicolon.\nALTER TABLE images\n  ADD COLUMN colour VARCHAR(8) NULL;\n"
        "UPDATE images SET colour = 'a;b';\n"
    )
    (folder / "910_add_shape.sql").write_text("ALTER TABLE images ADD COLUMN shape VARCHAR(8) NULL;\n")
    (folder / "905_notes.txt").write_text("no script")

    with pytest.raises(ConfigurationError, match=f"is at version {VERSIONS[-1]}, this release needs 910"):
        require_current(empty_database, tmp_path)
    assert upgrade(empty_database, tmp_path) == [904, 910]
    assert upgrade(empty_database, tmp_path) == []

    require_current(empty_database, tmp_path)
    assert get_image(empty_database, image.guid, ann) == image
    assert rows_of(empty_database, "SELECT colour, shape FROM images") == [{"colour": "a;b", "shape": None}]


def test_a_step_that_fails_is_not_recorded(empty_database: Database, tmp_path: Path) -> None:
    upgrade(empty_database)
    folder = tmp_path / empty_database.kind
    folder.mkdir()
    (folder / "904_wrong.sql").write_text("CREATE TABLE something_else (id INTEGER);\nCREATE NONSENSE;\n")

    for _ in range(2):  # The second one finds no lock left behind.
        with pytest.raises(PixyProxyException):
            upgrade(empty_database, tmp_path)
        assert schema_version(empty_database) == VERSIONS[-1]
        if empty_database.kind == "mysql":  # Where every statement lasts by itself.
            with empty_database.transaction() as context:
                context.execute("DROP TABLE something_else", {})

    assert tables_of(empty_database) == TABLES


def test_a_database_of_a_later_release_is_left_alone(empty_database: Database) -> None:
    upgrade(empty_database)
    with empty_database.transaction() as context:
        context.insert(
            "INSERT INTO migrations (guid, version, applied_at) VALUES (:guid, 999, :now)",
            {"guid": new_guid(), "now": datetime.now(UTC)},
        )
        context.commit()

    for refuse in (upgrade, require_current):
        with pytest.raises(
            ConfigurationError, match=rf"at version 999, made by a later release; this one knows {VERSIONS[-1]}\b"
        ):
            refuse(empty_database)


def test_an_empty_database_is_told_what_to_run(empty_database: Database) -> None:
    with pytest.raises(ConfigurationError, match=r"has no tables yet\. Run: pixyproxy db init$"):
        require_current(empty_database)

    assert tables_of(empty_database) == set()


def test_threads_that_upgrade_at_once_do_it_once(empty_database_url: str) -> None:
    racers = 4
    barrier = threading.Barrier(racers)

    def run() -> list[int]:
        with closing(open_database(empty_database_url)) as database:
            barrier.wait(timeout=30)
            return upgrade(database)

    with ThreadPoolExecutor(racers) as threads:
        outcomes = [future.result() for future in [threads.submit(run) for _ in range(racers)]]

    assert sorted(outcomes) == [[], [], [], VERSIONS]
    with closing(open_database(empty_database_url)) as database:
        assert [row["version"] for row in rows_of(database, "SELECT version FROM migrations")] == VERSIONS


def outcomes_of_upgrades(urls: Sequence[str]) -> list[str]:
    """Upgrade the databases of URLs at once, each in a process; return what each has run, in the order of length."""
    command = [sys.executable, "-m", "tests.contract.upgrade_in_process"]
    processes = [
        subprocess.Popen([*command, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
        for url in urls
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return sorted((process.communicate(timeout=60)[0].strip() for process in processes), key=len)
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()


def test_processes_that_upgrade_at_once_do_it_once(empty_database_url: str) -> None:
    assert outcomes_of_upgrades([empty_database_url] * 3) == ["[]", "[]", str(VERSIONS)]


@on_servers
def test_upgrade_waits_for_another_one_only_so_long(database_url: str) -> None:
    with (
        closing(open_database(database_url)) as database,
        closing(open_database(database_url, migration_wait=0)) as other,
    ):
        with database.migrating(), pytest.raises(ConflictError) as refused:
            upgrade(other)
        assert refused.value.retry_after is not None
        # Not the other: the lock goes with its connection, which the server may notice a moment late.
        assert upgrade(database) == []


@on_servers
def test_steps_may_take_longer_than_a_query(database_url: str) -> None:
    with closing(open_database(database_url, timeout=1)) as database, database.migrating() as context:
        assert context.fetch_one("SELECT SLEEP(2) AS slept", {}) == {"slept": 0}


# --- What earlier releases left ---------------------------------------------------------------------------------------

FOX = {"prompt": "ein roter Fuchs 雪山", "filename": "Fuchs.png", "tags": ("a b", "雪")}


def add_as_version_3_did(database: Database, ann: Caller, **values: Any) -> Image:
    """Add an image with what it was found by before there was the search index."""
    detail = detail_of(ann, **values)
    columns = detail_to_dict(detail) | {"author_id": ann.user_id}
    row = {name: value for name, value in columns.items() if name not in LATER_COLUMNS}
    with database.transaction() as context:
        names = ", ".join(row)
        image_id = context.insert(f"INSERT INTO images ({names}) VALUES ({', '.join(f':{name}' for name in row)})", row)
        for table, column, terms in (
            ("image_terms", "term", index_terms(detail.prompt)),
            ("image_tags", "tag_key", detail.tags),
        ):
            context.execute_many(
                f"INSERT INTO {table} ({column}, created_at, image_id) VALUES (:term, :created_at, :image_id)",
                [{"term": term, "created_at": detail.created_at, "image_id": image_id} for term in terms],
            )
        context.commit()
    return Image(**dict(detail), id=image_id, author_id=ann.user_id)


@pytest.fixture
def version_3(empty_database: Database, tmp_path: Path) -> Database:
    """A database as that version made it."""
    upgrade_to(3, empty_database, tmp_path)
    return empty_database


@pytest.fixture
def first_release(empty_database: Database, tmp_path: Path) -> Database:
    """A database as the first release made it."""
    upgrade_to(6, empty_database, tmp_path)
    return empty_database


def upgrade_to(version: int, database: Database, folder: Path) -> None:
    (folder / database.kind).mkdir()
    steps = {number: path for number, path in migrations_for(database.kind).items() if number <= version}
    for path in steps.values():
        (folder / database.kind / path.name).write_text(path.read_text())
    assert upgrade(database, folder) == list(steps)


def test_images_of_version_3_are_found_after_the_upgrade(version_3: Database) -> None:
    ann = add_caller(version_3)
    fox = add_as_version_3_did(version_3, ann, **FOX)
    plain = add_as_version_3_did(version_3, ann, prompt="!", filename="other.png")
    # More than servers put together without being told that they may.
    long = add_as_version_3_did(version_3, ann, prompt=" ".join(f"wort{number}" for number in range(2_000)))

    assert upgrade(version_3) == VERSIONS[1:]

    for _ in range(2):
        assert get_page(version_3, caller=ann) == [long, plain, fox]
        for wanted in (
            ImageFilter(prompt="FUCHS rot", tags=("雪", "a b")),
            ImageFilter(prompt="雪"),
            ImageFilter(filename="fuchs"),
            ImageFilter(prompt="ein", author="ann", visibility=fox.visibility),
        ):
            assert get_page(version_3, wanted, ann) == [fox]
        for number in (0, 999, 1_999):
            assert get_page(version_3, ImageFilter(prompt=f"wort{number} wort1999"), ann) == [long]
        assert get_page(version_3, ImageFilter(tags=("a",)), ann) == []
        seal_all(version_3, lambda done, count: None)


@pytest.mark.parametrize("is_cut_off", [False, True])
def test_generations_of_the_first_release_are_kept_in_every_state(first_release: Database, is_cut_off: bool) -> None:
    if is_cut_off and first_release.kind == "sqlite":
        return  # There the upgrade is one transaction.
    ann = add_caller(first_release)
    states = ("recorded", "sent", "stored", "failed", "unknown")
    now = datetime.now(UTC)
    rows = [
        {
            "guid": new_guid(),
            "author_id": ann.user_id,
            "request_id": new_guid(),
            "fingerprint": "ab" * 32,
            "image_guid": new_guid(),
            "state": state,
            "owner": new_guid(),
            "expires_at": now - timedelta(minutes=1),
            "now": now,
        }
        for state in states
    ]
    insert = """
        INSERT INTO generations (guid, author_id, request_id, fingerprint, image_guid, state, owner, lease_expires_at,
          created_at, updated_at)
        VALUES (:guid, :author_id, :request_id, :fingerprint, :image_guid, :state, :owner, :expires_at, :now, :now)
    """
    with first_release.transaction() as context:
        for row in rows:
            context.insert(insert, row)
        context.commit()

    assert upgrade(first_release) == VERSIONS[4:]
    if is_cut_off:
        with first_release.transaction() as context:
            context.execute("DELETE FROM migrations WHERE version >= 8", {})
            context.commit()
        assert upgrade(first_release) == VERSIONS[5:]

    with first_release.reading() as context:
        generations = GenerationRepository(context)
        for row in rows:
            found = generations.find(ann.user_id, str(row["request_id"]))
            assert found is not None
            assert (found.state.value, found.image_guid, found.fingerprint) == (
                row["state"],
                row["image_guid"],
                row["fingerprint"],
            )
            assert (found.attempts, found.error) == (0, None)
        assert generations.oldest_queued() == ({}, 0)
        assert {generation.state.value for generation in generations.get_expired(10)} == {"recorded", "sent"}
        for row in rows:
            detail = GenerationDetailRepository(context).find(GenerationKey(guid=str(row["guid"])), ann)
            assert detail is not None
            assert (detail.state.value, detail.request_id, detail.created_at) == (row["state"], row["request_id"], now)
            assert (detail.creation, detail.error, detail.image, detail.submitted_at) == (None, None, None, None)
            assert detail.finished_at == (now if row["state"] in ("stored", "failed", "unknown") else None)
    # A server of the first release, which still runs, records as it is used to.
    with first_release.transaction() as context:
        context.insert(insert, {**rows[0], "guid": new_guid(), "request_id": new_guid(), "image_guid": new_guid()})
        context.commit()


# What a server of the release before 010 stores, by the names of the columns.
EARLIER_IMAGE = """
INSERT INTO images
  (guid, author_id, filename, filename_key, prompt, tags, visibility, content_type, size_bytes, sha256, width, height,
   model, input_tokens, output_tokens, total_tokens, created_at, updated_at)
VALUES
  (:guid, :author_id, :filename, :filename_key, :prompt, :tags, :visibility, :content_type, :size_bytes, :sha256,
   :width, :height, :model, :input_tokens, :output_tokens, :total_tokens, :created_at, :updated_at)
"""


def add_as_version_9_did(database: Database, ann: Caller, **values: Any) -> Image:
    detail = detail_of(ann, **values)
    row = detail_to_dict(detail) | {"author_id": ann.user_id}
    named = {name: row[name] for name in re.findall(r":(\w+)", EARLIER_IMAGE)}
    with database.transaction() as context:
        image_id = context.insert(EARLIER_IMAGE, named)
        context.commit()
    return Image(**dict(detail), id=image_id, author_id=ann.user_id)


@pytest.mark.parametrize("is_cut_off", [False, True])
def test_images_of_version_9_have_no_options(empty_database: Database, tmp_path: Path, is_cut_off: bool) -> None:
    if is_cut_off and empty_database.kind == "sqlite":
        return  # There the upgrade is one transaction.
    upgrade_to(9, empty_database, tmp_path)
    ann = add_caller(empty_database)
    usage = Usage(input_tokens=7, output_tokens=5, total_tokens=12)
    images = [add_as_version_9_did(empty_database, ann, usage=usage), add_as_version_9_did(empty_database, ann)]

    assert upgrade(empty_database) == [version for version in VERSIONS if version > 9]
    if is_cut_off:
        with empty_database.transaction() as context:
            # As if it had been cut off before it was noted.
            context.execute("DELETE FROM migrations WHERE version >= 10", {})
            context.commit()
        assert 10 in upgrade(empty_database)
    # A server of that release, which still runs, commits as it is used to.
    images.append(add_as_version_9_did(empty_database, ann, usage=usage))

    for image in images:
        stored = get_image(empty_database, image.guid, ann)
        assert stored == image
        assert (stored.options, stored.origin, stored.source_guids) == (None, Origin.GENERATED, ())


@pytest.mark.parametrize("state", sorted(set(GenerationState) - {GenerationState.IMPORTED}))
def test_requests_of_version_9_can_be_read(empty_database: Database, tmp_path: Path, state: GenerationState) -> None:
    upgrade_to(9, empty_database, tmp_path)
    ann = add_caller(empty_database)
    request = (
        '{"detail":{"prompt":"a fox","filename":null,"tags":["a"],"visibility":2},'
        '"options":{"model":"m","size":null,"quality":"low","output_format":null,"background":null,"partial_images":2}}'
    )
    row = {
        "guid": new_guid(),
        "author_id": ann.user_id,
        "request_id": new_guid(),
        "fingerprint": hashlib.sha256(request.encode()).hexdigest(),
        "image_guid": new_guid(),
        "state": state.value,
        "request": request,
        "now": datetime.now(UTC),
    }
    with empty_database.transaction() as context:
        generation_id = context.insert(
            """
            INSERT INTO generations
              (guid, author_id, request_id, fingerprint, image_guid, state, owner, lease_expires_at, request, call_id,
               trace_headers, not_before_at, created_at, updated_at)
            VALUES
              (:guid, :author_id, :request_id, :fingerprint, :image_guid, :state, '', :now, :request, '-', '{}', :now,
               :now, :now)
            """,
            row,
        )
        context.commit()

    upgrade(empty_database)

    expected = ImageCreation(
        detail=ImageDetailCreate(prompt="a fox", tags=("a",), visibility=Visibility.PUBLIC),
        options=GenerationOptions(model="m", quality="low", partial_images=2),
        request_id=row["request_id"],
    )
    with empty_database.reading() as context:
        shown = GenerationDetailRepository(context).find(GenerationKey(guid=row["guid"]), ann)
        queued = GenerationRepository(context).get_queued(generation_id)
    assert shown is not None
    assert (shown.state, shown.creation) == (state, expected)
    assert (queued and queued.creation) == (expected if state is GenerationState.QUEUED else None)
    # The caller may repeat it under its request id: it is the same request to this release.
    assert _fingerprint(expected) == row["fingerprint"]


@pytest.mark.parametrize("empty_database_url", SERVERS, indirect=True)  # SQLite's is one transaction.
def test_an_upgrade_from_version_3_that_was_cut_off_loses_nothing(version_3: Database) -> None:
    ann = add_caller(version_3)
    fox = add_as_version_3_did(version_3, ann, **FOX)
    upgrade(version_3)
    other = add_image(version_3, ann, prompt="another Fuchs")
    with version_3.transaction() as context:
        # As if it had been cut off before it was noted.
        context.execute("DELETE FROM migrations WHERE version >= 5", {})
        context.commit()

    assert upgrade(version_3) == [version for version in VERSIONS if version >= 5]

    assert get_page(version_3, ImageFilter(prompt="fuchs"), ann) == [other, fox]
    assert get_page(version_3, ImageFilter(tags=("雪",)), ann) == [fox]
    assert tables_of(version_3) == TABLES


# --- How everything is named -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schema:
    """The columns of each table with whether they may be NULL, and the names of its constraints and indices."""

    columns: dict[str, dict[str, bool]]
    constraints: dict[str, dict[str, tuple[str, ...]]]


def sqlite_schema(database: Database) -> Schema:
    sql = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    columns, constraints = {}, {}
    for table, definition in ((row["name"], row["sql"]) for row in rows_of(database, sql)):
        info = rows_of(database, f"SELECT name, \"notnull\", pk FROM pragma_table_info('{table}')")
        columns[table] = {row["name"]: not (row["notnull"] or row["pk"]) for row in info}
        constraints[table] = {
            name: tuple(re.split(r",\s*", listed))
            for name, listed in re.findall(r"CONSTRAINT (\w+) (?:UNIQUE|FOREIGN KEY) \(([^)]+)\)", definition)
        }
        unnamed = re.findall(r"(?<!\w )\b(?:UNIQUE|FOREIGN KEY|CHECK)\b", definition)
        assert unnamed == [], definition
    sql = "SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    for row in rows_of(database, sql):
        (listed,) = re.findall(r"\(([^)]+)\)$", row["sql"])
        constraints[row["tbl_name"]][row["name"]] = tuple(re.split(r",\s*", listed))
    return Schema(columns, constraints)


def server_schema(database: Database) -> Schema:
    columns: dict[str, dict[str, bool]] = {}
    for row in rows_of(
        database,
        "SELECT table_name AS t, column_name AS c, is_nullable AS n FROM information_schema.columns "
        f"WHERE table_schema = DATABASE() AND {_NOT_LEASE} ORDER BY table_name, ordinal_position",
    ):
        columns.setdefault(row["t"], {})[row["c"]] = row["n"] == "YES"
    constraints: dict[str, dict[str, tuple[str, ...]]] = {table: {} for table in columns}
    for row in rows_of(
        database,
        "SELECT table_name AS t, index_name AS i, column_name AS c FROM information_schema.statistics "
        "WHERE table_schema = DATABASE() AND index_name <> 'PRIMARY' ORDER BY table_name, index_name, seq_in_index",
    ):
        listed = constraints[row["t"]]
        listed[row["i"]] = (*listed.get(row["i"], ()), row["c"])
    for row in rows_of(
        database,
        "SELECT table_name AS t, constraint_name AS i, column_name AS c FROM information_schema.key_column_usage "
        "WHERE table_schema = DATABASE() AND referenced_table_name IS NOT NULL",
    ):
        assert row["i"] not in constraints[row["t"]], "the server has made an index of its own"
        constraints[row["t"]][row["i"]] = (row["c"],)
    return Schema(columns, constraints)


def schema_of(database: Database) -> Schema:
    return sqlite_schema(database) if database.kind == "sqlite" else server_schema(database)


def test_constraints_and_indices_are_named_by_table_kind_and_number(database: Database) -> None:
    schema = schema_of(database)

    assert set(schema.constraints) == TABLES
    for table, constraints in schema.constraints.items():
        for kind in "UFI":
            numbers = [int(name[len(table) + 2 :]) for name in constraints if name.startswith(f"{table}_{kind}")]
            assert sorted(numbers) == list(range(1, len(numbers) + 1)), constraints
        assert all(re.fullmatch(rf"{table}_[UFI]\d+", name) for name in constraints), constraints


def test_every_entity_has_an_integer_id_and_a_unique_guid(database: Database) -> None:
    schema = schema_of(database)

    for table in ENTITIES:
        assert list(schema.columns[table])[:2] == ["id", "guid"]
        assert schema.constraints[table][f"{table}_U1"] == ("guid",)


@on_servers
def test_the_embedded_database_has_the_same_tables(database: Database, tmp_path: Path) -> None:
    with closing(open_database(f"sqlite:///{tmp_path / 'pixyproxy.db'}")) as embedded:
        upgrade(embedded)

        assert schema_of(embedded) == schema_of(database)


@on_servers
def test_text_is_stored_in_all_its_characters_and_compared_exactly(database: Database) -> None:
    columns = rows_of(
        database,
        "SELECT table_name AS t, column_name AS c, character_set_name AS charset, collation_name AS collation "
        "FROM information_schema.columns "
        f"WHERE table_schema = DATABASE() AND character_set_name IS NOT NULL AND {_NOT_LEASE}",
    )
    collations = {(row["t"], row["c"]): (row["charset"], row["collation"]) for row in columns}

    given_by_people = {("users", "username"), ("images", "filename"), ("images", "prompt"), ("images", "tags")}
    given_by_people.add(("generations", "request"))
    assert {place for place, (charset, _) in collations.items() if charset == "utf8mb4"} == given_by_people
    for place, collation in collations.items():
        expected = ("utf8mb4", "utf8mb4_bin") if place in given_by_people else ("ascii", "ascii_bin")
        assert collation == expected, place
    tables = rows_of(
        database,
        "SELECT table_name AS t, engine AS e, table_collation AS c FROM information_schema.tables "
        f"WHERE table_schema = DATABASE() AND {_NOT_LEASE}",
    )
    assert {(row["t"], row["e"], row["c"]) for row in tables} == {(table, "InnoDB", "utf8mb4_bin") for table in TABLES}
    binary = rows_of(
        database,
        "SELECT column_name AS c FROM information_schema.columns "
        "WHERE table_schema = DATABASE() AND data_type = 'varbinary'",
    )
    assert {row["c"] for row in binary} == {"username_key", "filename_key", "term", "placeholder"}


@on_sqlite
def test_the_embedded_database_is_in_utf8_and_lasting(database: Database) -> None:
    assert rows_of(database, "SELECT encoding FROM pragma_encoding") == [{"encoding": "UTF-8"}]
    assert rows_of(database, "SELECT journal_mode FROM pragma_journal_mode") == [{"journal_mode": "wal"}]
    assert rows_of(database, "SELECT synchronous FROM pragma_synchronous") == [{"synchronous": 2}]  # FULL
    assert rows_of(database, "SELECT foreign_keys FROM pragma_foreign_keys") == [{"foreign_keys": 1}]


@pytest.mark.parametrize("path", sorted(SCRIPTS.rglob("*.sql")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_script_begins_with_full_internationalisation(path: Path) -> None:
    script = path.read_text(encoding="utf-8")

    first = next(statements_of(script))

    expected = "PRAGMA encoding = 'UTF-8'" if path.parent.name == "sqlite" else "SET NAMES utf8mb4"
    assert first.startswith(expected)
    # What is left behind the last statement's end would never run.
    assert [line for line in script.splitlines() if line.strip()][-1].endswith(";")


def test_the_steps_of_both_kinds_have_the_same_numbers_and_names() -> None:
    names = [[path.name for path in migrations_for(kind).values()] for kind in ("mysql", "sqlite")]

    assert names[0] == names[1]
    assert list(migrations_for("mysql")) == VERSIONS
    assert migrations_for("mysql")[3] == SCRIPTS / "mysql" / "003_create_tables.sql"


# --- The administrator's scripts -------------------------------------------------------------------------------------


@contextmanager
def administrator(server: DatabaseServer) -> Iterator[Any]:
    connection = mysql.connector.connect(
        host=server.host, port=server.port, user=server.user, password=server.password, autocommit=True
    )
    with closing(connection), closing(connection.cursor()) as cursor:
        yield cursor


def run_script(cursor: Any, name: str) -> None:
    for statement in statements_of((SCRIPTS / "mysql" / name).read_text(encoding="utf-8")):
        cursor.execute(statement)


def has_user(cursor: Any) -> bool:
    cursor.execute("SELECT COUNT(*) FROM mysql.user WHERE user = 'pixyproxy'")
    (count,) = cursor.fetchone()
    return bool(count)


@pytest.mark.parametrize("kind", DatabaseKind)
def test_the_administrators_scripts_make_a_database_and_a_user_for_it_alone(kind: DatabaseKind) -> None:
    password = 'it\'s \\ a "pässwörd" 🦊; --'
    with private_server(kind) as server, administrator(server) as cursor:
        cursor.execute("CREATE DATABASE another_one")
        cursor.execute("CREATE TABLE another_one.secrets (id INT PRIMARY KEY)")
        for _ in range(2):
            run_script(cursor, "001_create_database.sql")

        for missing in ("NULL", "''"):
            cursor.execute(f"SET @pixyproxy_password = {missing}")
            with pytest.raises(mysql.connector.Error):
                run_script(cursor, "002_create_user.sql")
            assert not has_user(cursor)

        for _ in range(2):
            cursor.execute("SET @pixyproxy_password = %s", (password,))
            run_script(cursor, "002_create_user.sql")
        assert has_user(cursor)

        address = address_of(server.url("pixyproxy"))
        as_user = MySQLDatabase(
            replace(address, user="pixyproxy", password=SecretStr(password)), pool_size=2, timeout=10
        )
        with closing(as_user) as database:
            assert upgrade(database) == VERSIONS
            ann = add_caller(database)
            image = add_image(database, ann, prompt="🦊 in the snow", tags=("🍎",))
            assert get_image(database, image.guid, ann) == image
            (row,) = rows_of(database, "SELECT @@character_set_database AS charset")
            assert row == {"charset": "utf8mb4"}

            for forbidden in (
                "SELECT * FROM another_one.secrets",
                "SELECT * FROM mysql.user",
                "CREATE DATABASE of_mine",
                "CREATE USER eve",
                "GRANT ALL ON pixyproxy.* TO 'pixyproxy'@'%'",
                "DROP DATABASE another_one",
            ):
                with pytest.raises(PixyProxyException), database.transaction() as context:
                    context.execute(forbidden, {})
