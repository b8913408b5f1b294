"""How much of the index a search reads with one query, and for one page."""

from __future__ import annotations

from dataclasses import dataclass

from pixyproxy.data.search.postings import DEFAULT_LAYOUT, BlockLayout

# What takes about as long as to check so many images (benchmarks.million, SQLite): to read a posting list, and to check
# an image against its prompt.
POSTING_WORK = 8
PROMPT_WORK = 8


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


@dataclass
class SearchBudget:
    """What the searches of one page may still do.

    Attributes:
        left: their work, in images to check.
        text: the characters of prompts to compare with the words.
    """

    left: int
    text: int

    @classmethod
    def of(cls, limits: SearchLimits) -> SearchBudget:
        """Return the budget of a page."""
        return cls(limits.page_work, limits.page_text)
