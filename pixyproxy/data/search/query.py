"""Searches for a page of images through the search index.

A search reads the tail, then the blocks of the index, those with the newest images first, and of each block only the
runs that can have images of the page. Each match is checked against its image.

A filter can match the index in many more images than it finds: a filename that has all parts of the filter in another
order, or words that are common and hardly ever occur together. So a page has a budget of work. A search that has
spent it stops, and says from where the next page continues.
"""

from __future__ import annotations

import heapq
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from pixyproxy.core.models import Caller, ImageFilter, PagePosition
from pixyproxy.core.text import exact_key
from pixyproxy.data.database import DatabaseContext, in_list
from pixyproxy.data.image_conditions import Conditions, scope_of
from pixyproxy.data.search.posting_store import Block, Found, PostingRepository
from pixyproxy.data.search.postings import DEFAULT_LAYOUT, BlockLayout, Posting, intersection, size, union
from pixyproxy.data.search.run_bounds import NO_NEWEST, RunBounds, microseconds, time_of
from pixyproxy.data.search.terms import Wanted, broadened, joined, text_terms, wanted_by


@dataclass(frozen=True)
class SearchLimits:
    """How much of the index a search reads with one query.

    Attributes:
        first_blocks: the blocks of the first query; most pages are filled from these.
        block_growth: how many times as many blocks each further query reads.
        most_blocks: the most blocks of a query.
        first_terms: the terms of the first query of some blocks, once it is known which terms are rare.
        most_terms: the most terms of a query; a block that lacks one of them is not read for the others.
        most_images: the most images that are checked with one query where few of them match.
        page_work: the work that a page may take: 1 for each image that is checked, more for each posting list. Each
            search reads one block and checks one run in any case.
        image_work: the part of it that is kept for images.
        page_text: the characters of prompts that a page may compare with its words, and one more prompt.
        layout: the layout of the index.
    """

    first_blocks: int = 4
    block_growth: int = 16
    most_blocks: int = 256
    first_terms: int = 2
    most_terms: int = 8
    most_images: int = 1_000
    page_work: int = 1_600
    image_work: int = 300
    page_text: int = 2**17
    layout: BlockLayout = DEFAULT_LAYOUT


DEFAULT_LIMITS = SearchLimits()

# Later than all images of the same time.
_LAST_ID = 2**63 - 1
# What takes about as long as to check so many images (benchmarks.million, SQLite): to read a posting list, and to check
# an image against its prompt.
_POSTING_WORK = 8
_PROMPT_WORK = 8
# A prompt may have 128 kB.
_PROMPTS_A_QUERY = 64


@dataclass
class SearchBudget:
    """What the searches of one page may still do.

    Attributes:
        left: their work, in images to check.
        text: the characters of prompts to compare with the words.
    """

    left: int
    text: int


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
        return self.is_full and microseconds(self._found[-1][0]) > newest

    @property
    def is_full(self) -> bool:
        """Whether no image behind the last one belongs on the page."""
        return len(self._found) == self._limit

    def keep_until(self, end: PagePosition) -> None:
        """Drop the images behind a position."""
        self._found = [found for found in self._found if found >= end]


