"""Batches: the postings of a few hundred images, many terms in one text.

A text holds a line for each term, ``term TAB offsets``: each offset within the batch as two digits of base 32, or, of
many, a bit for each image of the batch in hexadecimal. To write a text costs a fraction of what a row for each of its
terms would, most of which would soon be written again.
"""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
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
_BITS = [1 << offset for offset in range(1 << postings.BATCH_BITS)]

Offsets = Mapping[str, Collection[int]]
"""The offsets of some terms."""


@lru_cache(maxsize=65_536)
def bucket_of(term: str) -> int:
    """Return which of the texts of a batch a term is in; a beginning of more than three letters will do."""
    return zlib.crc32(term[:_LETTERS_TO_BUCKET].encode()) % BUCKETS


def texts_of(offsets: Offsets) -> dict[int, str]:
    """Write the texts of a batch, by bucket; none where nothing is in it."""
    length_of_bits = _length_of_bits()
    lines = defaultdict[int, list[str]](list)
    for term, each in offsets.items():
        if each:
            lines[bucket_of(term)].append(f"{term}\t{_written(each, length_of_bits)}")
    return {bucket: "\n".join(["", *some, ""]) for bucket, some in lines.items()}


def all_offsets(text: str) -> dict[str, set[int]]:
    """Read a text, in the form that it was written from."""
    return {term: set(postings.offsets(found)) for term, found in all_postings(text)}


def rows_of(texts: Iterable[tuple[int, str]]) -> dict[str, bytes]:
    """Write what several batches of a block have, together, as the postings of its rows.

    Args:
        texts: the number of each batch, in rising order, and a text of it.
    """
    lists = defaultdict[str, bytes](bytes)
    bits = defaultdict[str, int](int)
    length_of_bits = _length_of_bits()
    for batch, text in texts:
        first = batch << postings.BATCH_BITS
        # All at once, because a text has many terms with few offsets each. Two digits become two bytes.
        parts = text.strip("\n").replace("\t", "\n").split("\n")
        written = parts[1::2]
        digits = "".join([each for each in written if len(each) < length_of_bits]).encode()
        data = _as_list(digits, first)
        place = 0
        for term, each in zip(parts[::2], written, strict=True):
            if len(each) < length_of_bits:
                end = place + len(each)
                lists[term] += data[place:end]
                place = end
            else:
                bits[term] |= int(each, 16) << first
    rows = {term: postings.encoded_list(data) for term, data in lists.items()}
    for term, some in bits.items():
        rows[term] = postings.encoded(postings.union([some, postings.decoded(rows.get(term, b""))]))
    return rows


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


def _written(offsets: Collection[int], length_of_bits: int) -> str:
    if 2 * len(offsets) < length_of_bits:
        return "".join([_WRITTEN[offset] for offset in sorted(offsets)])
    return f"{sum(map(_BITS.__getitem__, offsets)):0{length_of_bits}x}"


def _read(written: str) -> Posting:
    """Read offsets: bits have a length of their own, and a list is shorter."""
    if len(written) == _length_of_bits():
        return int(written, 16)
    return frozenset([int(written[place : place + 2], 32) for place in range(0, len(written), 2)])


def _as_list(digits: bytes, first: int) -> bytes:
    """Turn offsets within a batch, two digits each, into a list as rows have it, ``first`` being where it begins."""
    count = len(digits) // 2
    pairs = struct.unpack(f"<{count}H", digits)
    return struct.pack(f"<{count}H", *map(_offsets_of_pairs(first).__getitem__, pairs))


@lru_cache(maxsize=64)
def _offsets_of_pairs(first: int) -> dict[int, int]:
    """The offsets within a block that pairs of digits stand for, as they are read: two bytes as a number."""
    return {int.from_bytes(pair.encode(), "little"): first + offset for offset, pair in enumerate(_WRITTEN)}


def _length_of_bits() -> int:
    return 1 << (postings.BATCH_BITS - 2)
