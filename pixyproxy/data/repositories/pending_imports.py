"""Pending imports: images whose bytes may be in the store while their details are not committed."""

from __future__ import annotations

from datetime import UTC, datetime

from pixyproxy.core.fields import new_guid
from pixyproxy.data.database import Repository


class PendingImportRepository(Repository):
    """The pending imports, within one database context."""

    def insert(self, image_guid: str, expires_at: datetime) -> None:
        """Record that the bytes of an image are about to be stored, by a server that is dead after ``expires_at``."""
        self._context.insert_row(
            "pending_imports",
            {"guid": new_guid(), "image_guid": image_guid, "expires_at": expires_at, "created_at": datetime.now(UTC)},
        )

    def get_expired(self, limit: int) -> list[str]:
        """Return the guids of images whose imports have expired."""
        return self._context.fetch_values(
            "SELECT image_guid FROM pending_imports WHERE expires_at < :now ORDER BY id LIMIT :limit",
            {"now": datetime.now(UTC), "limit": limit},
        )

    def delete(self, image_guid: str) -> bool:
        """End a pending import, and return whether it was pending: nobody else has ended it."""
        deleted = self._context.execute(
            "DELETE FROM pending_imports WHERE image_guid = :image_guid", {"image_guid": image_guid}
        )
        return deleted == 1
