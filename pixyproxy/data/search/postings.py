"""Posting lists: the images of one block that are indexed under a term, as offsets within the block.

A posting list of few offsets is a set, one of many is a bitmap in an integer: both are intersected without a loop over
all images of the block. docs/decisions/search.md compares this with Roaring bitmaps.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_

# A stored set takes two bytes an offset, so the largest one takes a quarter of the bytes of a bitmap.
_BLOCK_SIZE_PER_SET_SIZE = 64

Posting = frozenset[int] | int


@dataclass(frozen=True)
class BlockLayout:
    """How image ids are divided, and how a posting list is stored.

    The default is that of all released databases: a million images are 62 blocks, and a posting list, of 2 KiB at
    most, lies within the page of its row. A search reads images run by run: small runs keep the number of images low
    that are read and do not belong on the page.

    Attributes:
        block_bits: a block has ``2**block_bits`` consecutive image ids.
        run_bits: a run has ``2**run_bits`` consecutive offsets of a block.
    """

    block_bits: int = 14
    run_bits: int = 8

    @property
    def runs(self) -> int:
        """The number of runs in a block."""
        return 1 << (self.block_bits - self.run_bits)

    @property
    def _bitmap_bytes(self) -> int:
        return 1 << (self.block_bits - 3)

    def block_of(self, image_id: int) -> int:
        """Return the number of the block of an image."""
        return image_id >> self.block_bits

    def offset_of(self, image_id: int) -> int:
        """Return the offset of an image within its block."""
        return image_id & ((1 << self.block_bits) - 1)

    def run_of(self, offset: int) -> int:
        """Return the number of an offset's run within the block."""
        return offset >> self.run_bits

    def first_id(self, block: int) -> int:
        """Return the image id at offset 0 of a block."""
        return block << self.block_bits

    def decode(self, data: bytes) -> Posting:
        """Read a stored posting list: a bitmap where it has the length of one, otherwise offsets of two bytes."""
        if len(data) == self._bitmap_bytes:
            return int.from_bytes(data, "little")
        return frozenset(struct.unpack(f"<{len(data) // 2}H", data))

    def encode(self, posting: Posting) -> bytes:
        """Return the stored form of a posting list, b"" for an empty one."""
        if isinstance(posting, frozenset):
            if len(posting) <= (1 << self.block_bits) // _BLOCK_SIZE_PER_SET_SIZE:
                return struct.pack(f"<{len(posting)}H", *sorted(posting))
            posting = _bitmap(posting)
        return posting.to_bytes(self._bitmap_bytes, "little") if posting else b""

    def runs_of(self, posting: Posting) -> list[int]:
        """Return the numbers of the runs in which a posting list has offsets."""
        if isinstance(posting, frozenset):
            return list({self.run_of(offset) for offset in posting})
        length = 1 << (self.run_bits - 3)
        data, empty = posting.to_bytes(self._bitmap_bytes, "little"), bytes(length)
        return [run for run in range(self.runs) if data[run * length : (run + 1) * length] != empty]

    def offsets_in_run(self, posting: Posting, run: int) -> list[int]:
        """Return the offsets of a posting list that lie in a run."""
        if isinstance(posting, frozenset):
            return [offset for offset in posting if self.run_of(offset) == run]
        first = run << self.run_bits
        bits = posting >> first & ((1 << (1 << self.run_bits)) - 1)
        return [first + offset for offset in offsets(bits)]


DEFAULT_LAYOUT = BlockLayout()


def size(posting: Posting) -> int:
    """Return the number of offsets in a posting list."""
    return len(posting) if isinstance(posting, frozenset) else posting.bit_count()


def difference(posting: Posting, removed: Iterable[int]) -> Posting:
    """Return a posting list without some offsets."""
    if isinstance(posting, frozenset):
        return posting.difference(removed)
    return posting & ~_bitmap(removed)


def union(postings: Iterable[Posting]) -> Posting:
    """Return the offsets that are in any of the posting lists."""
    postings = tuple(postings)
    if len(postings) == 1:
        return postings[0]
    sets = [posting for posting in postings if isinstance(posting, frozenset)]
    bitmaps = [posting for posting in postings if isinstance(posting, int)]
    if not bitmaps:
        return frozenset().union(*sets)
    return reduce(or_, bitmaps) | _bitmap(offset for offsets in sets for offset in offsets)


def intersection(postings: Iterable[Posting]) -> Posting:
    """Return the offsets that are in all of the posting lists, of which there is at least one."""
    postings = tuple(postings)
    sets = sorted((posting for posting in postings if isinstance(posting, frozenset)), key=len)
    bitmaps = [posting for posting in postings if isinstance(posting, int)]
    if not sets:
        return reduce(and_, bitmaps)
    found = sets[0].intersection(*sets[1:])
    if bitmaps and found:
        common = reduce(and_, bitmaps)
        # To test bits of bytes takes half as long as to shift the integer.
        data = common.to_bytes((max(common.bit_length(), *found) >> 3) + 1, "little")
        found = frozenset([offset for offset in found if data[offset >> 3] >> (offset & 7) & 1])
    return found


def offsets(posting: Posting) -> Iterator[int]:
    """Return the offsets of a posting list."""
    if isinstance(posting, frozenset):
        yield from posting
        return
    while posting:
        lowest = posting & -posting
        yield lowest.bit_length() - 1
        posting ^= lowest


def _bitmap(offsets: Iterable[int]) -> int:
    offsets = tuple(offsets)
    data = bytearray((max(offsets, default=0) >> 3) + 1)
    for offset in offsets:
        data[offset >> 3] |= 1 << (offset & 7)
    return int.from_bytes(data, "little")
