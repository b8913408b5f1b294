"""The generations: every request to generate an image, recorded before the provider is asked, and its outcome.

The table is the queue, too: generation workers of any server claim from it. It also has the request ids of imports,
which must differ from those of generations.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pixyproxy.core.error_records import to_record
from pixyproxy.core.exceptions import PixyProxyException
from pixyproxy.core.fields import GenerationState, UserClass, new_guid
from pixyproxy.core.models import Caller, Cost, ImageCreation, PartialImage, QuotaLimits
from pixyproxy.data.database import Row, in_list, named_list
from pixyproxy.data.repositories.audit_outbox import RECOVERY, AuditOutboxRepository
from pixyproxy.data.repositories.leased import NOBODY, LeasedRepository

_COLUMNS = """
  generations.id, generations.author_id, generations.fingerprint, generations.image_guid, generations.state,
  generations.lease_expires_at, generations.attempts, generations.partials, generations.created_at, generations.error,
  generations.reserved_nano_usd, generations.submitted_at
"""

# The default of not_before_at. The time of the record may be later than now, if the clock was wrong.
_AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Generation:
    """One generation.

    Attributes:
        id: the row's id.
        author_id: the id of the user that it is for.
        fingerprint: a hash of the request; equal for equal requests.
        image_guid: the guid that its image has or will have.
        state: how far it has come.
        lease_expires_at: when the worker that has submitted it is considered dead.
        attempts: how often it was submitted.
        partials: how many partial images have come.
        created_at: when it was recorded.
        error: the record of the error that ended it, or None; see ``pixyproxy.core.error_records``.
        reserved_nano_usd: what it was assumed to cost at most when it was submitted, or None.
        submitted_at: when it was submitted last, or None; tells one submission from a later one.
    """

    id: int
    author_id: int
    fingerprint: str
    image_guid: str
    state: GenerationState
    lease_expires_at: datetime
    attempts: int
    created_at: datetime
    partials: int = 0
    error: str | None = None
    reserved_nano_usd: int | None = None
    submitted_at: datetime | None = None

    @property
    def is_owned(self) -> bool:
        """Whether a process works on it, or did when it died."""
        return self.state in (GenerationState.RECORDED, GenerationState.SUBMITTED)

    @property
    def is_leased(self) -> bool:
        """Whether a process works on it that counts as alive."""
        return self.is_owned and self.lease_expires_at >= datetime.now(UTC)

    def age(self) -> float:
        """Return the seconds since it was recorded."""
        return (datetime.now(UTC) - self.created_at).total_seconds()


@dataclass(frozen=True)
class RequestContext:
    """The call that a generation is recorded for.

    Attributes:
        call_id: its id in the log.
        trace_headers: the headers that continue its trace.
        deadline_at: when its caller stops waiting, or None for never.
        is_detached: whether the generation goes on when nobody waits for it.
    """

    call_id: str = "-"
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    deadline_at: datetime | None = None
    is_detached: bool = False


@dataclass(frozen=True)
class QueuedGeneration:
    """A queued generation, and what is needed to run it.

    Attributes:
        generation: the generation.
        creation: its request.
        author: who it is for.
        context: the call that it was recorded for.
        limits: the stored limits of its author, or None.
        is_author_removed: whether its author was removed.
    """

    generation: Generation
    creation: ImageCreation
    author: Caller
    context: RequestContext
    limits: QuotaLimits | None = None
    is_author_removed: bool = False


class GenerationRepository(LeasedRepository):
    """The generations, within one database context."""

    states = GenerationState

    # --- Record --------------------------------------------------------------------------------------------------

    def insert(self, creation: ImageCreation, author_id: int, fingerprint: str, context: RequestContext) -> Generation:
        """Record a request; it is queued from now on.

        Raises:
            ConstraintViolationError: the author has used the request id before.
        """
        now = datetime.now(UTC)
        row = _request_to_dict(creation, context) | {
            "guid": new_guid(),
            "author_id": author_id,
            "request_id": creation.request_id,
            "fingerprint": fingerprint,
            "image_guid": new_guid(),
            "state": GenerationState.QUEUED.value,
            "owner": NOBODY,
            "lease_expires_at": now,
            "attempts": 0,
            "partials": 0,
            "created_at": now,
            "updated_at": now,
            "error": None,
            "reserved_nano_usd": None,
            "submitted_at": None,
        }
        return _dict_to_generation(row | {"id": self._context.insert_row("generations", row)})

    def insert_import(self, author_id: int, request_id: str, fingerprint: str, image_guid: str) -> None:
        """Record the request id of an import; the row never changes.

        Raises:
            ConstraintViolationError: the author has used the request id before.
        """
        times = ("lease_expires_at", "created_at", "finished_at", "updated_at")
        self._context.insert_row(
            "generations",
            {
                "guid": new_guid(),
                "author_id": author_id,
                "request_id": request_id,
                "fingerprint": fingerprint,
                "image_guid": image_guid,
                "state": GenerationState.IMPORTED.value,
                "owner": NOBODY,
                **dict.fromkeys(times, datetime.now(UTC)),
            },
        )

    def queue_again(
        self, generation: Generation, creation: ImageCreation, context: RequestContext
    ) -> Generation | None:
        """Queue a generation that has cost nothing again; return None if it has changed since it was read."""
        queued = self._change(
            """
            UPDATE generations
            SET state = :queued, request = :request, call_id = :call_id, trace_headers = :trace_headers,
              deadline_at = :deadline_at, is_detached = :is_detached, not_before_at = :at_once, attempts = 0,
              partials = 0, submitted_at = NULL, finished_at = NULL, error = NULL, updated_at = :now
            WHERE id = :id AND state = :state
            """,
            **_request_to_dict(creation, context),
            id=generation.id,
            state=generation.state.value,
            at_once=_AT_ONCE,
        )
        if not queued:
            return None
        return replace(generation, state=GenerationState.QUEUED, attempts=0, partials=0, error=None, submitted_at=None)

    def detach(self, generation_id: int) -> bool:
        """Let a generation go on, or be queued again, when nobody waits for it; return False if it has ended."""
        return self._change(
            """
            UPDATE generations SET is_detached = 1, deadline_at = NULL, updated_at = :now
            WHERE id = :id AND state IN (:queued, :submitted)
            """,
            id=generation_id,
        )

    # --- Read ----------------------------------------------------------------------------------------------------

    def find(self, author_id: int, request_id: str) -> Generation | None:
        """Return the generation that an author has requested with a request id, or None."""
        found = self._select(
            "author_id = :author_id AND request_id = :request_id", author_id=author_id, request_id=request_id
        )
        return found[0] if found else None

    def find_by_image(self, image_guid: str) -> Generation | None:
        """Return the generation of an image, generated or not, or None."""
        found = self._select("image_guid = :image_guid", image_guid=image_guid)
        return found[0] if found else None

    def get_several(self, ids: Collection[int]) -> list[Generation]:
        """Return generations by their ids."""
        return self._select(f"id IN ({in_list(ids)})") if ids else []

    def get_expired(self, limit: int) -> list[Generation]:
        """Return generations that were submitted, or about to be, by a process whose lease has expired."""
        return self._select(
            f"state IN (:submitted, :recorded) AND lease_expires_at < :now ORDER BY id LIMIT {limit}",
            submitted=GenerationState.SUBMITTED.value,
            recorded=GenerationState.RECORDED.value,
            now=datetime.now(UTC),
        )

    def get_released(self, limit: int) -> list[Generation]:
        """Return submitted generations whose workers have ended for certain; see ``expire_leases``."""
        return self._select(
            f"state = :submitted AND owner = :nobody ORDER BY id LIMIT {limit}",
            submitted=GenerationState.SUBMITTED.value,
            nobody=NOBODY,
        )

    def deadline_of(self, generation_id: int) -> datetime | None:
        """Return when the caller of a generation stops waiting, or None for never."""
        return self._context.fetch_value("SELECT deadline_at FROM generations WHERE id = :id", {"id": generation_id})

    def count_queued(self) -> dict[int, int]:
        """Return the number of queued generations of each author who has any."""
        rows = self._context.fetch_all(
            "SELECT author_id, COUNT(*) AS queued FROM generations WHERE state = :state GROUP BY author_id",
            {"state": GenerationState.QUEUED.value},
        )
        return {row["author_id"]: row["queued"] for row in rows}

    # --- Claim ---------------------------------------------------------------------------------------------------

    def oldest_queued(self, left_out: Collection[int] = ()) -> tuple[dict[int, int], int]:
        """Find the generations that may be claimed now, except those whose ids are in ``left_out``.

        Returns:
            The id of the oldest one of each author who has any, and the number of all.
        """
        others = f"AND id NOT IN ({in_list(left_out)})" if left_out else ""
        rows = self._context.fetch_all(
            f"""
            SELECT author_id, MIN(id) AS id, COUNT(*) AS queued FROM generations
            WHERE state = :state AND not_before_at <= :now {others}
            GROUP BY author_id
            """,  # noqa: S608
            {"state": GenerationState.QUEUED.value, "now": datetime.now(UTC)},
        )
        return {row["author_id"]: row["id"] for row in rows}, sum(row["queued"] for row in rows)

    def get_queued(self, generation_id: int) -> QueuedGeneration | None:
        """Return a generation with its request, or None if it is no longer queued."""
        row = self._context.fetch_one(
            f"""
            SELECT {_COLUMNS}, generations.request, generations.request_id, generations.call_id,
              generations.trace_headers, generations.deadline_at,
              users.guid AS author_guid, users.username, users.class_key, users.removed_at,
              quotas.author_id AS limited_author_id, {", ".join(QuotaLimits.model_fields)}
            FROM generations JOIN users ON users.id = generations.author_id
              LEFT JOIN quotas ON quotas.author_id = generations.author_id
            WHERE generations.id = :id AND generations.state = :state
            """,  # noqa: S608
            {"id": generation_id, "state": GenerationState.QUEUED.value},
        )
        return None if row is None else _dict_to_queued(row)

    def submit(
        self,
        generation_id: int,
        owner: str,
        lease: timedelta,
        model: str | None = None,
        reserved_nano_usd: int | None = None,
    ) -> datetime | None:
        """Note that a worker is about to submit a queued generation; return when, or None if it is no longer queued.

        Args:
            generation_id: its id.
            owner: the worker.
            lease: how long its lease lasts.
            model: the model that it is submitted to, for the usage.
            reserved_nano_usd: what it costs at most, or None if that is unknown.
        """
        now = datetime.now(UTC)
        is_submitted = self._change(
            """
            UPDATE generations
            SET state = :submitted, owner = :owner, lease_expires_at = :lease_expires_at, submitted_at = :now,
              attempts = attempts + 1, model = :model, reserved_nano_usd = :reserved_nano_usd, updated_at = :now
            WHERE id = :id AND state = :queued
            """,
            id=generation_id,
            owner=owner,
            model=model,
            reserved_nano_usd=reserved_nano_usd,
            lease_expires_at=now + lease,
            now=now,
        )
        return now if is_submitted else None

    def renew_leases(self, owners: Sequence[str], lease: timedelta) -> None:
        """Renew the leases of all submitted generations of some owners."""
        names, parameters = named_list("owner", owners)
        self._context.execute(
            f"UPDATE generations SET lease_expires_at = :lease_expires_at WHERE owner IN ({names}) AND state = :state",  # noqa: S608
            parameters | {"lease_expires_at": datetime.now(UTC) + lease, "state": GenerationState.SUBMITTED.value},
        )

    def expire_leases(self, owner: str) -> None:
        """End the leases of an owner that has certainly died, so that nobody renews them."""
        self._change(
            """
            UPDATE generations SET lease_expires_at = :past, owner = :nobody
            WHERE state = :submitted AND owner = :owner
            """,
            owner=owner,
            past=datetime.now(UTC) - timedelta(seconds=1),
        )

    def add_partial(self, generation_id: int, owner: str, partial: PartialImage) -> bool:
        """Store a partial image; return False if the generation is not the owner's any more."""
        changed = self._change(
            """
            UPDATE generations
            SET partials = CASE WHEN partials < :partials THEN :partials ELSE partials END, updated_at = :now
            WHERE id = :id AND state = :submitted AND owner = :owner
            """,
            id=generation_id,
            owner=owner,
            partials=partial.index + 1,
        )
        if changed:
            self._context.execute(
                """
                REPLACE INTO partial_images (generation_id, image_index, content_type, data)
                VALUES (:id, :index, :content_type, :data)
                """,
                {"id": generation_id, **dict(partial)},
            )
        return changed

    # --- Finish --------------------------------------------------------------------------------------------------

    def queue_later(self, generation: Generation, not_before: datetime) -> bool:
        """Queue a generation again after a submission that cost nothing; return False if that has ended."""
        return self._change(
            """
            UPDATE generations SET state = :queued, owner = :nobody, not_before_at = :not_before_at, updated_at = :now
            WHERE id = :id AND state = :submitted AND submitted_at = :submitted_at
            """,
            id=generation.id,
            submitted_at=generation.submitted_at,
            not_before_at=not_before,
        )

    def take_back(self, generation_id: int, owner: str) -> None:
        """Queue a generation again that was claimed by its owner and never submitted."""
        self._change(
            # submitted_at before attempts: MySQL evaluates the assignments in this order, with the new values.
            """
            UPDATE generations
            SET state = :queued, owner = :nobody, submitted_at = CASE attempts WHEN 1 THEN NULL ELSE submitted_at END,
              attempts = attempts - 1, updated_at = :now
            WHERE id = :id AND state = :submitted AND owner = :owner
            """,
            id=generation_id,
            owner=owner,
        )

    def end(
        self,
        generation: Generation,
        state: GenerationState,
        error: PixyProxyException,
        *,
        if_expired: bool = False,
        unless_detached: bool = False,
    ) -> bool:
        """Note that a generation has ended without an image.

        Args:
            generation: as it was read. If it was submitted, a later submission does not end.
            state: what it is now.
            error: why.
            if_expired: only if its lease has expired.
            unless_detached: not if it goes on when nobody waits for it.

        Returns:
            False if it is in another state by now, and nothing is changed.
        """
        is_submission = generation.state is not GenerationState.QUEUED and generation.submitted_at is not None
        changed = self._change(
            f"""
            UPDATE generations
            SET state = :to_state, owner = :nobody, error = :error, finished_at = :now, updated_at = :now
            WHERE id = :id AND state = :state {"AND lease_expires_at < :now" if if_expired else ""}
              {"AND is_detached = 0" if unless_detached else ""}
              {"AND submitted_at = :submitted_at" if is_submission else ""}
            """,  # noqa: S608
            id=generation.id,
            state=generation.state.value,
            submitted_at=generation.submitted_at,
            to_state=state.value,
            error=to_record(error),
        )
        if changed:
            self._audit(
                generation.id, f"generation.{state.name.lower()}", actor=RECOVERY if if_expired else None, error=error
            )
        return changed

    def cancel(self, generation_id: int, error: PixyProxyException, canceller: str | None = None) -> bool:
        """Cancel a queued generation; return False if it is no longer queued.

        Args:
            generation_id: its id.
            error: the error for those who wait for it.
            canceller: the username of who cancels it; by default its author.
        """
        cancelled = self._change(
            """
            UPDATE generations SET state = :cancelled, error = :error, finished_at = :now, updated_at = :now
            WHERE id = :id AND state = :queued
            """,
            id=generation_id,
            error=to_record(error),
        )
        if cancelled:
            self._audit(generation_id, "generation.cancelled", actor=canceller, error=error)
        return cancelled

    def cancel_all(self, author_id: int, error: PixyProxyException, canceller: str) -> None:
        """Cancel all queued generations of an author; see ``cancel``."""
        ids = self._context.fetch_values(
            "SELECT id FROM generations WHERE state = :state AND author_id = :author_id",
            {"state": GenerationState.QUEUED.value, "author_id": author_id},
        )
        for generation_id in ids:
            self.cancel(generation_id, error, canceller)

    def succeed(self, generation: Generation, cost: Cost | None = None) -> bool:
        """Note that the image of a generation is stored; return False if that was noted before.

        Whoever has the image may do so, even if the owner was considered dead meanwhile, and whatever the state: a
        database that was restored from a backup knows less than an image proves.
        """
        changed = self._change(
            """
            UPDATE generations
            SET state = :succeeded, owner = :nobody, error = NULL, finished_at = :now, updated_at = :now
            WHERE id = :id AND state <> :succeeded
            """,
            id=generation.id,
        )
        if changed:
            self._audit(generation.id, "image.created", cost=cost)
        return changed

    def _audit(
        self,
        generation_id: int,
        action: str,
        *,
        actor: str | None = None,
        error: PixyProxyException | None = None,
        cost: Cost | None = None,
    ) -> None:
        """Add the end of a generation to the audit log; ``actor`` is by default its author."""
        if not self._context.is_audited:
            return
        row = self._context.fetch_one(
            """
            SELECT generations.guid, generations.image_guid, generations.call_id, users.username
            FROM generations JOIN users ON users.id = generations.author_id WHERE generations.id = :id
            """,
            {"id": generation_id},
        )
        assert row is not None  # noqa: S101  this transaction has changed it
        author, facts = row["username"], {}
        if cost is not None:
            facts["cost"] = dict(cost)
        if error is None:
            facts["generation_guid"] = row["guid"]
        guid = row["guid"] if error else row["image_guid"]
        AuditOutboxRepository(self._context).add(
            action, actor or author, guid, error=error, call_id=row["call_id"], author=author, **facts
        )

    def _select(self, condition: str, **parameters: Any) -> list[Generation]:
        rows = self._context.fetch_all(
            f"SELECT {_COLUMNS} FROM generations WHERE {condition}",  # noqa: S608
            parameters,
        )
        return [_dict_to_generation(row) for row in rows]


