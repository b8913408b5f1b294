"""The details of images, and the index tables that they are found by."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pixyproxy.core.exceptions import ImageNotFoundError
from pixyproxy.core.models import Caller, Image, ImageDetail, ImageFilter, Usage, Visibility
from pixyproxy.core.search_terms import index_terms, query_terms
from pixyproxy.core.text import caseless_key, exact_key
from pixyproxy.data.database import Database, DatabaseContext

_COLUMNS = """
  images.id, images.guid, images.author_id, users.username AS author, images.filename, images.prompt, images.tags,
  images.visibility, images.content_type, images.size_bytes, images.sha256, images.width, images.height, images.model,
  images.input_tokens, images.output_tokens, images.total_tokens, images.created_at, images.updated_at
"""
_SELECT = f"SELECT {_COLUMNS} FROM images JOIN users ON users.id = images.author_id"  # noqa: S608
_INSERT = """
INSERT INTO images
  (guid, author_id, filename, filename_key, prompt, tags, visibility, content_type, size_bytes, sha256, width, height,
   model, input_tokens, output_tokens, total_tokens, created_at, updated_at)
VALUES
  (:guid, :author_id, :filename, :filename_key, :prompt, :tags, :visibility, :content_type, :size_bytes, :sha256,
   :width, :height, :model, :input_tokens, :output_tokens, :total_tokens, :created_at, :updated_at)
