"""Migrations: the numbered scripts that create and upgrade the tables of a database."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from pixyproxy.core.exceptions import ConfigurationError
from pixyproxy.core.fields import new_guid
from pixyproxy.data.database import Database, DatabaseContext, statements_of

_PACKAGE = Path(__file__).parent.parent
# The scripts are inside of an installed package, and beside the package in a checkout.
SCRIPTS = _PACKAGE / "sql" if (_PACKAGE / "sql").is_dir() else _PACKAGE.parent / "sql"
_SCRIPT_NAME = re.compile(r"\d{3}_\w+\.sql")
# An administrator runs scripts 001 and 002, which create the database and its user.
_FIRST_MIGRATION = 3
HAS_TABLE = {
    "mysql": "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = :name",
    "sqlite": "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = :name",
}


def migrations_for(kind: str, scripts: Path = SCRIPTS) -> dict[int, Path]:
    """Return the scripts for a kind of database (``mysql`` or ``sqlite``) by their numbers, in that order."""
    paths = sorted(path for path in (scripts / kind).iterdir() if _SCRIPT_NAME.fullmatch(path.name))
    return {int(path.name[:3]): path for path in paths if int(path.name[:3]) >= _FIRST_MIGRATION}


def schema_version(database: Database) -> int:
    """Return the number of the last script that was run on the database, or 0 if it has no tables."""
    with database.reading() as context:
        return _version_in(context, database)


def _version_in(context: DatabaseContext, database: Database) -> int:
    if context.fetch_value(HAS_TABLE[database.kind], {"name": "migrations"}) is None:
        return 0
    return context.fetch_value("SELECT MAX(version) FROM migrations", {}) or 0


def upgrade(database: Database, scripts: Path = SCRIPTS) -> list[int]:
    """Run the scripts that have not been run on the database, and return their numbers. All data is kept.

    Raises:
        ConfigurationError: a later release has upgraded the database.
        ConflictError: another upgrade of it has not ended in time.
        DBConnectionError: the database cannot be reached.
    """
    with database.migrating() as context:
        # In this context: in a cluster, another connection may lead to a node that is behind.
        current = _version_in(context, database)
        migrations = migrations_for(database.kind, scripts)
        _refuse_later_release(current, max(migrations))
        pending = {version: path for version, path in migrations.items() if version > current}
        for version, path in pending.items():
            for statement in statements_of(path.read_text(encoding="utf-8")):
                context.execute(statement, {})
            context.insert_row("migrations", {"guid": new_guid(), "version": version, "applied_at": datetime.now(UTC)})
        context.commit()
    return list(pending)


def require_current(database: Database, scripts: Path = SCRIPTS) -> None:
    """Check that all scripts of this release have been run on the database, and no others.

    Raises:
        ConfigurationError: they have not; the message says what to run.
    """
    version = schema_version(database)
    needed = max(migrations_for(database.kind, scripts))
    _refuse_later_release(version, needed)
    if version < needed:
        state = "has no tables yet" if version == 0 else f"is at version {version}, this release needs {needed}"
        raise ConfigurationError(f"The database {state}. Run: pixyproxy db init")


def _refuse_later_release(version: int, newest: int) -> None:
    if version > newest:
        raise ConfigurationError(
            f"The database is at version {version}, made by a later release; this one knows {newest}. "
            "Run the later release of PixyProxy."
        )