def _request_to_dict(creation: ImageCreation, context: RequestContext) -> Row:
    return {
        "request": creation.model_dump_json(exclude={"request_id"}),
        "call_id": context.call_id,
        "trace_headers": json.dumps(dict(context.trace_headers)),
        "deadline_at": context.deadline_at,
        "is_detached": int(context.is_detached),
    }


def _dict_to_generation(row: Row) -> Generation:
    columns = {name: row[name] for name in Generation.__dataclass_fields__}
    return Generation(**(columns | {"state": GenerationState(row["state"])}))


def _dict_to_queued(row: Row) -> QueuedGeneration:
    return QueuedGeneration(
        generation=_dict_to_generation(row),
        creation=ImageCreation.model_validate_json(row["request"]).model_copy(update={"request_id": row["request_id"]}),
        author=Caller(
            user_id=row["author_id"],
            guid=row["author_guid"],
            username=row["username"],
            class_key=UserClass(row["class_key"]),
        ),
        context=RequestContext(
            call_id=row["call_id"],
            trace_headers=json.loads(row["trace_headers"]),
            deadline_at=row["deadline_at"],
        ),
        limits=None
        if row["limited_author_id"] is None
        else QuotaLimits.of_checked({name: row[name] for name in QuotaLimits.model_fields}),
        is_author_removed=row["removed_at"] is not None,
    )
