"""Finding a page of images through the search index.

The tail is asked first, then the blocks of the index from the newest on, and in each only the runs of images that can
still belong on the page. What the index gives is looked up among the images before it counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pixyproxy.core.models import Caller, ImageFilter
from pixyproxy.core.text import exact_key
from pixyproxy.data.database import DatabaseContext
from pixyproxy.data.repositories import postings
from pixyproxy.data.repositories.image_conditions import Conditions, ImagePosition
from pixyproxy.data.repositories.index_terms import LAST_CHARACTER, Wanted, joined, text_terms, wanted_by
from pixyproxy.data.repositories.postings import Posting
from pixyproxy.data.repositories.search_index import BOUNDS, RunBounds, as_text, microseconds, term_parameters

# How many blocks are looked into at once: few first, because most searches fill a page from those.
_FIRST_BLOCKS = 2
_TIMES_MORE_BLOCKS = 16
_MOST_BLOCKS = 256
# How many terms are asked for at once, before blocks that lack one of them are given up.
_TERMS_AT_ONCE = 6
# How many images are looked up at once where many prove not to match.
_MOST_LOOKED_UP = 1_000


@dataclass(frozen=True)
class _Block:
    """A block, and when its oldest and its newest image were created, in microseconds."""

    number: int
    oldest: int
    newest: int


@dataclass(frozen=True)
class _Run:
    """Images of one run that may match, and when the newest image of the run was created."""

    newest: int
    image_ids: list[int]


class _Page:
    """The newest images found so far, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._found: list[tuple[datetime, int]] = []

    @property
    def image_ids(self) -> list[int]:
        return [image_id for _, image_id in self._found]

    def add(self, found: Sequence[tuple[datetime, int]]) -> None:
        self._found = sorted({*self._found, *found}, reverse=True)[: self._limit]

    def is_closed_to(self, newest: int) -> bool:
        """Tell whether no image that was created at that time or before belongs here any more."""
        return len(self._found) == self._limit and microseconds(self._found[-1][0]) > newest


