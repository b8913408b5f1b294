"""Opens a database and brings its tables to the form that this release works with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pixyproxy.core.exceptions import ConfigurationError
from pixyproxy.core.models import new_guid
from pixyproxy.data.database import Database, DatabaseContext, statements_of

_PACKAGE = Path(__file__).parent.parent
# In an installed package the scripts lie in it, in a checkout beside it.
_SCRIPTS = _PACKAGE / "sql" if (_PACKAGE / "sql").is_dir() else _PACKAGE.parent / "sql"
_SCRIPT_NAME = re.compile(r"(\d{3})_\w+\.sql")
# Scripts 001 and 002 create the database and the user; an administrator runs them.
_FIRST_MIGRATION = 3


@dataclass(frozen=True)
class Migration:
    """A numbered script that brings the tables one step forward."""

    version: int
    path: Path


def migrations_for(kind: str) -> list[Migration]:
    """Return the scripts for a kind of database (``mysql`` or ``sqlite``) in the order of their numbers."""
    numbered = ((_SCRIPT_NAME.fullmatch(path.name), path) for path in (_SCRIPTS / kind).iterdir())
    migrations = [Migration(int(match[1]), path) for match, path in numbered if match]
    return sorted((m for m in migrations if m.version >= _FIRST_MIGRATION), key=lambda migration: migration.version)


def schema_version(database: Database) -> int:
    """Return the number of the last script that the database has seen, or 0 where it has no tables."""
    if not database.has_table("migrations"):
        return 0
    with database.reading() as context:
        row = context.fetch_one("SELECT MAX(version) AS version FROM migrations", {})
    return (row and row["version"]) or 0


def upgrade(database: Database) -> list[int]:
    """Run the scripts that the database has not seen, and return their numbers. All data is kept.

    Raises:
        ConfigurationError: the database was made by a later release.
        ConflictError: somebody else is upgrading it and takes long.
        DBConnectionError: the database cannot be reached.
    """
    with database.migrating() as context:
        version = schema_version(database)
        _refuse_later_release(database, version)
        pending = [migration for migration in migrations_for(database.kind) if migration.version > version]
        for migration in pending:
            for statement in statements_of(migration.path.read_text(encoding="utf-8")):
                context.execute(statement, {})
            _record(context, migration)
        context.commit()
    return [migration.version for migration in pending]


def require_current(database: Database) -> None:
    """Check that the tables have the form that this release works with.

    Raises:
        ConfigurationError: they have not; the message says what to run.
    """
    version = schema_version(database)
    _refuse_later_release(database, version)
    needed = migrations_for(database.kind)[-1].version
    if version < needed:
        state = "has no tables yet" if version == 0 else f"is at version {version}, this release needs {needed}"
        raise ConfigurationError(f"The database {state}. Run: pixyproxy db init")


def _refuse_later_release(database: Database, version: int) -> None:
    newest = migrations_for(database.kind)[-1].version
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
