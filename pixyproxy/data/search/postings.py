"""Postings: which images of one block are indexed under a term.

A block is a run of consecutive image ids. A posting holds offsets within its block: few of them as a set, many as the
bits of an integer, because both can be intersected without looking at every image in Python.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import reduce
from operator import and_, or_

# With blocks of 16,384 a million images are 62 of them, and a posting of 2 KiB still lies within its row's page.
BLOCK_BITS = 14
# A page of newest images is read run by run: the fewer images a run has, the fewer are read in vain.
RUN_BITS = 8
# A set is stored in two bytes an offset, so this many take a quarter of the bits of a whole block.
_BITS_AN_OFFSET_SAVED = 64

Posting = frozenset[int] | int


def block_of(image_id: int) -> int:
    """Return the number of the block that an image lies in."""
    return image_id >> BLOCK_BITS


def offset_of(image_id: int) -> int:
    """Return an image's place within its block."""
    return image_id & ((1 << BLOCK_BITS) - 1)


def run_of(offset: int) -> int:
    """Return the number, within the block, of the run that an offset lies in."""
    return offset >> RUN_BITS


def runs_a_block() -> int:
    """Return how many runs a block has."""
    return 1 << (BLOCK_BITS - RUN_BITS)


def decoded(data: bytes) -> Posting:
    """Read a stored posting. One of full length is bits, a shorter one a list of offsets."""
    if len(data) == _bytes_a_block():
        return int.from_bytes(data, "little")
    return frozenset(struct.unpack(f"<{len(data) // 2}H", data))


def encoded(posting: Posting) -> bytes:
    """Write a posting as it is stored; b"" for one that holds nothing."""
    if isinstance(posting, frozenset):
        if len(posting) <= _most_in_a_list():
            return struct.pack(f"<{len(posting)}H", *sorted(posting))
        posting = _bits(posting)
    return posting.to_bytes(_bytes_a_block(), "little") if posting else b""


def without(posting: Posting, removed: Iterable[int]) -> Posting:
    """Return a posting with some offsets fewer."""
    if isinstance(posting, frozenset):
        return posting.difference(removed)
    return posting & ~_bits(removed)


def union(postings: Iterable[Posting]) -> Posting:
    """Return what is in any of the postings."""
    postings = tuple(postings)
    if len(postings) == 1:
        return postings[0]
    sets = [posting for posting in postings if isinstance(posting, frozenset)]
    bits = [posting for posting in postings if isinstance(posting, int)]
    if not bits:
        return frozenset().union(*sets)
    return reduce(or_, bits) | _bits(offset for offsets in sets for offset in offsets)


def intersection(postings: Iterable[Posting]) -> Posting:
    """Return what is in all of the postings, of which there is at least one."""
    postings = tuple(postings)
    sets = sorted((posting for posting in postings if isinstance(posting, frozenset)), key=len)
    bits = [posting for posting in postings if isinstance(posting, int)]
    if not sets:
        return reduce(and_, bits)
    found = sets[0].intersection(*sets[1:])
    if bits and found:
        flags = reduce(and_, bits).to_bytes(_bytes_a_block(), "little")
        found = frozenset([offset for offset in found if flags[offset >> 3] >> (offset & 7) & 1])
    return found


def offsets(posting: Posting) -> Iterable[int]:
    """Return the offsets in a posting."""
    return posting if isinstance(posting, frozenset) else _offsets_of_bits(posting)


def runs_of(posting: Posting) -> list[int]:
    """Return the numbers of the runs that a posting has offsets in."""
    if isinstance(posting, frozenset):
        return list({run_of(offset) for offset in posting})
    length = 1 << (RUN_BITS - 3)
    flags, none = posting.to_bytes(_bytes_a_block(), "little"), bytes(length)
    return [run for run in range(runs_a_block()) if flags[run * length : (run + 1) * length] != none]


def offsets_in_run(posting: Posting, run: int) -> list[int]:
    """Return the offsets of a posting that lie in a run."""
    if isinstance(posting, frozenset):
        return [offset for offset in posting if run_of(offset) == run]
    first = run << RUN_BITS
    bits = posting >> first & ((1 << (1 << RUN_BITS)) - 1)
    return [first + offset for offset in _offsets_of_bits(bits)]


def _most_in_a_list() -> int:
    return (1 << BLOCK_BITS) // _BITS_AN_OFFSET_SAVED


def _bytes_a_block() -> int:
    return 1 << (BLOCK_BITS - 3)


def _bits(offsets: Iterable[int]) -> int:
    flags = bytearray(_bytes_a_block())
    for offset in offsets:
        flags[offset >> 3] |= 1 << (offset & 7)
    return int.from_bytes(flags, "little")


def _offsets_of_bits(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