class ImageSearch:
    """One search, within one database context."""

    def __init__(
        self,
        context: DatabaseContext,
        image_filter: ImageFilter,
        caller: Caller | None,
        *,
        limit: int,
        after: ImagePosition | None,
    ) -> None:
        self._context = context
        self._filter = image_filter
        self._caller = caller
        self._limit = limit
        self._after = after

    def image_ids(self) -> list[int]:
        """Return the ids of the newest images that match, that the caller may see and that come after the position."""
        author_id = None
        if self._filter.author is not None:
            author_id = self._author_id(self._filter.author)
            if author_id is None:
                return []
        conditions = Conditions.of(self._filter, author_id, self._after)
        conditions.add_scope(self._caller)
        if self._filter.guid is not None:
            return self._one(conditions)
        wanted = wanted_by(self._filter, author_id, self._caller)
        page = _Page(self._limit)
        # The tail comes first: what leaves it meanwhile is found in the blocks.
        page.add(self._in_tail(wanted, conditions))
        self._add_sealed(page, wanted, conditions)
        return page.image_ids

    def _author_id(self, author: str) -> int | None:
        row = self._context.fetch_one(
            "SELECT id FROM users WHERE username_key = :author_key", {"author_key": exact_key(author)}
        )
        return None if row is None else int(row["id"])

    def _one(self, conditions: Conditions) -> list[int]:
        """Look at the one image that can match; its prompt tells more surely than the index."""
        row = self._context.fetch_one(
            f"SELECT id, prompt, tags FROM images WHERE {' AND '.join(conditions.sql)}",  # noqa: S608
            conditions.parameters,
        )
        if row is None or not self._has_tags(row["tags"]):
            return []
        texts = joined(text_terms(row["prompt"], ()))
        words = wanted_by(ImageFilter(prompt=self._filter.prompt), None, None)
        return [row["id"]] if all(word.text in texts for word in words if word.text is not None) else []

    # --- The tail ----------------------------------------------------------------------------------------------------

    def _in_tail(self, wanted: Sequence[Wanted], conditions: Conditions) -> list[tuple[datetime, int]]:
        texts = {f"text{number}": each.text for number, each in enumerate(wanted) if each.text is not None}
        instr = [f"INSTR(image_tail.terms, :{name}) > 0" for name in texts]
        rows = self._context.fetch_all(
            "SELECT images.id, images.created_at FROM image_tail JOIN images ON images.id = image_tail.image_id "  # noqa: S608
            f"WHERE {' AND '.join([*instr, *conditions.sql])} "
            "ORDER BY images.created_at DESC, images.id DESC LIMIT :limit",
            {**texts, **conditions.parameters, "limit": self._limit},
        )
        return [(row["created_at"], row["id"]) for row in rows]

    # --- The blocks --------------------------------------------------------------------------------------------------

    def _add_sealed(self, page: _Page, wanted: Sequence[Wanted], conditions: Conditions) -> None:
        enough = self._limit  # images for a query to be worth its while
        waiting: list[int] = []
        for blocks in _windows(self._blocks()):
            if page.is_closed_to(blocks[0].newest):
                break
            for run in self._runs(blocks, wanted):
                if page.is_closed_to(run.newest):
                    break
                waiting += run.image_ids
                if len(waiting) >= enough:
                    page.add(self._looked_up(waiting, conditions))
                    waiting = []
                    enough = min(2 * enough, _MOST_LOOKED_UP)
        if waiting:
            page.add(self._looked_up(waiting, conditions))

    def _blocks(self) -> list[_Block]:
        """Return the blocks that can hold images of the page, the one with the newest image first."""
        rows = self._context.fetch_all("SELECT block, oldest, newest FROM image_blocks", {})
        blocks = [_Block(row["block"], row["oldest"], row["newest"]) for row in rows]
        blocks = [block for block in blocks if self._is_in_time(block.oldest, block.newest)]
        return sorted(blocks, key=lambda block: block.newest, reverse=True)

    def _is_in_time(self, oldest: int, newest: int) -> bool:
        """Tell whether the filter and the position leave anything of what was created between two times."""
        after, before = self._filter.created_after, self._filter.created_before
        return (
            (after is None or newest > microseconds(after))
            and (before is None or oldest < microseconds(before))
            and (self._after is None or oldest <= microseconds(self._after.created_at))
        )

    def _runs(self, blocks: Sequence[_Block], wanted: Sequence[Wanted]) -> list[_Run]:
        """Return the runs of these blocks that may hold matches, the one with the newest image first."""
        runs = []
        for block, (posting, bounds) in self._matches([block.number for block in blocks], wanted).items():
            first = block << postings.BLOCK_BITS
            for run, offsets in postings.offsets_by_run(posting):
                if self._is_in_time(bounds.oldest[run], bounds.newest[run]):
                    runs.append(_Run(bounds.newest[run], [first + offset for offset in offsets]))
        return sorted(runs, key=lambda run: run.newest, reverse=True)

    def _matches(self, blocks: Sequence[int], wanted: Sequence[Wanted]) -> dict[int, tuple[Posting, RunBounds]]:
        """Return what each of these blocks has under all that is wanted, and its bounds, where it has any."""
        found: _Found = dict.fromkeys(blocks, ())
        exact = [each for each in wanted if each.prefix is None]
        for start in range(0, len(exact), _TERMS_AT_ONCE):
            some = exact[start : start + _TERMS_AT_ONCE]
            stored = self._stored(list(found), [term for each in some for term in each.terms])
            found = _narrowed(found, {block: _alternatives(some, terms) for block, terms in stored.items()})
        for prefix in (each.prefix for each in wanted if each.prefix is not None):
            stored = self._stored_by_prefix(list(found), prefix)
            found = _narrowed(found, {block: [list(terms.values())] for block, terms in stored.items()})
        bounds = self._stored(list(found), [BOUNDS])
        return {block: (found[block][0], RunBounds.decoded(terms[BOUNDS])) for block, terms in bounds.items()}

    def _stored(self, blocks: Sequence[int], terms: Sequence[str]) -> dict[int, dict[str, bytes]]:
        """Return the stored postings of some terms in some blocks."""
        names, parameters = term_parameters(terms)
        return self._stored_where(blocks, f"term IN ({names})", parameters)

    def _stored_by_prefix(self, blocks: Sequence[int], prefix: str) -> dict[int, dict[str, bytes]]:
        parameters = {"first": prefix, "end": prefix + LAST_CHARACTER}
        return self._stored_where(blocks, "term >= :first AND term < :end", parameters)

    def _stored_where(
        self, blocks: Sequence[int], condition: str, parameters: Mapping[str, Any]
    ) -> dict[int, dict[str, bytes]]:
        stored: dict[int, dict[str, bytes]] = {}
        if blocks:
            rows = self._context.fetch_all(
                f"SELECT block, term, posting FROM image_postings "  # noqa: S608
                f"WHERE block IN ({', '.join(map(str, blocks))}) AND {condition}",
                parameters,
            )
            for row in rows:
                stored.setdefault(row["block"], {})[as_text(row["term"])] = row["posting"]
        return stored

    def _looked_up(self, image_ids: Sequence[int], conditions: Conditions) -> list[tuple[datetime, int]]:
        """Return those of the images that do match and may be seen."""
        rows = self._context.fetch_all(
            # In no order: the servers would rather walk the index of times than look up these few.
            "SELECT images.id, images.created_at, images.tags FROM images "  # noqa: S608
            f"WHERE images.id IN ({', '.join(map(str, image_ids))}) AND {' AND '.join(conditions.sql)}",
            conditions.parameters,
        )
        return [(row["created_at"], row["id"]) for row in rows if self._has_tags(row["tags"])]

    def _has_tags(self, tags: str) -> bool:
        if not self._filter.tags:
            return True
        keys = {exact_key(tag) for tag in json.loads(tags)}
        return all(exact_key(tag) in keys for tag in self._filter.tags)


_Found = dict[int, tuple[Posting, ...]]
"""What blocks have under the terms that were looked at so far: one posting each, none at the beginning."""


def _windows(blocks: Sequence[_Block]) -> Iterator[Sequence[_Block]]:
    """Cut blocks into those that are looked into at once."""
    size = _FIRST_BLOCKS
    while blocks:
        yield blocks[:size]
        blocks = blocks[size:]
        size = min(size * _TIMES_MORE_BLOCKS, _MOST_BLOCKS)


def _alternatives(wanted: Sequence[Wanted], stored: Mapping[str, bytes]) -> list[list[bytes]]:
    """Return for each that is wanted the stored postings that would do."""
    return [[stored[term] for term in each.terms if term in stored] for each in wanted]


def _narrowed(found: _Found, alternatives: Mapping[int, list[list[bytes]]]) -> _Found:
    """Return what was found and is in one of each block's alternatives, without the blocks where that is nothing."""
    narrowed: _Found = {}
    for block, groups in alternatives.items():
        if all(groups):
            unions = (postings.union(map(postings.decoded, group)) for group in groups)
            posting = postings.intersection((*found[block], *unions))
            if posting:
                narrowed[block] = (posting,)
    return narrowed
