"""The deletions that are not finished: the detail is gone, and the bytes may still be there."""

from __future__ import annotations

from datetime import UTC, datetime

from pixyproxy.core.models import new_guid
from pixyproxy.data.database import DatabaseContext


class DeletionRepository:
    """The unfinished deletions, within one database context."""

    def __init__(self, context: DatabaseContext) -> None:
        self._context = context

    def insert(self, image_guid: str) -> None:
        """Note that the bytes of an image are to be deleted."""
        self._context.insert(
            "INSERT INTO deletions (guid, image_guid, created_at) VALUES (:guid, :image_guid, :now)",
            {"guid": new_guid(), "image_guid": image_guid, "now": datetime.now(UTC)},
        )

    def get_oldest(self, limit: int) -> list[str]:
        """Return the guids of the images whose bytes have waited longest."""
        rows = self._context.fetch_all("SELECT image_guid FROM deletions ORDER BY id LIMIT :limit", {"limit": limit})
        return [row["image_guid"] for row in rows]

    def delete(self, image_guid: str) -> None:
        """Note that the bytes of an image are gone."""
        self._context.execute("DELETE FROM deletions WHERE image_guid = :image_guid", {"image_guid": image_guid})
