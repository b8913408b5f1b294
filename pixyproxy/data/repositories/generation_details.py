"""The generations as callers see them: one, several, and pages of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from pixyproxy.core.fields import GenerationState, UserClass
from pixyproxy.core.models import (
    Caller,
    GenerationDetail,
    GenerationFilter,
    GenerationKey,
    Image,
    ImageCreation,
    PagePosition,
    PartialImage,
)
from pixyproxy.data.database import Repository, Row, in_list
from pixyproxy.data.image_conditions import Conditions
from pixyproxy.data.repositories.images import ImageRepository

_SELECT = """
SELECT generations.id, generations.guid, generations.author_id, users.username AS author, users.guid AS author_guid,
  users.class_key AS author_class, generations.state,
  generations.request, generations.request_id, generations.image_guid, generations.created_at,
  generations.submitted_at, generations.finished_at, generations.updated_at, generations.attempts,
  generations.partials, generations.error
FROM generations JOIN users ON users.id = generations.author_id
"""
_SHOWN_STATES = tuple(state for state in GenerationState if state is not GenerationState.IMPORTED)


class GenerationDetailRepository(Repository):
    """The generations as callers see them, within one database context."""

    def find(self, key: GenerationKey, caller: Caller) -> GenerationDetail | None:
        """Return a generation that ``caller`` may see, or None: an own one, for an admin any."""
        if key.guid is not None:
            rows = self._rows("generations.guid = :guid", {"guid": key.guid})
        else:
            rows = self._rows(
                "generations.request_id = :request_id AND generations.author_id = :author_id",
                {"request_id": key.request_id, "author_id": caller.user_id},
            )
        rows = [
            row
            for row in rows
            if row["state"] in _SHOWN_STATES and (caller.is_admin or row["author_id"] == caller.user_id)
        ]
        return self._found(rows)[0] if rows else None

    def get_several(self, ids: Sequence[int]) -> list[GenerationDetail | None]:
        """Return generations by their ids, in the same order; None if there is none."""
        rows = self._rows(f"generations.id IN ({in_list(set(ids))})", {})
        found = {generation.id: generation for generation in self._found(rows)}
        return [found.get(generation_id) for generation_id in ids]

    def get_page(
        self, wanted: GenerationFilter, caller: Caller, *, limit: int, after: PagePosition | None
    ) -> list[GenerationDetail]:
        """Return the newest ``limit`` generations that match, after a position, and that ``caller`` may see."""
        ids = self._context.fetch_values(*_page_query(wanted, caller, limit, after))
        return [found for found in self.get_several(ids) if found is not None] if ids else []

    def _rows(self, condition: str, parameters: dict[str, Any]) -> list[Row]:
        return self._context.fetch_all(f"{_SELECT} WHERE {condition}", parameters)

    def _found(self, rows: Sequence[Row]) -> list[GenerationDetail]:
        """Read rows, with the images of those that have one."""
        succeeded = [row for row in rows if row["state"] == GenerationState.SUCCEEDED.value]
        # As their author sees them, whoever asks: other callers see no more.
        wanted = [(row["image_guid"], _author_of(row)) for row in succeeded]
        found = ImageRepository(self._context).get_several(wanted) if wanted else []
        images = {image.guid: image for image in found if image is not None}
        return [_dict_to_detail(row, images.get(row["image_guid"])) for row in rows]

    # --- Partial images ------------------------------------------------------------------------------------------

    def get_partials(self, wanted: Sequence[tuple[int, int]]) -> list[PartialImage | None]:
        """Return partial images by the ids of their generations and their indexes, in the same order."""
        places = " OR ".join(
            f"(generation_id = {int(generation_id)} AND image_index = {int(index)})"
            for generation_id, index in set(wanted)
        )
        rows = self._context.fetch_all(
            f"SELECT generation_id, image_index, content_type, data FROM partial_images WHERE {places}",  # noqa: S608
            {},
        )
        found = {
            (row["generation_id"], row["image_index"]): PartialImage.model_construct(
                index=row["image_index"], content_type=row["content_type"], data=bytes(row["data"])
            )
            for row in rows
        }
        return [found.get(place) for place in wanted]

    def delete_partials(self, before: datetime, limit: int) -> None:
        """Delete the partial images of generations that ended before a moment."""
        ids = self._context.fetch_values(
            f"""
            SELECT DISTINCT generation_id FROM partial_images
            JOIN generations ON generations.id = partial_images.generation_id
            WHERE generations.state <> :submitted AND generations.updated_at < :before LIMIT {limit}
            """,  # noqa: S608
            {"submitted": GenerationState.SUBMITTED.value, "before": before},
        )
        if ids:
            self._context.execute(f"DELETE FROM partial_images WHERE generation_id IN ({in_list(ids)})", {})  # noqa: S608

    # --- Retention -----------------------------------------------------------------------------------------------

    def forget_request(self, image_guid: str) -> None:
        """Remove the request, with its prompt, of the generation of an image that is deleted."""
        self._context.execute(
            "UPDATE generations SET request = NULL WHERE image_guid = :image_guid", {"image_guid": image_guid}
        )

    def forget_requests(self, before: datetime, limit: int, *, since: datetime) -> datetime | None:
        """Remove the requests of the oldest generations that ended without an image before a moment.

        Args:
            before: the moment.
            limit: the most requests to remove.
            since: skip the generations that were recorded before, which an earlier call has seen.

        Returns:
            The time to continue from, or None if there are no more.
        """
        # A branch for each state, which walks one index and stops at the limit.
        branches = " UNION ALL ".join(
            f"""
            SELECT id, created_at FROM (
              SELECT id, created_at FROM generations
              WHERE state = '{state.value}' AND created_at >= :since AND created_at < :before
                AND updated_at < :before AND request IS NOT NULL
              ORDER BY created_at LIMIT {limit}
            ) AS {state.name.lower()}
            """  # noqa: S608
            for state in (GenerationState.FAILED, GenerationState.CANCELLED, GenerationState.OUTCOME_UNKNOWN)
        )
        rows = self._context.fetch_all(
            f"{branches} ORDER BY created_at LIMIT {limit}", {"since": since, "before": before}
        )
        if rows:
            # The time again, because one that was queued again meanwhile needs its request.
            ids = in_list(row["id"] for row in rows)
            self._context.execute(
                f"UPDATE generations SET request = NULL WHERE id IN ({ids}) AND updated_at < :before",  # noqa: S608
                {"before": before},
            )
        return rows[-1]["created_at"] if len(rows) == limit else None


def _author_of(row: Row) -> Caller:
    return Caller.model_construct(
        user_id=row["author_id"],
        guid=row["author_guid"],
        username=row["author"],
        class_key=UserClass(row["author_class"]),
    )


def _dict_to_detail(row: Row, image: Image | None) -> GenerationDetail:
    state = GenerationState(row["state"])
    # The first release did not write when a generation ended; its row was not changed after that.
    finished_at = (row["finished_at"] or row["updated_at"]) if state.is_final else None
    read = {"state": state, "creation": _creation_of(row), "finished_at": finished_at, "image": image}
    return GenerationDetail.model_construct(**(row | read))


def _creation_of(row: Row) -> ImageCreation | None:
    if row["request"] is None:
        return None
    try:
        creation = ImageCreation.model_validate_json(row["request"])
    except ValidationError:
        return None  # Recorded by a later release, while the servers are updated one by one.
    return creation.model_copy(update={"request_id": row["request_id"]})


def _page_query(
    wanted: GenerationFilter, caller: Caller, limit: int, after: PagePosition | None
) -> tuple[str, dict[str, Any]]:
    """Return the query for the ids of a page, and its parameters.

    It has a branch for each state, which walks one index from its newest end and stops at the limit.
    """
    conditions = Conditions()
    states = dict.fromkeys(wanted.states or _SHOWN_STATES)
    parameters: dict[str, Any] = {"limit": limit} | {
        f"state{number}": state.value for number, state in enumerate(states)
    }
    conditions.add_author(caller, wanted.author)
    conditions.add_times("generations", wanted, after)
    branches = " UNION ALL ".join(
        f"SELECT id, created_at FROM (SELECT id, created_at FROM generations "  # noqa: S608
        f"WHERE {' AND '.join([f'state = :state{number}', *conditions.sql])} "
        f"ORDER BY created_at DESC, id DESC LIMIT :limit) AS branch{number}"
        for number in range(len(states))
    )
    sql = f"SELECT id FROM ({branches}) AS page ORDER BY created_at DESC, id DESC LIMIT :limit"  # noqa: S608
    return sql, parameters | conditions.parameters
