"""The details of images. Pages that need the search index come from ``search.query``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pixyproxy.core.exceptions import ImageNotFoundError
from pixyproxy.core.fields import Origin, Visibility
from pixyproxy.core.models import (
    Caller,
    Cost,
    GenerationOptions,
    Image,
    ImageDetail,
    ImageFile,
    ImageFilter,
    PagePosition,
    Usage,
)
from pixyproxy.core.text import caseless_key
from pixyproxy.data.database import DatabaseContext, Row, in_list, named_list
from pixyproxy.data.image_conditions import (
    PUBLIC,
    Conditions,
    scope_of,
    without_index,
)
from pixyproxy.data.repositories.image_costs import ImageCostRepository
from pixyproxy.data.repositories.usage import Spending, UsageRepository
from pixyproxy.data.search.index import Indexed, SearchIndexRepository
from pixyproxy.data.search.limits import DEFAULT_LIMITS, SearchBudget, SearchLimits
from pixyproxy.data.search.query import ImageSearch

Visible = TypeVar("Visible", Image, ImageFile)

_COLUMNS = """
  images.id, images.guid, images.author_id, users.username AS author, images.filename, images.prompt, images.tags,
  images.visibility, images.content_type, images.size_bytes, images.sha256, images.width, images.height, images.model,
  images.input_tokens, images.output_tokens, images.total_tokens, images.input_text_tokens, images.input_image_tokens,
  images.output_text_tokens, images.output_image_tokens, images.options, images.origin, images.source_guids,
  images.cost_nano_usd, images.price_list, images.placeholder, images.created_at, images.updated_at
"""
_SELECT = f"SELECT {_COLUMNS} FROM images JOIN users ON users.id = images.author_id"  # noqa: S608
_SELECT_FILES = """
SELECT images.guid, images.author_id, images.visibility, images.filename, images.content_type, images.size_bytes,
  images.sha256, images.width, images.height
