"""What images cost, of those that earlier releases have stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pixyproxy.core.fields import Origin
from pixyproxy.core.models import Cost, Usage
from pixyproxy.data.database import Repository, in_list
from pixyproxy.data.repositories.usage import Spending

_TOKENS = tuple(Usage.model_fields)


@dataclass(frozen=True)
class UnaccountedImage:
    """The fields of an image that its cost depends on, which nobody has tried to determine yet."""

    id: int
    author_id: int
    created_at: datetime
    model: str
    origin: Origin
    usage: Usage | None

    @property
    def is_generated(self) -> bool:
        """Whether the provider has generated it, so that it belongs to the usage."""
        return self.origin is not Origin.IMPORTED

    def spending(self, cost: Cost | None) -> Spending:
        """Return what was spent on it, at a cost."""
        return Spending.of(self.author_id, self.created_at, self.model, self.usage, cost)


class ImageCostRepository(Repository):
    """The costs of images, within one database context."""

    def get_unaccounted(self, limit: int) -> list[int]:
        """Return the ids of some images that are not accounted."""
        return self._context.fetch_values("SELECT id FROM images WHERE is_accounted = 0 LIMIT :limit", {"limit": limit})

    def get_images(self, image_ids: Sequence[int], *, locks: bool = False) -> list[UnaccountedImage]:
        """Return those of some images that are not accounted, and lock them if ``locks``."""
        # Without a condition on is_accounted, whose index would be locked against the insertion of other images.
        rows = self._context.fetch_all(
            f"SELECT id, author_id, created_at, model, origin, is_accounted, {', '.join(_TOKENS)} FROM images "  # noqa: S608
            f"WHERE id IN ({in_list(image_ids)}) ORDER BY id{self._context.for_update if locks else ''}",
            {},
        )
        return [
            UnaccountedImage(
                id=row["id"],
                author_id=row["author_id"],
                created_at=row["created_at"],
                model=row["model"],
                origin=Origin(row["origin"]),
                usage=None if row["total_tokens"] is None else Usage.of_checked({name: row[name] for name in _TOKENS}),
            )
            for row in rows
            if not row["is_accounted"]
        ]

    def account(self, costs: Mapping[int, Cost | None]) -> None:
        """Store the costs of images by id; None if the cost is unknown. ``updated_at`` stays."""
        known = {image_id: cost for image_id, cost in costs.items() if cost is not None}
        changes = ["is_accounted = 1"]
        parameters = {}
        if known:
            # One statement: for the million images of an earlier release, one each would take ten times as long.
            amounts = " ".join(f"WHEN {image_id} THEN {cost.nano_usd}" for image_id, cost in known.items())
            changes += [
                f"cost_nano_usd = CASE id {amounts} END",
                f"price_list = CASE WHEN id IN ({in_list(known)}) THEN :price_list END",
            ]
            [parameters["price_list"]] = {cost.price_list for cost in known.values()}
        self._context.execute(
            f"UPDATE images SET {', '.join(changes)} WHERE id IN ({in_list(costs)})",  # noqa: S608
            parameters,
        )