"""
# SQLite takes the longer to plan a query the more joins it has: 20 ms for 8 of them, seconds for 32. Joins let the
# database begin with the rarest term or tag; what is beyond these is only looked up for each image found so.
_MAX_JOINS = 6
# The last code point: what begins with a prefix lies between the prefix and the prefix followed by it.
_LAST_CHARACTER = "\U0010ffff"


@dataclass(frozen=True)
class ImagePosition:
    """A place in the order of images, which is newest first, and among equally new ones the last id first."""

    created_at: datetime
    id: int


class ImageRepository:
    """The images, within one database context."""

    def __init__(self, context: DatabaseContext) -> None:
        self._context = context

    def insert(self, detail: ImageDetail, author_id: int) -> Image:
        """Add an image.

        Raises:
            ConstraintViolationError: there is an image of that guid, or no such author.
        """
        row = _detail_to_dict(detail) | {"author_id": author_id}
        image_id = self._context.insert(_INSERT, row)
        self._insert_tags(image_id, detail.tags, detail.created_at)
        self._context.execute_many(
            "INSERT INTO image_terms (term, created_at, image_id) VALUES (:term, :created_at, :image_id)",
            [
                {"term": term, "created_at": detail.created_at, "image_id": image_id}
                for term in sorted(index_terms(detail.prompt))
            ],
        )
        return Image.model_construct(**dict(detail), id=image_id, author_id=author_id)

    def get(self, guid: str, caller: Caller | None) -> Image:
        """Return one image that ``caller`` may see.

        Raises:
            ImageNotFoundError: there is none, or the caller may not see it.
        """
        [image] = self.get_several([(guid, caller)])
        if image is None:
            raise ImageNotFoundError(guid)
        return image

    def get_several(self, wanted: Sequence[tuple[str, Caller | None]]) -> list[Image | None]:
        """Return images by guid, each for a caller of its own; None where there is none that the caller may see."""
        sql, parameters = _several_query(wanted)
        images = {row["guid"]: _dict_to_image(row) for row in self._context.fetch_all(sql, parameters)}
        found = [(images.get(guid), caller) for guid, caller in wanted]
        # Two callers may want the same image, of whom only one may see it.
        return [image if image is not None and _may_see(caller, image) else None for image, caller in found]

    def get_any(self, guid: str) -> Image:
        """Return one image, whoever may see it. Raises as ``get``."""
        row = self._context.fetch_one(f"{_SELECT} WHERE images.guid = :guid", {"guid": guid})
        if row is None:
            raise ImageNotFoundError(guid)
        return _dict_to_image(row)

    def lock(self, guid: str, database: Database) -> None:
        """Keep other transactions from changing an image until this one ends; no error where there is none."""
        self._context.fetch_one(f"SELECT id FROM images WHERE guid = :guid{database.for_update}", {"guid": guid})  # noqa: S608

    def get_page(
        self, image_filter: ImageFilter, caller: Caller | None, *, limit: int, after: ImagePosition | None
    ) -> list[Image]:
        """Return the newest ``limit`` images that match, that ``caller`` may see, and that come after a position."""
        query = _PageQuery.of(image_filter, caller, limit, after)
        if not query.branches:
            return []
        rows = self._context.fetch_all(query.sql(), query.parameters)
        return [_dict_to_image(row) for row in rows]

    def update(self, image: Image) -> None:
        """Store the filename, tags, visibility and updated_at of an image; nothing else of it can change."""
        self._context.execute(
            """
            UPDATE images SET filename = :filename, filename_key = :filename_key, tags = :tags,
              visibility = :visibility, updated_at = :updated_at
            WHERE id = :id
            """,
            _detail_to_dict(image) | {"id": image.id},
        )
        self._context.execute("DELETE FROM image_tags WHERE image_id = :image_id", {"image_id": image.id})
        self._insert_tags(image.id, image.tags, image.created_at)

    def delete(self, image_id: int) -> None:
        """Delete an image and what it is found by."""
        self._context.execute("DELETE FROM images WHERE id = :id", {"id": image_id})

    def _insert_tags(self, image_id: int, tags: Sequence[str], created_at: datetime) -> None:
        self._context.execute_many(
            "INSERT INTO image_tags (tag_key, created_at, image_id) VALUES (:tag_key, :created_at, :image_id)",
            [{"tag_key": exact_key(tag), "created_at": created_at, "image_id": image_id} for tag in tags],
        )


# --- Conversions -----------------------------------------------------------------------------------------------------


def _detail_to_dict(detail: ImageDetail) -> dict[str, Any]:
    usage = detail.usage
    return {
        "guid": detail.guid,
        "filename": detail.filename,
        "filename_key": caseless_key(detail.filename),
        "prompt": detail.prompt,
        "tags": json.dumps(detail.tags, ensure_ascii=False),
        "visibility": detail.visibility.value,
        "content_type": detail.content_type,
        "size_bytes": detail.size_bytes,
        "sha256": detail.sha256,
        "width": detail.width,
        "height": detail.height,
        "model": detail.model,
        "input_tokens": usage and usage.input_tokens,
        "output_tokens": usage and usage.output_tokens,
        "total_tokens": usage and usage.total_tokens,
        "created_at": detail.created_at,
        "updated_at": detail.updated_at,
    }


def _dict_to_image(row: Mapping[str, Any]) -> Image:
    """Make an image of a row, which was checked when it was stored and is not checked again."""
    values = dict(row)
    tokens = {name: values.pop(name) for name in ("input_tokens", "output_tokens", "total_tokens")}
    values["usage"] = None if tokens["total_tokens"] is None else Usage.of_checked(tokens)
    values["tags"] = tuple(json.loads(values["tags"]))
    values["visibility"] = Visibility(values["visibility"])
    return Image.of_checked(values)


# --- What a caller may see -------------------------------------------------------------------------------------------


def _may_see(caller: Caller | None, image: Image) -> bool:
    if image.visibility is Visibility.PUBLIC:
        return True
    return caller is not None and (caller.is_admin or caller.user_id == image.author_id)


def _several_query(wanted: Sequence[tuple[str, Caller | None]]) -> tuple[str, dict[str, Any]]:
    """Return the query for images by guid and its parameters.

    It leaves out what callers may not see, so that to ask for an image that is hidden takes as long as for one that
    there is not.
    """
    guids_by_scope: dict[str, list[str]] = defaultdict(list)
    parameters: dict[str, Any] = {}
    for number, (guid, caller) in enumerate(wanted):
        parameters[f"guid{number}"] = guid
        guids_by_scope[_scope_of(caller, parameters)].append(f":guid{number}")
    branches = [f"(images.guid IN ({', '.join(guids)}) AND {scope})" for scope, guids in guids_by_scope.items()]
    return f"{_SELECT} WHERE {' OR '.join(branches)}", parameters


def _scope_of(caller: Caller | None, parameters: dict[str, Any]) -> str:
    """Return the condition for what a caller may see, and add its parameters."""
    public = f"images.visibility = {Visibility.PUBLIC.value}"
    if caller is None:
        return public
    if caller.is_admin:
        return "1 = 1"
    name = f"caller{caller.user_id}"
    parameters[name] = caller.user_id
    return f"({public} OR images.author_id = :{name})"


# --- The query for a page --------------------------------------------------------------------------------------------


@dataclass
class _PageQuery:
    """The query for a page, in branches that each walk one index from its newest end and stop at the limit.

    What a user may see is one's own and what is public. As one condition with OR no index serves it; as two branches,
    each has one.
    """

    branches: list[str]
    joins: list[str] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, image_filter: ImageFilter, caller: Caller | None, limit: int, after: ImagePosition | None
    ) -> _PageQuery:
        query = cls(_branches_of(image_filter, caller), parameters={"limit": limit})
        if caller is not None:
            query.parameters["caller_id"] = caller.user_id
        query._add_columns(image_filter)
        query._add_tags(image_filter)
        query._add_terms(image_filter)
        query._add_position(after)
        return query

    def sql(self) -> str:
        ids = " UNION ".join(self._branch_sql(number, scope) for number, scope in enumerate(self.branches))
        return (
            f"SELECT {_COLUMNS} FROM ({ids}) AS page "  # noqa: S608
            "JOIN images ON images.id = page.id JOIN users ON users.id = images.author_id "
            "ORDER BY images.created_at DESC, images.id DESC LIMIT :limit"
        )

    def _branch_sql(self, number: int, scope: str) -> str:
        conditions = " AND ".join([scope, *self.conditions])
        return (
            "SELECT id FROM ("  # noqa: S608
            f"SELECT images.id FROM images {' '.join(self.joins)} WHERE {conditions} "
            f"ORDER BY images.created_at DESC, images.id DESC LIMIT :limit) AS branch{number}"
        )

    def _add(self, condition: str, **parameters: Any) -> None:
        self.conditions.append(condition)
        self.parameters.update(parameters)

    def _add_columns(self, image_filter: ImageFilter) -> None:
        if image_filter.visibility is not None:
            self._add("images.visibility = :visibility", visibility=image_filter.visibility.value)
        if image_filter.guid is not None:
            self._add("images.guid = :guid", guid=image_filter.guid)
        if image_filter.filename is not None:
            self._add("INSTR(images.filename_key, :filename_key) > 0", filename_key=caseless_key(image_filter.filename))
        if image_filter.author is not None:
            self._add(
                "images.author_id = (SELECT id FROM users WHERE username_key = :author_key)",
                author_key=exact_key(image_filter.author),
            )
        if image_filter.created_after is not None:
            self._add("images.created_at > :created_after", created_after=image_filter.created_after)
        if image_filter.created_before is not None:
            self._add("images.created_at < :created_before", created_before=image_filter.created_before)

    def _add_tags(self, image_filter: ImageFilter) -> None:
        for number, tag in enumerate(image_filter.tags):
            self._join("image_tags", f"tag{number}", "tag_key", exact_key(tag))

    def _add_terms(self, image_filter: ImageFilter) -> None:
        for number, term in enumerate(query_terms(image_filter.prompt or "")):
            name = f"term{number}"
            if term.is_prefix:
                self._add(
                    f"EXISTS (SELECT 1 FROM image_terms WHERE image_terms.image_id = images.id "  # noqa: S608
                    f"AND image_terms.term >= :{name} AND image_terms.term < :{name}_end)",
                    **{name: term.text, f"{name}_end": term.text + _LAST_CHARACTER},
                )
            else:
                self._join("image_terms", name, "term", term.text)

    def _join(self, table: str, name: str, column: str, value: str) -> None:
        condition = (
            f"{name}.{column} = :{name} AND {name}.created_at = images.created_at AND {name}.image_id = images.id"
        )
        if len(self.joins) < _MAX_JOINS:
            self.joins.append(f"JOIN {table} AS {name} ON {condition}")
        else:
            self.conditions.append(f"EXISTS (SELECT 1 FROM {table} AS {name} WHERE {condition})")  # noqa: S608
        self.parameters[name] = value

    def _add_position(self, after: ImagePosition | None) -> None:
        if after is not None:
            # Spelt so that both servers walk the index from here; as (a, b) < (x, y) neither does.
            self._add(
                "images.created_at <= :after_created_at "
                "AND (images.created_at < :after_created_at OR images.id < :after_id)",
                after_created_at=after.created_at,
                after_id=after.id,
            )


def _branches_of(image_filter: ImageFilter, caller: Caller | None) -> list[str]:
    """Return the conditions whose union is what a caller may see, without those that the filter leaves empty."""
    public = f"images.visibility = {Visibility.PUBLIC.value}"
    own = "images.author_id = :caller_id"
    if caller is not None and caller.is_admin:
        return ["1 = 1"]
    if image_filter.visibility is Visibility.PUBLIC:
        return [public]
    if image_filter.visibility is Visibility.PRIVATE:
        return [] if caller is None else [own]
    return [public] if caller is None else [public, own]