FROM images
"""
_SELECT_SOURCES = "SELECT images.guid, images.author_id, images.visibility FROM images"
_SELECT_INDEXED = "SELECT prompt, filename, tags, author_id, visibility FROM images WHERE id = :id"


class ImageRepository:
    """The images, within one database context."""

    def __init__(self, context: DatabaseContext, limits: SearchLimits = DEFAULT_LIMITS) -> None:
        self._context = context
        self._limits = limits
        self._budget = SearchBudget.of(limits)
        self._index = SearchIndexRepository(context, limits.layout)

    def insert(self, detail: ImageDetail, author_id: int, reserved_nano_usd: int | None = None) -> Image:
        """Add an image, and count it in the usage if its detail says what it cost, or that this is unknown.

        If the cost is unknown, quotas count ``reserved_nano_usd``.

        Raises:
            ConstraintViolationError: the guid is taken, or the author does not exist.
        """
        row = detail_to_dict(detail) | {"author_id": author_id}
        image_id = self._context.insert_row("images", row)
        indexed = Indexed(detail.prompt, detail.filename, detail.tags, author_id, detail.visibility)
        self._index.add(image_id, indexed)
        if row["is_accounted"] and detail.origin is not Origin.IMPORTED:
            UsageRepository(self._context).add(
                [Spending.of(author_id, detail.created_at, detail.model, detail.usage, detail.cost, reserved_nano_usd)]
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
        """Return images by guid, each for a caller of its own; None in place of one that this caller may not see."""
        sql, parameters = _several_query(wanted)
        images = {row["guid"]: _dict_to_image(row) for row in self._context.fetch_all(sql, parameters)}
        visible = zip(_only_visible(wanted, images), (caller for _, caller in wanted), strict=True)
        return self._with_visible_sources(list(visible))

    def get_files(self, wanted: Sequence[tuple[str, Caller | None]]) -> list[ImageFile | None]:
        """Return what is stored of images, as ``get_several`` returns their details."""
        sql, parameters = _several_query(wanted, _SELECT_FILES)
        files = {row["guid"]: ImageFile.of_checked(row) for row in self._context.fetch_all(sql, parameters)}
        return _only_visible(wanted, files)

    def _with_visible_sources(self, found: Sequence[tuple[Image | None, Caller | None]]) -> list[Image | None]:
        """Return images without those sources that are deleted, or that the caller beside each may not see."""
        wanted = {(guid, caller) for image, caller in found if image is not None for guid in image.source_guids}
        if not wanted:
            return [image for image, _ in found]
        sql, parameters = _several_query(tuple(wanted), _SELECT_SOURCES)
        sources = {row["guid"]: _Source(**row) for row in self._context.fetch_all(sql, parameters)}
        return [None if image is None else _without_hidden_sources(image, caller, sources) for image, caller in found]

    def get_any(self, guid: str) -> Image:
        """Return one image, whether or not a caller may see it. Raises as ``get``."""
        found = self.find_any([guid])
        if not found:
            raise ImageNotFoundError(guid)
        return found[guid]

    def find_any(self, guids: Collection[str]) -> dict[str, Image]:
        """Return the images of guids, by guid, whether or not a caller may see them."""
        names, parameters = named_list("guid", guids)
        rows = self._context.fetch_all(f"{_SELECT} WHERE images.guid IN ({names})", parameters)
        return {row["guid"]: _dict_to_image(row) for row in rows}

    def has(self, guid: str) -> bool:
        """Tell whether there is an image, whether or not a caller may see it."""
        return self._context.fetch_one("SELECT id FROM images WHERE guid = :guid", {"guid": guid}) is not None

    def lock(self, guid: str) -> None:
        """Lock an image against changes by other transactions until this one ends; no error if it does not exist."""
        self._context.fetch_one(f"SELECT id FROM images WHERE guid = :guid{self._context.for_update}", {"guid": guid})  # noqa: S608

    def get_page(
        self, image_filter: ImageFilter, caller: Caller | None, *, limit: int, after: PagePosition | None
    ) -> tuple[list[Image], PagePosition | None]:
        """Return the newest ``limit`` images that match, that ``caller`` may see, and that come after a position.

        Also return None, or the position from which to continue if the searches of this repository have read as much
        as one page may: then there may be fewer images, or none.
        """
        if _takes_search(image_filter, caller):
            return self._search(image_filter, caller, limit=limit, after=after)
        sql, parameters = _page_query(image_filter, caller, limit, after)
        return self._page_of(self._context.fetch_all(sql, parameters), caller), None

    def _page_of(self, rows: Sequence[Row], caller: Caller | None) -> list[Image]:
        page = self._with_visible_sources([(_dict_to_image(row), caller) for row in rows])
        return [image for image in page if image is not None]

    def _search(
        self, image_filter: ImageFilter, caller: Caller | None, *, limit: int, after: PagePosition | None
    ) -> tuple[list[Image], PagePosition | None]:
        parameters: dict[str, Any] = {}
        scope = scope_of(caller, parameters)
        while True:
            image_ids, end = ImageSearch(
                self._context,
                image_filter,
                caller,
                limit=limit,
                after=after,
                limits=self._limits,
                budget=self._budget,
            ).find()
            if not image_ids:
                return [], end
            sql = f"{_SELECT} WHERE images.id IN ({in_list(image_ids)}) AND {without_index(scope)}"
            rows = self._context.fetch_all(sql, parameters)
            if len(rows) == len(image_ids):
                places = {image_id: place for place, image_id in enumerate(image_ids)}
                return self._page_of(sorted(rows, key=lambda row: places[row["id"]]), caller), end
            # An image was deleted or hidden meanwhile. A page that is too short would be taken for the last one.

    def update(self, image: Image) -> None:
        """Store the filename, tags, visibility and updated_at of an image; the other fields never change."""
        before = self._get_indexed(image.id)
        if before is None:
            return
        self._context.execute(
            """
            UPDATE images SET filename = :filename, filename_key = :filename_key, tags = :tags,
              visibility = :visibility, updated_at = :updated_at
            WHERE id = :id
            """,
            detail_to_dict(image) | {"id": image.id},
        )
        after = replace(before, filename=image.filename, tags=image.tags, visibility=image.visibility)
        self._index.change(image.id, before, after)

    def set_placeholder(self, guid: str, placeholder: bytes) -> None:
        """Store the placeholder of an image, if the image exists."""
        self._context.execute(
            "UPDATE images SET placeholder = :placeholder WHERE guid = :guid",
            {"guid": guid, "placeholder": placeholder},
        )

    def delete(self, image_id: int) -> None:
        """Delete an image, also from the search index; its row must be locked. What was spent stays counted."""
        before = self._get_indexed(image_id)
        if before is not None:
            # Of an image that an earlier release has stored, the accountant is not going to determine the cost.
            unaccounted = ImageCostRepository(self._context).get_images([image_id])
            UsageRepository(self._context).add(image.spending(None) for image in unaccounted if image.is_generated)
            self._context.execute("DELETE FROM images WHERE id = :id", {"id": image_id})
            self._index.remove(image_id, before)

    def _get_indexed(self, image_id: int) -> Indexed | None:
        row = self._context.fetch_one(_SELECT_INDEXED, {"id": image_id})
        return None if row is None else Indexed(**(row | {"tags": json.loads(row["tags"])}))


# --- Conversions -----------------------------------------------------------------------------------------------------


def detail_to_dict(detail: ImageDetail) -> dict[str, Any]:
    """Return the columns of an image, apart from the ids."""
    return {
        **dict(detail.usage or dict.fromkeys(Usage.model_fields)),
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
        "options": detail.options and detail.options.model_dump_json(exclude_none=True),
        "origin": detail.origin.value,
        "source_guids": json.dumps(detail.source_guids) if detail.source_guids else None,
        "cost_nano_usd": detail.cost and detail.cost.nano_usd,
        "price_list": detail.cost and detail.cost.price_list,
        "is_accounted": int("cost" in detail.model_fields_set),
        "created_at": detail.created_at,
        "updated_at": detail.updated_at,
    }


def _dict_to_image(row: Mapping[str, Any]) -> Image:
    """Return the image of a row, without validating again what was validated when it was stored."""
    values = dict(row)
    tokens = {name: values.pop(name) for name in Usage.model_fields}
    values["usage"] = None if tokens["total_tokens"] is None else Usage.of_checked(tokens)
    options, source_guids = values["options"], values["source_guids"]
    values["options"] = options and _options_of(json.loads(options))
    values["origin"] = Origin(values["origin"])
    cost = {"nano_usd": values.pop("cost_nano_usd"), "price_list": values.pop("price_list")}
    values["cost"] = None if cost["nano_usd"] is None else Cost.of_checked(cost)
    values["source_guids"] = tuple(json.loads(source_guids)) if source_guids else ()
    values["tags"] = tuple(json.loads(values["tags"]))
    values["visibility"] = Visibility(values["visibility"])
    return Image.of_checked(values)


def _options_of(stored: Mapping[str, Any]) -> GenerationOptions:
    # A later release, which may commit images while servers are updated one by one, may have stored further options.
    return GenerationOptions.of_checked({name: stored.get(name) for name in GenerationOptions.model_fields})


# --- What a caller may see -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """What decides who may see an image that another one was made from."""

    guid: str
    author_id: int
    visibility: int


def _may_see(caller: Caller | None, image: Image | ImageFile | _Source) -> bool:
    if image.visibility == Visibility.PUBLIC:
        return True
    return caller is not None and (caller.is_admin or caller.user_id == image.author_id)


def _only_visible(wanted: Sequence[tuple[str, Caller | None]], found: Mapping[str, Visible]) -> list[Visible | None]:
    """Return what was found for each caller: two may ask for the same image, and only one of them may see it."""
    images = [(found.get(guid), caller) for guid, caller in wanted]
    return [image if image is not None and _may_see(caller, image) else None for image, caller in images]


def _without_hidden_sources(image: Image, caller: Caller | None, sources: Mapping[str, _Source]) -> Image:
    visible = [guid for guid in image.source_guids if guid in sources and _may_see(caller, sources[guid])]
    return image.model_copy(update={"source_guids": tuple(visible)})


def _several_query(wanted: Sequence[tuple[str, Caller | None]], select: str = _SELECT) -> tuple[str, dict[str, Any]]:
    """Return the query for images by guid, and its parameters.

    It leaves out images that the callers may not see: a hidden image takes as long as one that does not exist.
    """
    guids_by_scope: dict[str, list[str]] = defaultdict(list)
    parameters: dict[str, Any] = {}
    for number, (guid, caller) in enumerate(wanted):
        parameters[f"guid{number}"] = guid
        guids_by_scope[scope_of(caller, parameters)].append(f":guid{number}")
    branches = [f"(images.guid IN ({', '.join(guids)}) AND {scope})" for scope, guids in guids_by_scope.items()]
    return f"{select} WHERE {' OR '.join(branches)}", parameters


# --- The query for a page --------------------------------------------------------------------------------------------


def _takes_search(image_filter: ImageFilter, caller: Caller | None) -> bool:
    """Tell whether a page needs the search index, because no index of the images leads to it.

    It is also needed for one's own private images, which may be few among many public ones, and for an author's images
    that are visible to the caller, which may be few among many private ones.
    """
    is_own_private = image_filter.visibility is Visibility.PRIVATE and not (caller and caller.is_admin)
    return is_own_private or any(
        (image_filter.prompt, image_filter.filename, image_filter.guid, image_filter.tags, image_filter.author)
    )


def _page_query(
    image_filter: ImageFilter, caller: Caller | None, limit: int, after: PagePosition | None
) -> tuple[str, dict[str, Any]]:
    """Return the query for a page, and its parameters.

    A caller may see public images and its own. No index serves that as one condition with OR, so the query is a union
    of branches that each walk one index from its newest end and stop at the limit.
    """
    conditions = Conditions.of(image_filter, None, after)
    parameters = conditions.parameters | {"limit": limit}
    if caller is not None:
        parameters["caller_id"] = caller.user_id
    ids = " UNION ".join(
        f"SELECT id FROM (SELECT images.id FROM images WHERE {' AND '.join([scope, *conditions.sql])} "  # noqa: S608
        f"ORDER BY images.created_at DESC, images.id DESC LIMIT :limit) AS branch{number}"
        for number, scope in enumerate(_branches_of(image_filter, caller))
    )
    sql = (
        f"SELECT {_COLUMNS} FROM ({ids}) AS page "  # noqa: S608
        "JOIN images ON images.id = page.id JOIN users ON users.id = images.author_id "
        "ORDER BY images.created_at DESC, images.id DESC LIMIT :limit"
    )
    return sql, parameters


def _branches_of(image_filter: ImageFilter, caller: Caller | None) -> list[str]:
    """Return the conditions whose union is what a caller may see, without those that match nothing of the filter."""
    if caller is not None and caller.is_admin:
        return ["1 = 1"]
    if caller is None or image_filter.visibility is Visibility.PUBLIC:
        return [PUBLIC]
    return [PUBLIC, "images.author_id = :caller_id"]
