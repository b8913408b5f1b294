"""SQL conditions, mainly on the columns of images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pixyproxy.core.fields import Visibility
from pixyproxy.core.models import Caller, GenerationFilter, ImageFilter, PagePosition
from pixyproxy.core.text import caseless_key, exact_key

PUBLIC = f"images.visibility = {Visibility.PUBLIC.value}"


@dataclass
class Conditions:
    """Conditions joined by AND, and their parameters."""

    sql: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, image_filter: ImageFilter, author_id: int | None, after: PagePosition | None) -> Conditions:
        """Return the conditions of a filter, apart from those of the search index, and of the start of a page."""
        conditions = cls()
        if author_id is not None:
            conditions.add("images.author_id = :author_id", author_id=author_id)
        if image_filter.visibility is not None:
            conditions.add("images.visibility = :visibility", visibility=image_filter.visibility.value)
        if image_filter.guid is not None:
            conditions.add("images.guid = :guid", guid=image_filter.guid)
        if image_filter.filename:
            key = caseless_key(image_filter.filename)
            conditions.add("INSTR(images.filename_key, :filename_key) > 0", filename_key=key)
        conditions.add_times("images", image_filter, after)
        return conditions

    def add(self, condition: str, **parameters: Any) -> None:
        """Add a condition."""
        self.sql.append(condition)
        self.parameters.update(parameters)

    def add_times(self, table: str, wanted: ImageFilter | GenerationFilter, after: PagePosition | None) -> None:
        """Add the conditions of a filter on the creation times of a table, and that of the start of a page."""
        time = f"{table}.created_at"
        if wanted.created_after is not None:
            self.add(f"{time} > :created_after", created_after=wanted.created_after)
        if wanted.created_before is not None:
            self.add(f"{time} < :created_before", created_before=wanted.created_before)
        if after is not None:
            # In this form both servers read the index from the position on; with (a, b) < (x, y), neither does.
            start = f"{time} <= :after_created_at AND ({time} < :after_created_at OR {table}.id < :after_id)"
            self.add(start, after_created_at=after.created_at, after_id=after.id)

    def add_author(self, caller: Caller, author: str | None) -> None:
        """Add the conditions that rows are the caller's own, unless it is an admin, and those of a named author."""
        if not caller.is_admin:
            self.add("author_id = :caller_id", caller_id=caller.user_id)
        if author is not None:
            condition = "author_id = (SELECT id FROM users WHERE username_key = :username_key)"
            self.add(condition, username_key=exact_key(author))

    def beside_ids(self) -> str:
        """Return the conditions in the form for a query by id."""
        return without_index(" AND ".join(self.sql))


def without_index(condition: str) -> str:
    """Return a condition in a form for which no index is used.

    SQLite would walk all public images in place of looking up fifty ids. A plus before the column prevents that, and
    has no effect on the other servers.
    """
    return condition.replace("images.", "+images.")


def scope_of(caller: Caller | None, parameters: dict[str, Any]) -> str:
    """Return the condition that a caller may see an image, and add its parameters."""
    if caller is None:
        return PUBLIC
    if caller.is_admin:
        return "1 = 1"
    name = f"caller{caller.user_id}"
    parameters[name] = caller.user_id
    return f"({PUBLIC} OR images.author_id = :{name})"
