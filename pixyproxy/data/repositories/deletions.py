"""Unfinished deletions: the detail is deleted, and the bytes may still exist."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from pixyproxy.core.fields import new_guid
from pixyproxy.data.database import Repository


@dataclass(frozen=True)
class Deletion:
    """An image whose bytes are to be deleted; ids are in the order of the deletions."""

    id: int
    image_guid: str


class DeletionRepository(Repository):
    """The unfinished deletions, within one database context."""

    def insert(self, image_guid: str) -> None:
        """Record that the bytes of an image are to be deleted."""
        row = {"guid": new_guid(), "image_guid": image_guid, "created_at": datetime.now(UTC)}
        self._context.insert_row("deletions", row)

    def get_next(self, limit: int, *, after: int) -> list[Deletion]:
        """Return the oldest deletions whose id is greater than ``after``."""
        sql = "SELECT id, image_guid FROM deletions WHERE id > :after ORDER BY id LIMIT :limit"
        return [Deletion(**row) for row in self._context.fetch_all(sql, {"after": after, "limit": limit})]

    def delete(self, image_guid: str) -> None:
        """Record that the bytes of an image are deleted."""
        self._context.execute("DELETE FROM deletions WHERE image_guid = :image_guid", {"image_guid": image_guid})
