"""What writing deletions down must do on every database."""

from __future__ import annotations

import pytest

from pixyproxy.core.exceptions import ConstraintViolationError
from pixyproxy.core.fields import new_guid
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.deletions import DeletionRepository


def test_deletions_come_back_oldest_first_until_they_are_done(database: Database) -> None:
    guids = [new_guid() for _ in range(3)]
    with database.transaction() as context:
        for guid in guids:
            DeletionRepository(context).insert(guid)
        context.commit()

    with database.transaction() as context:
        deletions = DeletionRepository(context)
        oldest = deletions.get_next(2, after=0)
        assert [deletion.image_guid for deletion in oldest] == guids[:2]
        assert [deletion.image_guid for deletion in deletions.get_next(10, after=oldest[0].id)] == guids[1:]
        (last,) = deletions.get_next(10, after=oldest[1].id)
        assert deletions.get_next(10, after=last.id) == []
        deletions.delete(guids[0])
        deletions.delete(new_guid())
        assert [deletion.image_guid for deletion in deletions.get_next(10, after=0)] == guids[1:]


def test_a_deletion_is_written_down_once(database: Database) -> None:
    guid = new_guid()
    with database.transaction() as context:
        DeletionRepository(context).insert(guid)
        with pytest.raises(ConstraintViolationError):
            DeletionRepository(context).insert(guid)
