"""The generations: what was asked of the provider, written down before it was asked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from pixyproxy.core.models import new_guid
from pixyproxy.data.database import DatabaseContext

_COLUMNS = "id, author_id, fingerprint, image_guid, state, owner, lease_expires_at"


class GenerationState(StrEnum):
    """How far a generation has come.

    RECORDED and SENT are under way as long as their lease runs. A generation that FAILED cost nothing and may be begun
    again. One whose outcome is UNKNOWN may have been billed and is never sent again; it is STORED after all where its
    picture turns up.
    """

    RECORDED = "recorded"
    SENT = "sent"
    STORED = "stored"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Generation:
    """One generation.

    Attributes:
        id: the row's id.
        author_id: the id of the user that it is made for.
        fingerprint: a hash of the request; equal for equal requests.
        image_guid: the guid that its image has or will have.
        state: how far it has come.
        owner: a name, used once, for whoever works on it.
        lease_expires_at: when the owner must be taken for dead.
    """

    id: int
    author_id: int
    fingerprint: str
    image_guid: str
    state: GenerationState
    owner: str
    lease_expires_at: datetime

    @property
    def is_under_way(self) -> bool:
        """Whether it is unfinished and its owner is alive, as far as can be known."""
        is_unfinished = self.state in (GenerationState.RECORDED, GenerationState.SENT)
        return is_unfinished and self.lease_expires_at >= datetime.now(UTC)


class GenerationRepository:
    """The generations, within one database context."""

    def __init__(self, context: DatabaseContext) -> None:
        self._context = context

    def insert(self, *, author_id: int, request_id: str | None, fingerprint: str, lease: timedelta) -> Generation:
        """Record a generation that is about to begin, with an owner of its own.

        Raises:
            ConstraintViolationError: the author has used the request id before.
        """
        now = datetime.now(UTC)
        row = {
            "guid": new_guid(),
            "author_id": author_id,
            "request_id": request_id,
            "fingerprint": fingerprint,
            "image_guid": new_guid(),
            "state": GenerationState.RECORDED.value,
            "owner": new_guid(),
            "lease_expires_at": now + lease,
            "now": now,
        }
        row["id"] = self._context.insert(
            """
            INSERT INTO generations
              (guid, author_id, request_id, fingerprint, image_guid, state, owner, lease_expires_at, created_at,
               updated_at)
            VALUES
              (:guid, :author_id, :request_id, :fingerprint, :image_guid, :state, :owner, :lease_expires_at, :now, :now)
            """,
            row,
        )
        return _dict_to_generation(row)

    def find(self, author_id: int, request_id: str) -> Generation | None:
        """Return the generation that an author began under a request id, or None."""
        return self._find(
            "author_id = :author_id AND request_id = :request_id", author_id=author_id, request_id=request_id
        )

    def find_by_image(self, image_guid: str) -> Generation | None:
        """Return the generation of an image, made or not, or None."""
        return self._find("image_guid = :image_guid", image_guid=image_guid)

    def take_over(self, generation: Generation, *, lease: timedelta) -> Generation | None:
        """Begin a generation again, with a new owner, if it still is as it was read.

        Returns:
            The generation as it is now, or None where somebody else was faster, and nothing is changed.
        """
        return self._change(generation, GenerationState.RECORDED, new_guid(), lease)

    def move(
        self, generation: Generation, to_state: GenerationState, *, lease: timedelta = timedelta(0)
    ) -> Generation | None:
        """Bring a generation into another state, with a new lease, if it still is as it was read.

        Returns:
            The generation as it is now, or None where it is another's by now, and nothing is changed.
        """
        return self._change(generation, to_state, generation.owner, lease)

    def finish(self, generation: Generation) -> bool:
        """Note that the picture of a generation is stored; return False where that was noted before.

        Whoever has the picture may do so, even when the owner was taken for dead meanwhile, and whatever the state: a
        database that was restored from a backup knows less than a picture proves.
        """
        moved = self._context.execute(
            "UPDATE generations SET state = :stored, updated_at = :now WHERE id = :id AND state <> :stored",
            {"id": generation.id, "stored": GenerationState.STORED.value, "now": datetime.now(UTC)},
        )
        return moved == 1

    def renew_leases(self, owners: Collection[str], *, lease: timedelta) -> None:
        """Say that these owners are alive."""
        now = datetime.now(UTC)
        names = {f"owner{number}": owner for number, owner in enumerate(owners)}
        placeholders = ", ".join(f":{name}" for name in names)
        self._context.execute(
            f"UPDATE generations SET lease_expires_at = :lease WHERE owner IN ({placeholders})",  # noqa: S608
            {**names, "lease": now + lease},
        )

    def _find(self, condition: str, **parameters: Any) -> Generation | None:
        row = self._context.fetch_one(
            f"SELECT {_COLUMNS} FROM generations WHERE {condition}",  # noqa: S608
            parameters,
        )
        return None if row is None else _dict_to_generation(row)

    def _change(
        self, generation: Generation, to_state: GenerationState, to_owner: str, lease: timedelta
    ) -> Generation | None:
        now = datetime.now(UTC)
        changed = self._context.execute(
            """
            UPDATE generations
            SET state = :to_state, owner = :to_owner, lease_expires_at = :to_lease, updated_at = :now
            WHERE id = :id AND state = :state AND owner = :owner
            """,
            {
                "id": generation.id,
                "state": generation.state.value,
                "owner": generation.owner,
                "to_state": to_state.value,
                "to_owner": to_owner,
                "to_lease": now + lease,
                "now": now,
            },
        )
        if changed == 0:
            return None
        return replace(generation, state=to_state, owner=to_owner, lease_expires_at=now + lease)


def _dict_to_generation(row: dict[str, Any]) -> Generation:
    return Generation(
        id=row["id"],
        author_id=row["author_id"],
        fingerprint=row["fingerprint"],
        image_guid=row["image_guid"],
        state=GenerationState(row["state"]),
        owner=row["owner"],
        lease_expires_at=row["lease_expires_at"],
    )
