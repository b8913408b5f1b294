"""Migrations: the numbered scripts that create and upgrade the tables of a database."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pixyproxy.core.exceptions import ConfigurationError
from pixyproxy.core.models import new_guid
from pixyproxy.data.database import Database, DatabaseContext, statements_of

_PACKAGE = Path(__file__).parent.parent
# The scripts are inside of an installed package, and beside the package in a checkout.
SCRIPTS = _PACKAGE / "sql" if (_PACKAGE / "sql").is_dir() else _PACKAGE.parent / "sql"
_SCRIPT_NAME = re.compile(r"(\d{3})_\w+\.sql")
# An administrator runs scripts 001 and 002, which create the database and its user.
_FIRST_MIGRATION = 3


@dataclass(frozen=True)
class Migration:
    """A numbered script."""

    version: int
    path: Path


def migrations_for(kind: str, scripts: Path = SCRIPTS) -> list[Migration]:
    """Return the scripts for a kind of database (``mysql`` or ``sqlite``), in the order of their numbers."""
    numbered = ((_SCRIPT_NAME.fullmatch(path.name), path) for path in (scripts / kind).iterdir())
    migrations = [Migration(int(match[1]), path) for match, path in numbered if match]
    return sorted((m for m in migrations if m.version >= _FIRST_MIGRATION), key=lambda migration: migration.version)


def schema_version(database: Database) -> int:
    """Return the number of the last script that was run on the database, or 0 if it has no tables."""
    if not database.has_table("migrations"):
        return 0
    with database.reading() as context:
        return context.fetch_value("SELECT MAX(version) FROM migrations", {}) or 0


def upgrade(database: Database, scripts: Path = SCRIPTS) -> list[int]:
    """Run the scripts that have not been run on the database, and return their numbers. All data is kept.

    Raises:
        ConfigurationError: a later release has upgraded the database.
        ConflictError: another upgrade of it has not ended in time.
        DBConnectionError: the database cannot be reached.
    """
    with database.migrating() as context:
        version = schema_version(database)
        migrations = migrations_for(database.kind, scripts)
        _refuse_later_release(version, migrations)
        pending = [migration for migration in migrations if migration.version > version]
        for migration in pending:
            for statement in statements_of(migration.path.read_text(encoding="utf-8")):
                context.execute(statement, {})
            _record(context, migration)
        context.commit()
    return [migration.version for migration in pending]


def require_current(database: Database, scripts: Path = SCRIPTS) -> None:
    """Check that all scripts of this release have been run on the database, and no others.

    Raises:
        ConfigurationError: they have not; the message says what to run.
    """
    version = schema_version(database)
    migrations = migrations_for(database.kind, scripts)
    _refuse_later_release(version, migrations)
    needed = migrations[-1].version
    if version < needed:
        state = "has no tables yet" if version == 0 else f"is at version {version}, this release needs {needed}"
        raise ConfigurationError(f"The database {state}. Run: pixyproxy db init")


def _refuse_later_release(version: int, migrations: Sequence[Migration]) -> None:
    newest = migrations[-1].version
    if version > newest:
        raise ConfigurationError(
            f"The database is at version {version}, made by a later release; this one knows {newest}. "
            "Run the later release of PixyProxy."
        )


def _record(context: DatabaseContext, migration: Migration) -> None:
    context.insert(
        "INSERT INTO migrations (guid, version, applied_at) VALUES (:guid, :version, :applied_at)",
        {"guid": new_guid(), "version": migration.version, "applied_at": datetime.now(UTC)},
    )