class ImageSearch:
    """One search, within one database context.

    Attributes:
        end: after the search, the position from which another one continues, if this one has spent its budget. All
            matches before it have been found.
    """

    def __init__(
        self,
        context: DatabaseContext,
        image_filter: ImageFilter,
        caller: Caller | None,
        *,
        limit: int,
        after: PagePosition | None,
        limits: SearchLimits = DEFAULT_LIMITS,
        budget: SearchBudget | None = None,
    ) -> None:
        self.end: PagePosition | None = None
        self._budget = SearchBudget(limits.page_work, limits.page_text) if budget is None else budget
        self._frequencies: dict[Wanted, float] = {}
        self._wanted: list[Wanted] = []
        self._checks_prompts = False
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
        conditions.add(scope_of(self._caller, conditions.parameters))
        if self._filter.guid is not None:
            return self._one(conditions)
        self._wanted = wanted_by(self._filter, author_id, self._caller)
        page = _Page(self._limit)
        # The tail is read first: an image that is sealed meanwhile is found in the blocks.
        page.add(self._in_tail(conditions))
        self._add_sealed(page, conditions)
        return page.image_ids

    def _one(self, conditions: Conditions) -> list[int]:
        """Check the single image that can match, against its prompt in place of the index."""
        row = self._context.fetch_one(
            f"SELECT id, prompt, tags FROM images WHERE {' AND '.join(conditions.sql)}",  # noqa: S608
            conditions.parameters,
        )
        if row is None or not self._has_tags(row["tags"]):
            return []
        return [row["id"]] if self._has_words(row["prompt"]) else []

    # --- The tail ----------------------------------------------------------------------------------------------------

    def _in_tail(self, conditions: Conditions) -> list[tuple[datetime, int]]:
        texts = {f"text{number}": each.text for number, each in enumerate(self._wanted) if each.text is not None}
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

    def _add_sealed(self, page: _Page, conditions: Conditions) -> None:
        enough = self._limit  # images to check with one query
        candidates: list[int] = []
        for newest, image_ids in self._sealed():
            # Otherwise blocks are read next.
            kept = 0 if image_ids else self._limits.image_work
            stops = self._budget.left <= kept and self._is_past_start(newest)
            if candidates and (stops or len(candidates) >= enough):
                if not self._add_matching(page, candidates, conditions, newest):
                    return
                candidates = []
                enough = min(2 * enough, self._limits.most_images)
            if page.is_full_before(newest):
                break
            if stops:
                self.end = PagePosition(time_of(newest), _LAST_ID)
                page.keep_until(self.end)
                return
            self._budget.left -= len(image_ids) * (_PROMPT_WORK if self._checks_prompts else 1)
            candidates += image_ids
        else:
            newest = NO_NEWEST
        if candidates:
            self._add_matching(page, candidates, conditions, newest)

    def _sealed(self) -> Iterator[tuple[int, Sequence[int]]]:
        """Yield the images that the blocks have under all that is wanted, those of a run at a time.

        With each, yield the creation time in microseconds of the newest image that may be among them or follow. Before
        blocks are read, yield their time without images.
        """
        layout = self._limits.layout
        blocks, count = self._blocks(), self._limits.first_blocks
        while blocks:
            yield blocks[0].newest, ()
            read, matches = self._matches(blocks[:count])
            blocks = blocks[len(read) :]
            for newest, block, run in self._runs(read, matches):
                first = layout.first_id(block)
                image_ids = [first + offset for offset in layout.offsets_in_run(matches[block], run)]
                yield max(newest, blocks[0].newest) if blocks else newest, image_ids
            count = min(count * self._limits.block_growth, self._limits.most_blocks)

    def _is_past_start(self, newest: int) -> bool:
        """Tell whether images as old as ``newest`` are behind the search's position, so that a new one progresses."""
        return self._after is None or newest < microseconds(self._after.created_at)

    def _blocks(self) -> list[Block]:
        """Return the blocks that can have images of the page, the one with the newest image first."""
        blocks = [block for block in self._postings.get_blocks() if self._is_in_time(block.oldest, block.newest)]
        return sorted(blocks, key=lambda block: block.newest, reverse=True)

    def _is_in_time(self, oldest: int, newest: int) -> bool:
        """Tell whether the filter and the position allow images that were created between two times."""
        after, before = self._filter.created_after, self._filter.created_before
        return (
            oldest <= newest  # otherwise there are none
            and (after is None or newest > microseconds(after))
            and (before is None or oldest < microseconds(before))
            and (self._after is None or oldest <= microseconds(self._after.created_at))
        )

    def _runs(self, blocks: Sequence[Block], matches: Mapping[int, Posting]) -> Iterator[tuple[int, int, int]]:
        """Yield the runs that may have matches, the one with the newest image first.

        A run is given as the creation time of its newest image in microseconds, its block, and its number in that.
        """
        layout = self._limits.layout
        # A page takes few of the runs of many blocks, so those of a block are looked at when it is their turn.
        waiting = deque(block for block in blocks if block.number in matches)
        runs: list[tuple[int, int, int]] = []
        while waiting or runs:
            while waiting and (not runs or waiting[0].newest >= -runs[0][0]):
                block = waiting.popleft()
                bounds = RunBounds.decode(block.bounds, layout.runs)
                for run in layout.runs_of(matches[block.number]):
                    if self._is_in_time(bounds.oldest[run], bounds.newest[run]):
                        heapq.heappush(runs, (-bounds.newest[run], block.number, run))
            if runs:
                newest, number, run = heapq.heappop(runs)
                yield -newest, number, run

    def _matches(self, blocks: Sequence[Block]) -> tuple[Sequence[Block], dict[int, Posting]]:
        """Return the images that are indexed under all that is wanted, by block.

        Also return the blocks that were read: the first of ``blocks``, at least one, as many as the budget allows.
        """
        places = {block.number: place for place, block in enumerate(blocks)}
        numbers = [*places]
        matches: dict[int, Posting] = {}
        few: dict[int, Posting] = {}
        steps = [*self._steps(len(blocks))]
        for place, some in enumerate(steps):
            terms = sum(len(each.terms) for each in some)
            if matches and all(each.text is None for rest in steps[place:] for each in rest):
                # To check a few images takes less work than to read posting lists that exclude them. What is left has
                # no words or tags, so the columns of the images tell.
                few |= {
                    number: posting for number, posting in matches.items() if size(posting) <= _POSTING_WORK * terms
                }
                numbers = [number for number in numbers if number not in few]
                if not numbers:
                    break
            allowed = max(1, self._lists(self._budget.left) // max(1, terms))
            if len(numbers) > allowed:
                blocks = blocks[: places[numbers[allowed]]]
                numbers = numbers[:allowed]
            looked_up, found = self._find(numbers, some)
            for each in looked_up:
                self._frequencies.setdefault(each, _frequency(each, found) / len(numbers))
            matches = _narrowed(matches, numbers, looked_up, found)
            numbers = [*matches]
            if not numbers:
                break
        return blocks, matches | few

    def _find(self, blocks: Sequence[int], wanted: Sequence[Wanted]) -> tuple[Sequence[Wanted], Found]:
        """Return the posting lists of what is wanted; or of something broader, if too many terms have its prefix."""
        terms = [term for each in wanted for term in each.terms]
        prefix = next((each.prefix for each in wanted if each.prefix is not None), None)
        most_prefixed = self._lists(self._limits.page_work) // 2
        if prefix is None or self._lists(self._budget.left) >= most_prefixed:
            found = self._postings.find(blocks, terms, prefix, most_prefixed)
            self._budget.left -= _POSTING_WORK * sum(map(len, found.values()))
            if prefix is None or _count_of(prefix, found) < most_prefixed:
                return wanted, found
        self._checks_prompts = True
        self._wanted = [broadened(each) for each in self._wanted]
        return self._find(blocks, [broadened(each) for each in wanted])

    def _lists(self, work: int) -> int:
        """Return how many posting lists may be read with some work, apart from what is kept for images."""
        return (work - self._limits.image_work) // _POSTING_WORK

    def _steps(self, blocks: int) -> Iterator[Sequence[Wanted]]:
        """Split what is wanted into what is looked up with one query.

        In few blocks a few terms are looked up together. In many, those come first that were rare in the blocks read
        before, and the prefix, of which there is one at most, comes last, because it may stand for many terms.
        """
        count = self._limits.most_terms
        if blocks <= self._limits.first_blocks and len(self._wanted) <= count:
            yield self._wanted
            return
        exact = [each for each in self._wanted if each.prefix is None]
        if self._frequencies:
            exact.sort(key=lambda each: self._frequencies.get(each, math.inf))
            count = self._limits.first_terms
        while exact:
            yield exact[:count]
            exact = exact[count:]
            count = min(2 * count, self._limits.most_terms)
        yield from ([each] for each in self._wanted if each.prefix is not None)

    def _add_matching(self, page: _Page, image_ids: Sequence[int], conditions: Conditions, newest: int) -> bool:
        """Add those of the images to a page that match and that the caller may see.

        Return False if the search ends there, because all prompts that a page may compare have been compared. It does
        not end before images as old as ``newest``, in microseconds, that of the images that would be looked at next.
        """
        rows = self._context.fetch_all(
            # Without ORDER BY, for which the servers would walk the index of times.
            f"SELECT images.id, images.created_at, images.tags FROM images "  # noqa: S608
            f"WHERE images.id IN ({in_list(image_ids)}) AND {conditions.beside_ids()}",
            conditions.parameters,
        )
        found = [PagePosition(row["created_at"], row["id"]) for row in rows if self._has_tags(row["tags"])]
        if not self._checks_prompts:
            page.add(found)
            return True
        for image, has_words in self._compared(sorted(found, reverse=True)):
            if has_words:
                page.add([image])
            if self._budget.text <= 0 and microseconds(image.created_at) > newest:
                page.keep_until(image)
                self.end = None if page.is_full else image
                return False
        return True

    def _compared(self, images: Sequence[PagePosition]) -> Iterator[tuple[PagePosition, bool]]:
        """Yield images, and whether their prompts have the words."""
        for start in range(0, len(images), _PROMPTS_A_QUERY):
            some = images[start : start + _PROMPTS_A_QUERY]
            ids = in_list(image.id for image in some)
            rows = self._context.fetch_all(f"SELECT id, prompt FROM images WHERE images.id IN ({ids})", {})  # noqa: S608
            prompts = {row["id"]: row["prompt"] for row in rows}
            for image in some:
                if image.id in prompts:  # It may have been deleted since.
                    self._budget.text -= len(prompts[image.id])
                    yield image, self._has_words(prompts[image.id])

    def _has_words(self, prompt: str) -> bool:
        texts = joined(text_terms(prompt, ()))
        return all(text in texts for text in self._word_texts)

    @cached_property
    def _word_texts(self) -> list[str]:
        words = wanted_by(ImageFilter(prompt=self._filter.prompt), None, None)
        return [word.text for word in words if word.text is not None]

    def _has_tags(self, tags: str) -> bool:
        if not self._filter.tags:
            return True
        keys = {exact_key(tag) for tag in json.loads(tags)}
        return all(exact_key(tag) in keys for tag in self._filter.tags)


def _count_of(prefix: str, found: Found) -> int:
    return sum(term.startswith(prefix) for lists in found.values() for term in lists)


def _frequency(wanted: Wanted, found: Found) -> int:
    return sum(size(lists[term]) for lists in found.values() for term in wanted.terms if term in lists)


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
