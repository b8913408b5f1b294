"""What recording pending imports must do on every database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pixyproxy.core.exceptions import ConstraintViolationError
from pixyproxy.core.fields import new_guid
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.pending_imports import PendingImportRepository

_LATER, _BEFORE = timedelta(minutes=1), timedelta(seconds=-1)


def test_pending_imports_are_expired_after_their_time(database: Database) -> None:
    now = datetime.now(UTC)
    pending, expired = new_guid(), [new_guid(), new_guid()]
    with database.transaction() as context:
        imports = PendingImportRepository(context)
        imports.insert(pending, now + _LATER)
        for guid in expired:
            imports.insert(guid, now + _BEFORE)
        assert imports.get_expired(9) == expired
        assert imports.get_expired(1) == expired[:1]


def test_one_of_those_who_end_an_import_is_told_so(database: Database) -> None:
    guid = new_guid()
    with database.transaction() as context:
        imports = PendingImportRepository(context)
        imports.insert(guid, datetime.now(UTC) + _LATER)
        assert imports.delete(guid)
        assert not imports.delete(guid)


def test_an_import_is_recorded_once(database: Database) -> None:
    guid = new_guid()
    with database.transaction() as context:
        PendingImportRepository(context).insert(guid, datetime.now(UTC))
        with pytest.raises(ConstraintViolationError):
            PendingImportRepository(context).insert(guid, datetime.now(UTC))
