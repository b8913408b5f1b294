"""The generations: what was asked of the provider, written down before it was asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from pixyproxy.core.models import new_guid
from pixyproxy.data.database import DatabaseContext


class GenerationState(StrEnum):
    """How far a generation has come.

    From RECORDED and SENT it goes on only while its lease runs. A generation that FAILED cost nothing and may be
    begun again; one whose outcome is UNKNOWN may have been billed and is never sent again.
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
        fingerprint: a hash of the request; equal for equal requests.
        image_guid: the guid that its image has or will have.
        state: how far it has come.
        lease_expires_at: when whoever works on it must be taken for dead.
    """

    id: int
    fingerprint: str
    image_guid: str
    state: GenerationState
    lease_expires_at: datetime

    def is_abandoned(self, now: datetime) -> bool:
        """Whether it is unfinished and nobody works on it any more."""
        return self.state in (GenerationState.RECORDED, GenerationState.SENT) and self.lease_expires_at < now


class GenerationRepository:
    """The generations, within one database context."""

    def __init__(self, context: DatabaseContext) -> None:
        self._context = context

    def insert(self, *, author_id: int, request_id: str | None, fingerprint: str, lease: timedelta) -> Generation:
        """Record a generation that is about to begin.

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
            "lease_expires_at": now + lease,
            "now": now,
        }
        row["id"] = self._context.insert(
            """
            INSERT INTO generations
              (guid, author_id, request_id, fingerprint, image_guid, state, lease_expires_at, created_at, updated_at)
            VALUES (:guid, :author_id, :request_id, :fingerprint, :image_guid, :state, :lease_expires_at, :now, :now)
            """,
            row,
        )
        return _dict_to_generation(row)

    def find(self, author_id: int, request_id: str) -> Generation | None:
        """Return the generation that an author began under a request id, or None."""
        row = self._context.fetch_one(
            """
            SELECT id, fingerprint, image_guid, state, lease_expires_at FROM generations
            WHERE author_id = :author_id AND request_id = :request_id
            """,
            {"author_id": author_id, "request_id": request_id},
        )
        return None if row is None else _dict_to_generation(row)

    def move(
        self, generation: Generation, to_state: GenerationState, *, lease: timedelta = timedelta(0)
    ) -> Generation | None:
        """Bring a generation into another state, with a new lease, if it still is as it was read.

        Returns:
            The generation as it is now, or None where another worker has got hold of it, and nothing is changed.
        """
        now = datetime.now(UTC)
        moved = self._context.execute(
            """
            UPDATE generations SET state = :to_state, lease_expires_at = :to_lease, updated_at = :now
            WHERE id = :id AND state = :state AND lease_expires_at = :lease
            """,
            {
                "id": generation.id,
                "state": generation.state.value,
                "lease": generation.lease_expires_at,
                "to_state": to_state.value,
                "to_lease": now + lease,
                "now": now,
            },
        )
        return replace(generation, state=to_state, lease_expires_at=now + lease) if moved == 1 else None


def _dict_to_generation(row: dict[str, Any]) -> Generation:
    return Generation(
        id=row["id"],
        fingerprint=row["fingerprint"],
        image_guid=row["image_guid"],
        state=GenerationState(row["state"]),
        lease_expires_at=row["lease_expires_at"],
    )
