"""The search index's blocks: a row for each block, and a row with a posting list for each of its terms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pixyproxy.data.database import DatabaseContext, in_list, named_list
from pixyproxy.data.search.postings import DEFAULT_LAYOUT, BlockLayout, Posting, difference, union
from pixyproxy.data.search.run_bounds import RunBounds

# The last code point: all texts with a prefix lie between the prefix and the prefix followed by it.
_LAST_CHARACTER = "\U0010ffff"
_TERMS_PER_STATEMENT = 500

Offsets = Mapping[str, Collection[int]]
"""The offsets of some terms within a block."""

Found = Mapping[int, Mapping[str, Posting]]
"""Posting lists by block and term."""


@dataclass(frozen=True)
class Block:
    """A block of the index.

    Attributes:
        number: its number.
        oldest: the creation time of its oldest image, in microseconds since 1970.
        newest: that of its newest image.
        bounds: the same for each of its runs, in the stored form of ``RunBounds``.
        has_batches: whether a server of the first release has sealed images of it into batches.
    """

    number: int
    oldest: int
    newest: int
    bounds: bytes
    has_batches: bool


class PostingRepository:
    """The blocks and their posting lists, within one database context. A block that is written to must be locked."""

    def __init__(self, context: DatabaseContext, layout: BlockLayout = DEFAULT_LAYOUT) -> None:
        self._context = context
        self._layout = layout

    def get_blocks(self) -> list[Block]:
        """Return all blocks."""
        sql = "SELECT block AS number, oldest, newest, bounds, has_batches FROM image_blocks"
        return [Block(**row) for row in self._context.fetch_all(sql, {})]

    def find(
        self, blocks: Collection[int], terms: Sequence[str], prefix: str | None = None, most_prefixed: int = 0
    ) -> Found:
        """Return the posting lists of some terms, and of terms with a prefix, in blocks given by number.

        Of those with the prefix, return ``most_prefixed`` at most, in no order.
        """
        found: dict[int, dict[str, Posting]] = defaultdict(dict)
        if not blocks:
            return found
        select = f"SELECT block, term, posting FROM image_postings WHERE block IN ({in_list(blocks)}) AND"  # noqa: S608
        names, parameters = named_list("term", terms)
        bounds: dict[str, str | int] = {}
        # A union, because not every database walks the index for a single condition with OR.
        parts = [f"{select} term IN ({names})"] if terms else []
        if prefix is not None:
            prefixed = f"{select} term >= :first AND term < :end LIMIT :most"
            # A union of SQLite takes no LIMIT in a part of it.
            parts.append(f"SELECT block, term, posting FROM ({prefixed}) AS prefixed")  # noqa: S608
            bounds = {"first": prefix, "end": prefix + _LAST_CHARACTER, "most": most_prefixed}
        for row in self._context.fetch_all(" UNION ALL ".join(parts), {**parameters, **bounds}):
            found[row["block"]][as_text(row["term"])] = self._layout.decode(row["posting"])
        return found

    def change(self, block: int, added: Offsets, removed: Offsets) -> None:
        """Add offsets to posting lists of a block, and remove others from them."""
        for terms in _batched(added.keys() | removed.keys()):
            stored = self.find([block], terms).get(block, {})
            lists: dict[str, Posting] = {}
            for term in terms:
                if term in stored or term in added:
                    left = difference(stored.get(term, frozenset()), removed.get(term, ()))
                    lists[term] = union([left, frozenset(added.get(term, ()))])
            self._replace(block, lists)

    def drop_batches(self, block: int) -> None:
        """Delete the batches of a block."""
        self._context.execute("DELETE FROM image_batches WHERE block = :block", {"block": block})
        self._context.execute("UPDATE image_blocks SET has_batches = 0 WHERE block = :block", {"block": block})

    def widen_bounds(self, block: int, created_at: Mapping[int, int]) -> None:
        """Widen the bounds of a block to include images: their creation times in microseconds, by offset."""
        if not created_at:
            return
        stored = self._context.fetch_value("SELECT bounds FROM image_blocks WHERE block = :block", {"block": block})
        bounds = RunBounds.decode(stored or b"", self._layout.runs)
        for offset, time in created_at.items():
            bounds.include(self._layout.run_of(offset), time)
        self._context.execute(
            "UPDATE image_blocks SET oldest = :oldest, newest = :newest, bounds = :bounds WHERE block = :block",
            {
                "block": block,
                "oldest": min(bounds.oldest),
                "newest": max(bounds.newest),
                "bounds": bounds.encode(),
            },
        )

    def _replace(self, block: int, lists: Mapping[str, Posting]) -> None:
        rows = {term: self._layout.encode(posting) for term, posting in lists.items()}
        self._context.execute_many(
            "REPLACE INTO image_postings (block, term, posting) VALUES (:block, :term, :posting)",
            [{"block": block, "term": term, "posting": data} for term, data in rows.items() if data],
        )
        if empty := [term for term, data in rows.items() if not data]:
            names, parameters = named_list("term", empty)
            self._context.execute(
                f"DELETE FROM image_postings WHERE block = :block AND term IN ({names})",  # noqa: S608
                {"block": block, **parameters},
            )


def as_text(value: str | bytes) -> str:
    """Return the text of a binary column, which MySQL returns as bytes and SQLite as it was given."""
    return value if isinstance(value, str) else value.decode()


def _batched(terms: Collection[str]) -> Iterator[list[str]]:
    """Split terms into batches for one statement each, in the order of the index."""
    ordered = sorted(terms)
    for start in range(0, len(ordered), _TERMS_PER_STATEMENT):
        yield ordered[start : start + _TERMS_PER_STATEMENT]
