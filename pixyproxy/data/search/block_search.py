"""Looks up in the blocks of the index which images are indexed under all that is wanted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from pixyproxy.data.database import DatabaseContext
from pixyproxy.data.search.limits import POSTING_WORK, SearchBudget, SearchLimits
from pixyproxy.data.search.posting_store import Block, Found, PostingRepository
from pixyproxy.data.search.postings import Posting, intersection, size, union
from pixyproxy.data.search.terms import Wanted, broadened


class BlockSearch:
    """Looks up what is wanted in some blocks after others.

    Attributes:
        is_broadened: whether something broader was looked up in place of a prefix. Then images may be found whose
            prompts do not have the words.
    """

    def __init__(
        self, context: DatabaseContext, wanted: Sequence[Wanted], limits: SearchLimits, budget: SearchBudget
    ) -> None:
        self.is_broadened = False
        self._postings = PostingRepository(context, limits.layout)
        self._wanted = wanted
        self._limits = limits
        self._budget = budget
        # The images of each in a block, on average over those in which it was looked up first.
        self._frequencies: dict[Wanted, float] = {}

    def find(self, blocks: Sequence[Block]) -> tuple[Sequence[Block], dict[int, Posting]]:
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
                few |= {number: posting for number, posting in matches.items() if size(posting) <= POSTING_WORK * terms}
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
            self._budget.left -= POSTING_WORK * sum(map(len, found.values()))
            if prefix is None or _count_of(prefix, found) < most_prefixed:
                return wanted, found
        self.is_broadened = True
        self._wanted = [broadened(each) for each in self._wanted]
        return self._find(blocks, [broadened(each) for each in wanted])

    def _lists(self, work: int) -> int:
        """Return how many posting lists may be read with some work, apart from what is kept for images."""
        return (work - self._limits.image_work) // POSTING_WORK

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
