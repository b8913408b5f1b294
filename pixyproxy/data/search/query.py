"""Finding a page of images through the search index.

The tail is asked first, then the blocks of the index from the newest on, and in each only the runs of images that can
still belong on the page. What the index gives is looked up among the images before it counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pixyproxy.core.models import Caller, ImageFilter
from pixyproxy.core.text import exact_key
from pixyproxy.data.database import DatabaseContext
from pixyproxy.data.repositories.image_conditions import Conditions, ImagePosition
from pixyproxy.data.search import postings
from pixyproxy.data.search.posting_store import Block, Found, PostingRepository
from pixyproxy.data.search.postings import Posting
from pixyproxy.data.search.run_bounds import RunBounds, microseconds
from pixyproxy.data.search.terms import Wanted, joined, text_terms, wanted_by

# How many blocks are looked into at once: few first, because most searches fill a page from those.
_FIRST_BLOCKS = 4
_TIMES_MORE_BLOCKS = 16
_MOST_BLOCKS = 256
# How many terms are asked for at once, before blocks that lack one of them are given up.
_TERMS_AT_ONCE = 8
# How many images are looked up at once where many prove not to match.
_MOST_LOOKED_UP = 1_000


@dataclass(frozen=True)
class _Run:
    """A run with images that may match.

    Attributes:
        newest: when the newest image of the run was created, in microseconds.
        block: the number of its block.
        number: its own number in that block.
        posting: the images of the block that may match.
    """

    newest: int
    block: int
    number: int
    posting: Posting

    def image_ids(self) -> list[int]:
        """Return the images of the run that may match. There may be many runs, and few are asked."""
        first = self.block << postings.BLOCK_BITS
        return [first + offset for offset in postings.offsets_in_run(self.posting, self.number)]


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
        self._postings = PostingRepository(context)
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
            # A cross join, because SQLite keeps the order of one: the tail is short, and the images are many.
            "SELECT images.id, images.created_at FROM image_tail "  # noqa: S608
            "CROSS JOIN images ON images.id = image_tail.image_id "
            f"WHERE {' AND '.join([*instr, conditions.beside_ids()])} "
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
                waiting += run.image_ids()
                if len(waiting) >= enough:
                    page.add(self._looked_up(waiting, conditions))
                    waiting = []
                    enough = min(2 * enough, _MOST_LOOKED_UP)
        if waiting:
            page.add(self._looked_up(waiting, conditions))

    def _blocks(self) -> list[Block]:
        """Return the blocks that can hold images of the page, the one with the newest image first."""
        blocks = [block for block in self._postings.get_blocks() if self._is_in_time(block.oldest, block.newest)]
        return sorted(blocks, key=lambda block: block.newest, reverse=True)

    def _is_in_time(self, oldest: int, newest: int) -> bool:
        """Tell whether the filter and the position leave anything of what was created between two times."""
        after, before = self._filter.created_after, self._filter.created_before
        return (
            (after is None or newest > microseconds(after))
            and (before is None or oldest < microseconds(before))
            and (self._after is None or oldest <= microseconds(self._after.created_at))
        )

    def _runs(self, blocks: Sequence[Block], wanted: Sequence[Wanted]) -> list[_Run]:
        """Return the runs of these blocks that may hold matches, the one with the newest image first."""
        matches = self._matches(blocks, wanted)
        runs = []
        for block in blocks:
            posting = matches.get(block.number)
            if posting:
                bounds = RunBounds.decoded(block.bounds)
                runs += [
                    _Run(bounds.newest[run], block.number, run, posting)
                    for run in postings.runs_of(posting)
                    if self._is_in_time(bounds.oldest[run], bounds.newest[run])
                ]
        return sorted(runs, key=lambda run: run.newest, reverse=True)

    def _matches(self, blocks: Sequence[Block], wanted: Sequence[Wanted]) -> dict[int, Posting]:
        """Return what each of these blocks has under all that is wanted, where it has anything."""
        matches: dict[int, Posting] = {}
        for some in _steps(wanted, len(blocks)):
            terms = [term for each in some for term in each.terms]
            prefix = next((each.prefix for each in some if each.prefix is not None), None)
            found = self._postings.find(blocks, terms, prefix)
            matches = _narrowed(matches, blocks, some, found)
            blocks = [block for block in blocks if block.number in matches]
        return matches

    def _looked_up(self, image_ids: Sequence[int], conditions: Conditions) -> list[tuple[datetime, int]]:
        """Return those of the images that do match and may be seen."""
        rows = self._context.fetch_all(
            # In no order: the servers would rather walk the index of times than look up these few.
            "SELECT images.id, images.created_at, images.tags FROM images "  # noqa: S608
            f"WHERE images.id IN ({', '.join(map(str, image_ids))}) AND {conditions.beside_ids()}",
            conditions.parameters,
        )
        return [(row["created_at"], row["id"]) for row in rows if self._has_tags(row["tags"])]

    def _has_tags(self, tags: str) -> bool:
        if not self._filter.tags:
            return True
        keys = {exact_key(tag) for tag in json.loads(tags)}
        return all(exact_key(tag) in keys for tag in self._filter.tags)


def _windows(blocks: Sequence[Block]) -> Iterator[Sequence[Block]]:
    """Cut blocks into those that are looked into at once."""
    size = _FIRST_BLOCKS
    while blocks:
        yield blocks[:size]
        blocks = blocks[size:]
        size = min(size * _TIMES_MORE_BLOCKS, _MOST_BLOCKS)


def _steps(wanted: Sequence[Wanted], blocks: int) -> Iterator[Sequence[Wanted]]:
    """Cut what is wanted into what is looked for at once.

    Of few blocks a few terms are looked for together; of many the prefix comes last, which may have many terms. There
    is one at the most, of the last word.
    """
    if blocks <= _FIRST_BLOCKS and len(wanted) <= _TERMS_AT_ONCE:
        yield wanted
        return
    exact = [each for each in wanted if each.prefix is None]
    for start in range(0, len(exact), _TERMS_AT_ONCE):
        yield exact[start : start + _TERMS_AT_ONCE]
    for each in wanted:
        if each.prefix is not None:
            yield [each]


def _narrowed(
    matches: Mapping[int, Posting], blocks: Sequence[Block], wanted: Sequence[Wanted], found: Found
) -> dict[int, Posting]:
    """Return what blocks had before, nothing being everything, and have under what else is wanted."""
    narrowed: dict[int, Posting] = {}
    for number in (block.number for block in blocks):
        terms = found.get(number, {})
        alternatives = [
            [posting for term, posting in terms.items() if term.startswith(each.prefix)]
            if each.prefix
            else [terms[term] for term in each.terms if term in terms]
            for each in wanted
        ]
        if all(alternatives):
            before = [matches[number]] if number in matches else []
            posting = postings.intersection([*before, *map(postings.union, alternatives)])
            if posting:
                narrowed[number] = posting
    return narrowed
