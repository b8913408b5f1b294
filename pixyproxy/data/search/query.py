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
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property

from pixyproxy.core.models import Caller, ImageFilter, PagePosition
from pixyproxy.core.text import exact_key
from pixyproxy.data.database import DatabaseContext, in_list
from pixyproxy.data.image_conditions import Conditions, scope_of
from pixyproxy.data.search.block_search import BlockSearch
from pixyproxy.data.search.limits import PROMPT_WORK, SearchBudget, SearchLimits
from pixyproxy.data.search.posting_store import Block, PostingRepository
from pixyproxy.data.search.postings import Posting
from pixyproxy.data.search.run_bounds import NO_NEWEST, RunBounds, microseconds, time_of
from pixyproxy.data.search.terms import Wanted, joined, text_terms, wanted_by

# Later than all images of the same time.
_LAST_ID = 2**63 - 1
# A prompt may have 128 kB.
_PROMPTS_A_QUERY = 64


class _Page:
    """The newest images found so far, up to a limit.

    Attributes:
        end: the position at which the search has stopped before the page was full, or None.
    """

    def __init__(self, limit: int) -> None:
        self.end: PagePosition | None = None
        self._limit = limit
        self._found: list[tuple[datetime, int]] = []

    @property
    def image_ids(self) -> list[int]:
        return [image_id for _, image_id in self._found]

    def add(self, found: Sequence[tuple[datetime, int]]) -> None:
        self._found = sorted({*self._found, *found}, reverse=True)[: self._limit]

    def is_full_before(self, newest: int) -> bool:
        """Tell whether the page is full with images that were created after a time, given in microseconds."""
        return self._is_full and microseconds(self._found[-1][0]) > newest

    def stop_at(self, end: PagePosition) -> None:
        """Drop the images behind a position, before which all have been found."""
        self._found = [found for found in self._found if found >= end]
        self.end = None if self._is_full else end

    @property
    def _is_full(self) -> bool:
        return len(self._found) == self._limit


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
        limits: SearchLimits,
        budget: SearchBudget,
    ) -> None:
        self._context = context
        self._filter = image_filter
        self._caller = caller
        self._limit = limit
        self._after = after
        self._limits = limits
        self._budget = budget

    def find(self) -> tuple[list[int], PagePosition | None]:
        """Return the ids of the newest images that match, that the caller may see and that come after the position.

        Also return the position from which another search continues, if this one has spent its budget: all matches
        before it have been found.
        """
        author_id = None
        if self._filter.author is not None:
            author_id = self._context.fetch_value(
                "SELECT id FROM users WHERE username_key = :author_key", {"author_key": exact_key(self._filter.author)}
            )
            if author_id is None:
                return [], None
        conditions = Conditions.of(self._filter, author_id, self._after)
        conditions.add(scope_of(self._caller, conditions.parameters))
        if self._filter.guid is not None:
            return self._one(conditions), None
        wanted = wanted_by(self._filter, author_id, self._caller)
        page = _Page(self._limit)
        # The tail is read first: an image that is sealed meanwhile is found in the blocks.
        page.add(self._in_tail(conditions, wanted))
        self._add_sealed(page, conditions, BlockSearch(self._context, wanted, self._limits, self._budget))
        return page.image_ids, page.end

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

    def _in_tail(self, conditions: Conditions, wanted: Sequence[Wanted]) -> list[tuple[datetime, int]]:
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

    def _add_sealed(self, page: _Page, conditions: Conditions, block_search: BlockSearch) -> None:
        enough = self._limit  # images to check with one query
        candidates: list[int] = []
        for newest, image_ids in self._sealed(block_search):
            # Otherwise blocks are read next.
            kept = 0 if image_ids else self._limits.image_work
            stops = self._budget.left <= kept and self._is_past_start(newest)
            if candidates and (stops or len(candidates) >= enough):
                checks_prompts = block_search.is_broadened
                if not self._add_matching(page, candidates, conditions, newest, checks_prompts=checks_prompts):
                    return
                candidates = []
                enough = min(2 * enough, self._limits.most_images)
            if page.is_full_before(newest):
                break
            if stops:
                page.stop_at(PagePosition(time_of(newest), _LAST_ID))
                return
            self._budget.left -= len(image_ids) * (PROMPT_WORK if block_search.is_broadened else 1)
            candidates += image_ids
        else:
            newest = NO_NEWEST
        if candidates:
            self._add_matching(page, candidates, conditions, newest, checks_prompts=block_search.is_broadened)

    def _sealed(self, block_search: BlockSearch) -> Iterator[tuple[int, Sequence[int]]]:
        """Yield the images that the blocks have under all that is wanted, those of a run at a time.

        With each, yield the creation time in microseconds of the newest image that may be among them or follow. Before
        blocks are read, yield their time without images.
        """
        layout = self._limits.layout
        blocks, count = self._blocks(), self._limits.first_blocks
        while blocks:
            yield blocks[0].newest, ()
            read, matches = block_search.find(blocks[:count])
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
        blocks = PostingRepository(self._context, self._limits.layout).get_blocks()
        in_time = [block for block in blocks if self._is_in_time(block.oldest, block.newest)]
        return sorted(in_time, key=lambda block: block.newest, reverse=True)

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

    def _add_matching(
        self, page: _Page, image_ids: Sequence[int], conditions: Conditions, newest: int, *, checks_prompts: bool
    ) -> bool:
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
        if not checks_prompts:
            page.add(found)
            return True
        for image, has_words in self._compared(sorted(found, reverse=True)):
            if has_words:
                page.add([image])
            if self._budget.text <= 0 and microseconds(image.created_at) > newest:
                page.stop_at(image)
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
