"""The renditions of images, made or yet to be made.

The table is the queue, too: workers of any server claim from it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from pixyproxy.core.error_records import to_record
from pixyproxy.core.exceptions import PixyProxyException
from pixyproxy.data.database import Row, in_list, named_list
from pixyproxy.data.repositories.leased import NOBODY, LeasedRepository

_COLUMNS = "id, image_guid, edge, state, owner, due_at, sha256, size_bytes, width, height, error, updated_at"

PLACEHOLDER = 0
"""The edge that stands for the placeholder of an image, whose row is deleted when it is made."""


class RenditionState(StrEnum):
    """How far a rendition has come."""

    REQUESTED = "requested"
    PLANNED = "planned"
    """To be made when no other is requested: nobody waits for it."""
    MADE = "made"
    FAILED = "failed"


_OPEN = f"('{RenditionState.REQUESTED}', '{RenditionState.PLANNED}')"


@dataclass(frozen=True)
class Rendition:
    """A rendition of an image.

    Attributes:
        id: the row's id.
        image_guid: the image.
        edge: the length of the edge of the square that it fits, in pixels.
        state: how far it has come.
        owner: the worker that has claimed it, or empty.
        due_at: when a worker may claim it, such as the end of a lease; of a failed one, when it may be requested again.
        sha256: of its bytes, in lower-case hexadecimal; like the next ones, None unless it is made.
        size_bytes: the number of its bytes.
        width: in pixels.
        height: in pixels.
        error: the record of the error if it has failed, or None; see ``pixyproxy.core.error_records``.
        updated_at: when the row last changed.
    """

    id: int
    image_guid: str
    edge: int
    state: RenditionState
    owner: str
    due_at: datetime
    sha256: str | None
    size_bytes: int | None
    width: int | None
    height: int | None
    error: str | None
    updated_at: datetime

    @property
    def is_final(self) -> bool:
        """Whether no worker is going to change it."""
        return self.state in (RenditionState.MADE, RenditionState.FAILED)

    @property
    def is_leased(self) -> bool:
        """Whether a worker may be making it."""
        return not self.is_final and self.owner != NOBODY and self.due_at > datetime.now(UTC)


@dataclass(frozen=True)
class RenditionClaim:
    """All renditions of one image that a worker has claimed.

    Attributes:
        image_guid: the image.
        edges: which renditions.
        is_requested: whether somebody waits for one of them.
        attempts: how often the most often claimed of them was claimed.
    """

    image_guid: str
    edges: tuple[int, ...]
    is_requested: bool
    attempts: int


class RenditionRepository(LeasedRepository):
    """The renditions, within one database context."""

    states = RenditionState

    # --- Read ----------------------------------------------------------------------------------------------------

    def get(self, image_guids: Sequence[str], edge: int) -> dict[str, Rendition]:
        """Return the renditions with one edge, by the guids of their images, as far as they are known."""
        if not image_guids:
            return {}
        names, parameters = named_list("guid", image_guids)
        found = self._select(f"image_guid IN ({names}) AND edge = :edge", parameters | {"edge": edge})
        return {rendition.image_guid: rendition for rendition in found}

    def get_several(self, ids: Collection[int]) -> dict[int, Rendition]:
        """Return renditions by their ids; those of deleted images may be missing."""
        found = self._select(f"id IN ({in_list(ids)})", {}) if ids else []
        return {rendition.id: rendition for rendition in found}

    def get_pending(self, ids: Collection[int]) -> set[int]:
        """Return those ids of renditions that are still to be made."""
        sql = f"SELECT id FROM renditions WHERE id IN ({in_list(ids)}) AND state IN {_OPEN}"  # noqa: S608
        return set(self._context.fetch_values(sql, {})) if ids else set()

    def get_of_image(self, image_guid: str) -> list[Rendition]:
        """Return all renditions of an image."""
        return self._select("image_guid = :image_guid", {"image_guid": image_guid})

    def get_orphans(self, limit: int, *, after: int) -> tuple[set[str], int]:
        """Look at the next renditions after an id.

        Returns:
            The guids of their images that do not exist, and the id of the last rendition, or 0 if there are no more.
        """
        rows = self._context.fetch_all(
            """
            SELECT page.id, page.image_guid, images.id IS NULL AS is_orphan
            FROM (SELECT id, image_guid FROM renditions WHERE id > :after ORDER BY id LIMIT :limit) AS page
            LEFT JOIN images ON images.guid = page.image_guid
            ORDER BY page.id
            """,
            {"after": after, "limit": limit},
        )
        return {row["image_guid"] for row in rows if row["is_orphan"]}, rows[-1]["id"] if rows else 0

    def count_planned(self, limit: int) -> int:
        """Return the number of planned renditions, ``limit`` at most."""
        rows = self._context.fetch_all(
            "SELECT id FROM renditions WHERE state = :state LIMIT :limit",
            {"state": RenditionState.PLANNED.value, "limit": limit},
        )
        return len(rows)

    def get_without_placeholder(self, limit: int, *, after: int, before: datetime) -> tuple[list[str], int]:
        """Look at the next images after an id that were created before a time.

        Returns:
            The guids of those without a placeholder for which none is planned or has failed, and the id of the last
            image, or ``after`` if there are no more.
        """
        rows = self._context.fetch_all(
            """
            SELECT page.id, page.guid, page.placeholder IS NULL AND renditions.id IS NULL AS is_missing
            FROM (
              SELECT id, guid, placeholder FROM images WHERE id > :after AND created_at < :before
              ORDER BY id LIMIT :limit
            ) AS page
            LEFT JOIN renditions ON renditions.image_guid = page.guid AND renditions.edge = :placeholder
            ORDER BY page.id
            """,
            {"after": after, "before": before, "limit": limit, "placeholder": PLACEHOLDER},
        )
        return [row["guid"] for row in rows if row["is_missing"]], rows[-1]["id"] if rows else after

    # --- Request -------------------------------------------------------------------------------------------------

    def request(self, image_guids: Sequence[str], edge: int) -> None:
        """Add renditions that somebody waits for.

        Raises:
            ConstraintViolationError: one is known already.
        """
        self._add("INSERT", image_guids, edge, RenditionState.REQUESTED)

    def plan(self, image_guids: Sequence[str], edge: int) -> None:
        """Add renditions that nobody waits for, in place of those that are known, which must not fail a commit."""
        self._add("REPLACE", image_guids, edge, RenditionState.PLANNED)

    def _add(self, verb: str, image_guids: Sequence[str], edge: int, state: RenditionState) -> None:
        if not image_guids:
            return
        now = datetime.now(UTC)
        self._context.execute_many(
            f"""
            {verb} INTO renditions (image_guid, edge, state, owner, due_at, attempts, updated_at)
            VALUES (:image_guid, :edge, :state, :nobody, :now, 0, :now)
            """,
            [
                {"image_guid": guid, "edge": edge, "state": state.value, "nobody": NOBODY, "now": now}
                for guid in sorted(image_guids)
            ],
        )

    def prefer(self, ids: Collection[int]) -> None:
        """Note that somebody waits for renditions that were only planned."""
        if ids:
            self._change(
                f"UPDATE renditions SET state = :requested WHERE id IN ({in_list(ids)}) AND state = :planned"  # noqa: S608
            )

    def request_again(self, rendition: Rendition) -> None:
        """Have a rendition made again that has failed or whose bytes are damaged, unless it has changed since."""
        self._change(
            """
            UPDATE renditions SET state = :requested, owner = :nobody, due_at = :now, attempts = 0, updated_at = :now
            WHERE id = :id AND state = :state AND updated_at = :updated_at
            """,
            id=rendition.id,
            state=rendition.state.value,
            updated_at=rendition.updated_at,
        )

    # --- Make ----------------------------------------------------------------------------------------------------

    def next_due(self, *, takes_latest: bool = False) -> str | None:
        """Return the guid of the image whose renditions are due for longest, requested ones first, or None.

        With ``takes_latest``, return that of the image whose renditions became due last.
        """
        order = "DESC" if takes_latest else "ASC"
        for state in (RenditionState.REQUESTED, RenditionState.PLANNED):
            image_guid: str | None = self._context.fetch_value(
                "SELECT image_guid FROM renditions WHERE state = :state AND due_at <= :now "  # noqa: S608
                f"ORDER BY due_at {order} LIMIT 1",
                {"state": state.value, "now": datetime.now(UTC)},
            )
            if image_guid is not None:
                return image_guid
        return None

    def claim(self, image_guid: str, owner: str, lease: timedelta) -> RenditionClaim | None:
        """Claim all renditions of an image that are due; return None if another worker has claimed them before."""
        now = datetime.now(UTC)
        parameters = {"image_guid": image_guid, "owner": owner, "now": now, "due_at": now + lease}
        self._context.execute(
            f"""
            UPDATE renditions SET owner = :owner, due_at = :due_at, attempts = attempts + 1, updated_at = :now
            WHERE image_guid = :image_guid AND state IN {_OPEN} AND due_at <= :now
            """,  # noqa: S608
            parameters,
        )
        rows = self._context.fetch_all(
            f"""
            SELECT edge, state, attempts FROM renditions
            WHERE image_guid = :image_guid AND state IN {_OPEN} AND owner = :owner AND due_at = :due_at
            """,  # noqa: S608
            parameters,
        )
        if not rows:
            return None
        return RenditionClaim(
            image_guid=image_guid,
            edges=tuple(row["edge"] for row in rows),
            is_requested=any(row["state"] == RenditionState.REQUESTED for row in rows),
            attempts=max(row["attempts"] for row in rows),
        )

    def give_back(self, owner: str, *, was_attempt: bool) -> None:
        """Let all workers claim what a worker has claimed and does not make; if it died, that was an attempt."""
        self._change(
            f"""
            UPDATE renditions
            SET owner = :nobody, due_at = :now, attempts = attempts - :not_attempted, updated_at = :now
            WHERE state IN {_OPEN} AND owner = :owner
            """,  # noqa: S608
            owner=owner,
            not_attempted=int(not was_attempt),
        )

    def complete(
        self, image_guid: str, edge: int, owner: str, *, sha256: str, size_bytes: int, width: int, height: int
    ) -> bool:
        """Note that the bytes of a claimed rendition are stored; return False if its row was deleted meanwhile."""
        completed = self._change(
            f"""
            UPDATE renditions SET state = :made, owner = :nobody, attempts = 0, error = NULL, sha256 = :sha256,
              size_bytes = :size_bytes, width = :width, height = :height, updated_at = :now
            WHERE image_guid = :image_guid AND edge = :edge AND state IN {_OPEN} AND owner = :owner
            """,  # noqa: S608
            image_guid=image_guid,
            edge=edge,
            owner=owner,
            sha256=sha256,
            size_bytes=size_bytes,
            width=width,
            height=height,
        )
        return completed or bool(self.get([image_guid], edge))

    def fail(self, claim: RenditionClaim, owner: str, error: PixyProxyException, again_at: datetime) -> None:
        """Note that the renditions of a claim that are not made yet cannot be made; report it until ``again_at``."""
        self._change(
            f"""
            UPDATE renditions
            SET state = :failed, owner = :nobody, error = :error, due_at = :again_at, updated_at = :now
            WHERE image_guid = :image_guid AND state IN {_OPEN} AND owner = :owner
            """,  # noqa: S608
            image_guid=claim.image_guid,
            owner=owner,
            error=to_record(error),
            again_at=again_at,
        )

    def postpone(self, claim: RenditionClaim, owner: str, due_at: datetime) -> None:
        """Let all workers claim the planned renditions of a claim from a time on; that was no attempt."""
        self._change(
            """
            UPDATE renditions SET owner = :nobody, due_at = :due_at, attempts = attempts - 1, updated_at = :now
            WHERE image_guid = :image_guid AND state = :planned AND owner = :owner
            """,
            image_guid=claim.image_guid,
            owner=owner,
            due_at=due_at,
        )

    # --- Delete --------------------------------------------------------------------------------------------------

    def drop(self, claim: RenditionClaim, owner: str) -> None:
        """Delete the renditions of a claim that are not made."""
        self._context.execute(
            f"DELETE FROM renditions WHERE image_guid = :image_guid AND state IN {_OPEN} AND owner = :owner",  # noqa: S608
            {"image_guid": claim.image_guid, "owner": owner},
        )

    def delete(self, ids: Collection[int]) -> None:
        """Delete renditions."""
        if ids:
            self._context.execute(f"DELETE FROM renditions WHERE id IN ({in_list(ids)})", {})  # noqa: S608

    def _select(self, condition: str, parameters: Row) -> list[Rendition]:
        rows = self._context.fetch_all(f"SELECT {_COLUMNS} FROM renditions WHERE {condition}", parameters)  # noqa: S608
        return [Rendition(**(row | {"state": RenditionState(row["state"])})) for row in rows]
