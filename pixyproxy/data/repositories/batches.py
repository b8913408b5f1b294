"""Batches: the postings of a few hundred images, many terms in one text.

A text holds a line for each term, ``term TAB offsets``: each offset within the batch as two digits of base 32, or, of
many, a bit for each image of the batch in hexadecimal. To write a text costs a fraction of what a row for each of its
terms would, most of which would soon be written again.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache

from pixyproxy.core.search_terms import SHORT_PREFIX_LENGTH
from pixyproxy.data.repositories import postings
from pixyproxy.data.repositories.postings import Posting

# Enough for a text to be short where one term is looked for, and few enough to be written at once.
BUCKETS = 128
# Terms that begin alike lie in one bucket, as far as searches ask for all terms with a beginning.
_LETTERS_TO_BUCKET = 1 + SHORT_PREFIX_LENGTH
_DIGITS = "0123456789abcdefghijklmnopqrstuv"
_WRITTEN = [high + low for high in _DIGITS for low in _DIGITS]

Offsets = Mapping[str, Collection[int]]
"""The offsets of some terms."""


@lru_cache(maxsize=65_536)
def bucket_of(term: str) -> int:
    """Return which of the texts of a batch a term is in; a beginning of more than three letters will do."""
    return zlib.crc32(term[:_LETTERS_TO_BUCKET].encode()) % BUCKETS


def text_of(offsets: Offsets) -> str:
    """Write a text; "" where nothing is in it."""
    lines = [f"{term}\t{_written(each)}" for term, each in offsets.items() if each]
    return "\n".join(["", *lines, ""]) if lines else ""


def all_offsets(text: str) -> dict[str, set[int]]:
    """Read a text, in the form that it was written from."""
    return {term: set(postings.offsets(found)) for term, found in all_postings(text)}


def all_postings(text: str) -> Iterator[tuple[str, Posting]]:
    """Read a text: its terms, and what the batch has under each."""
    return _lines_from(text, "\n")


def posting_of(text: str, term: str) -> Posting:
    """Read what the batch has under a term."""
    return next((found for _, found in _lines_from(text, f"\n{term}\t")), 0)


def postings_by_prefix(text: str, prefix: str) -> Iterator[tuple[str, Posting]]:
    """Read the terms that begin so, and what the batch has under them."""
    return _lines_from(text, f"\n{prefix}")


def _lines_from(text: str, beginning: str) -> Iterator[tuple[str, Posting]]:
    start = text.find(beginning)
    while 0 <= start < len(text) - 1:
        end = text.index("\n", start + 1)
        term, _, written = text[start + 1 : end].partition("\t")
        yield term, _read(written)
        start = text.find(beginning, end)


def _written(offsets: Collection[int]) -> str:
    length = _length_of_bits()
    if 2 * len(offsets) < length:
        return "".join([_WRITTEN[offset] for offset in sorted(offsets)])
    return f"{sum(1 << offset for offset in offsets):0{length}x}"


def _read(written: str) -> Posting:
    """Read offsets: bits have a length of their own, and a list is shorter."""
    if len(written) == _length_of_bits():
        return int(written, 16)
    return frozenset([int(written[place : place + 2], 32) for place in range(0, len(written), 2)])


def _length_of_bits() -> int:
    return 1 << (postings.BATCH_BITS - 2)
