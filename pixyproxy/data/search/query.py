"""Searches for a page of images through the search index.

A search reads the tail, then the blocks of the index, those with the newest images first, and of each block only the
runs that can have images of the page. Each match is checked against its image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pixyproxy.core.models import Caller, ImageFilter, PagePosition
from pixyproxy.core.text import exact_key
from pixyproxy.data.database import DatabaseContext, in_list
from pixyproxy.data.repositories.image_conditions import Conditions
from pixyproxy.data.search.posting_store import Block, Found, PostingRepository
from pixyproxy.data.search.postings import DEFAULT_LAYOUT, BlockLayout, Posting, intersection, union
from pixyproxy.data.search.run_bounds import RunBounds, microseconds
from pixyproxy.data.search.terms import Wanted, joined, text_terms, wanted_by


@dataclass(frozen=True)
class SearchLimits:
    """How much of the index a search reads with one query.

    Attributes:
        first_blocks: the blocks of the first query; most pages are filled from these.
        block_growth: how many times as many blocks each further query reads.
        most_blocks: the most blocks of a query.
        most_terms: the most terms of a query; a block that lacks one of them is not read for the others.
        most_images: the most images that are checked with one query where few of them match.
        layout: the layout of the index.
    """

    first_blocks: int = 4
    block_growth: int = 16
    most_blocks: int = 256
    most_terms: int = 8
    most_images: int = 1_000
    layout: BlockLayout = DEFAULT_LAYOUT


DEFAULT_LIMITS = SearchLimits()


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

    def is_full_before(self, newest: int) -> bool:
        """Tell whether the page is full with images that were created after a time, given in microseconds."""
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
        after: PagePosition | None,
        limits: SearchLimits = DEFAULT_LIMITS,
    ) -> None:
        self._context = context
        self._limits = limits
        self._postings = PostingRepository(context, limits.layout)
        self._filter = image_filter
        self._caller = caller
        self._limit = limit
        self._after = after

    def image_ids(self) -> list[int]:
        """Return the ids of the newest images that match, that the caller may see and that come after the position."""
        author_id = None
        if self._filter.author is not None:
            author_id = self._context.fetch_value(
                "SELECT id FROM users WHERE username_key = :author_key", {"author_key": exact_key(self._filter.author)}
            )
            if author_id is None:
                return []
        conditions = Conditions.of(self._filter, author_id, self._after)
        conditions.add_scope(self._caller)
        if self._filter.guid is not None:
            return self._one(conditions)
        wanted = wanted_by(self._filter, author_id, self._caller)
        page = _Page(self._limit)
        # The tail is read first: an image that is sealed meanwhile is found in the blocks.
        page.add(self._in_tail(wanted, conditions))
        self._add_sealed(page, wanted, conditions)
        return page.image_ids

    def _one(self, conditions: Conditions) -> list[int]:
        """Check the single image that can match, against its prompt in place of the index."""
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
            # A cross join, whose order SQLite keeps: the tail is short, and the images are many.
            "SELECT images.id, images.created_at FROM image_tail "  # noqa: S608
            "CROSS JOIN images ON images.id = image_tail.image_id "
            f"WHERE {' AND '.join([*instr, conditions.beside_ids()])} "
            "ORDER BY images.created_at DESC, images.id DESC LIMIT :limit",
            {**texts, **conditions.parameters, "limit": self._limit},
        )
        return [(row["created_at"], row["id"]) for row in rows]

    # --- The blocks --------------------------------------------------------------------------------------------------

    def _add_sealed(self, page: _Page, wanted: Sequence[Wanted], conditions: Conditions) -> None:
        layout = self._limits.layout
        enough = self._limit  # images to check with one query
        candidates: list[int] = []
        for blocks in self._windows(self._blocks()):
            if page.is_full_before(blocks[0].newest):
                break
            matches = self._matches(blocks, wanted)
            for newest, block, run in self._runs(blocks, matches):
                if page.is_full_before(newest):
                    break
                first = layout.first_id(block)
                candidates += [first + offset for offset in layout.offsets_in_run(matches[block], run)]
                if len(candidates) >= enough:
                    page.add(self._matching(candidates, conditions))
                    candidates = []
                    enough = min(2 * enough, self._limits.most_images)
        if candidates:
            page.add(self._matching(candidates, conditions))

    def _blocks(self) -> list[Block]:
        """Return the blocks that can have images of the page, the one with the newest image first."""
        blocks = [block for block in self._postings.get_blocks() if self._is_in_time(block.oldest, block.newest)]
        return sorted(blocks, key=lambda block: block.newest, reverse=True)

    def _windows(self, blocks: Sequence[Block]) -> Iterator[Sequence[Block]]:
        """Split blocks into those that are read with one query."""
        size = self._limits.first_blocks
        while blocks:
            yield blocks[:size]
            blocks = blocks[size:]
            size = min(size * self._limits.block_growth, self._limits.most_blocks)

    def _is_in_time(self, oldest: int, newest: int) -> bool:
        """Tell whether the filter and the position allow images that were created between two times."""
        after, before = self._filter.created_after, self._filter.created_before
        return (
            (after is None or newest > microseconds(after))
            and (before is None or oldest < microseconds(before))
            and (self._after is None or oldest <= microseconds(self._after.created_at))
        )

    def _runs(self, blocks: Sequence[Block], matches: Mapping[int, Posting]) -> list[tuple[int, int, int]]:
        """Return the runs that may have matches, the one with the newest image first.

        A run is given as the creation time of its newest image in microseconds, its block, and its number in that.
        """
        layout = self._limits.layout
        runs = []
        for block in blocks:
            if block.number in matches:
                bounds = RunBounds.decode(block.bounds, layout.runs)
                runs += [
                    (bounds.newest[run], block.number, run)
                    for run in layout.runs_of(matches[block.number])
                    if self._is_in_time(bounds.oldest[run], bounds.newest[run])
                ]
        return sorted(runs, reverse=True)

    def _matches(self, blocks: Sequence[Block], wanted: Sequence[Wanted]) -> dict[int, Posting]:
        """Return for each of these blocks the images that are indexed under all that is wanted, if there are any."""
        numbers: Sequence[int] = [block.number for block in blocks]
        matches: dict[int, Posting] = {}
        for some in self._steps(wanted, len(blocks)):
            terms = [term for each in some for term in each.terms]
            prefix = next((each.prefix for each in some if each.prefix is not None), None)
            matches = _narrowed(matches, numbers, some, self._postings.find(numbers, terms, prefix))
            numbers = [*matches]
        return matches

    def _steps(self, wanted: Sequence[Wanted], blocks: int) -> Iterator[Sequence[Wanted]]:
        """Split what is wanted into what is looked up with one query.

        In few blocks a few terms are looked up together. In many the prefix, of which there is one at most, comes last,
        because it may stand for many terms.
        """
        size = self._limits.most_terms
        if blocks <= self._limits.first_blocks and len(wanted) <= size:
            yield wanted
            return
        exact = [each for each in wanted if each.prefix is None]
        for start in range(0, len(exact), size):
            yield exact[start : start + size]
        yield from ([each] for each in wanted if each.prefix is not None)

    def _matching(self, image_ids: Sequence[int], conditions: Conditions) -> list[tuple[datetime, int]]:
        """Return those of the images that match and that the caller may see."""
        rows = self._context.fetch_all(
            # Without ORDER BY, for which the servers would walk the index of times.
            "SELECT images.id, images.created_at, images.tags FROM images "  # noqa: S608
            f"WHERE images.id IN ({in_list(image_ids)}) AND {conditions.beside_ids()}",
            conditions.parameters,
        )
        return [(row["created_at"], row["id"]) for row in rows if self._has_tags(row["tags"])]

    def _has_tags(self, tags: str) -> bool:
        if not self._filter.tags:
            return True
        keys = {exact_key(tag) for tag in json.loads(tags)}
        return all(exact_key(tag) in keys for tag in self._filter.tags)


def _narrowed(
    matches: Mapping[int, Posting], blocks: Sequence[int], wanted: Sequence[Wanted], found: Found
) -> dict[int, Posting]:
    """Return for each block the images that are found under all that is wanted, and among its ``matches`` if any."""
    narrowed: dict[int, Posting] = {}
    for number in blocks:
        lists = found.get(number, {})
        alternatives = [
            [posting for term, posting in lists.items() if term.startswith(each.prefix)]
            if each.prefix
            else [lists[term] for term in each.terms if term in lists]
            for each in wanted
        ]
        if all(alternatives):
            before = [matches[number]] if number in matches else []
            posting = intersection([*before, *map(union, alternatives)])
            if posting:
                narrowed[number] = posting
    return narrowed
