"""The verified copies of images in other stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pixyproxy.core.fields import new_guid
from pixyproxy.data.database import DatabaseContext


@dataclass(frozen=True)
class ImageToCopy:
    """The fields of an image that copying needs, and whether a verified copy is recorded."""

    id: int
    guid: str
    sha256: str
    is_copied: bool


class ImageCopyRepository:
    """The copies in one store, within one database context."""

    def __init__(self, context: DatabaseContext, store_guid: str) -> None:
        self._context = context
        self._store_guid = store_guid

    def count_images(self) -> int:
        """Return the number of images, copied or not."""
        return self._context.fetch_value("SELECT COUNT(*) FROM images", {}) or 0

    def get_images(self, limit: int, *, after: int) -> list[ImageToCopy]:
        """Return the next images after an id, in the order of their ids."""
        rows = self._context.fetch_all(
            """
            SELECT images.id, images.guid, images.sha256, image_copies.id IS NOT NULL AS is_copied
            FROM images
            LEFT JOIN image_copies ON image_copies.store_guid = :store AND image_copies.image_guid = images.guid
            WHERE images.id > :after ORDER BY images.id LIMIT :limit
            """,
            {"store": self._store_guid, "after": after, "limit": limit},
        )
        return [ImageToCopy(**row) for row in rows]

    def get_copies(self, limit: int, *, after: str) -> dict[str, bool]:
        """Return the next copies after a guid: by guids of images and in their order, whether the image exists."""
        rows = self._context.fetch_all(
            """
            SELECT page.image_guid, images.id IS NOT NULL AS has_image
            FROM (
              SELECT image_guid FROM image_copies WHERE store_guid = :store AND image_guid > :after
              ORDER BY image_guid LIMIT :limit
            ) AS page
            LEFT JOIN images ON images.guid = page.image_guid
            ORDER BY page.image_guid
            """,
            {"store": self._store_guid, "after": after, "limit": limit},
        )
        return {row["image_guid"]: bool(row["has_image"]) for row in rows}

    def replace(self, image_guids: Sequence[str]) -> None:
        """Record copies of images, in place of earlier ones."""
        self.delete(image_guids)
        now = datetime.now(UTC)
        self._context.execute_many(
            """
            INSERT INTO image_copies (guid, store_guid, image_guid, created_at)
            VALUES (:guid, :store, :image_guid, :now)
            """,
            [
                {"guid": new_guid(), "store": self._store_guid, "image_guid": guid, "now": now}
                for guid in sorted(image_guids)
            ],
        )

    def delete(self, image_guids: Sequence[str]) -> None:
        """Delete the copies of images."""
        self._context.execute_many(
            "DELETE FROM image_copies WHERE store_guid = :store AND image_guid = :image_guid",
            [{"store": self._store_guid, "image_guid": guid} for guid in sorted(image_guids)],
        )
