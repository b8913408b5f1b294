"""Where postings are stored: in a row for each term of a block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pixyproxy.data.database import DatabaseContext, Row
from pixyproxy.data.search import postings
from pixyproxy.data.search.postings import Posting
from pixyproxy.data.search.run_bounds import RunBounds

# The last code point: what begins with a prefix lies between the prefix and the prefix followed by it.
_LAST_CHARACTER = "\U0010ffff"
_TERMS_A_STATEMENT = 500

Offsets = Mapping[str, Collection[int]]
"""The offsets of some terms within a block."""

Found = dict[int, dict[str, Posting]]
"""By block and term, the postings that were found."""


@dataclass(frozen=True)
class Block:
    """A block of the index.

    Attributes:
        number: its number.
        oldest: when its oldest image was created, in microseconds.
        newest: when its newest image was created.
        bounds: the same for each of its runs, to be read by ``RunBounds``.
        has_batches: whether a server of the first release has sealed images into batches of it.
    """

    number: int
    oldest: int
    newest: int
    bounds: bytes
    has_batches: bool


class PostingRepository:
    """The stored postings, within one database context."""

    def __init__(self, context: DatabaseContext) -> None:
        self._context = context

    # --- Reading -----------------------------------------------------------------------------------------------------

    def get_blocks(self) -> list[Block]:
        """Return all blocks."""
        rows = self._context.fetch_all("SELECT block, oldest, newest, bounds, has_batches FROM image_blocks", {})
        return [
            Block(row["block"], row["oldest"], row["newest"], row["bounds"], bool(row["has_batches"])) for row in rows
        ]

    def find(self, blocks: Sequence[Block], terms: Sequence[str], prefix: str | None = None) -> Found:
        """Return postings of some blocks.

        Args:
            blocks: the blocks to look into.
            terms: what to look for.
            prefix: where it is given, all terms that begin so are looked for, too; longer than a short prefix.
        """
        found: Found = defaultdict(dict)
        for row in self._rows([block.number for block in blocks], terms, prefix):
            found[row["block"]][as_text(row["term"])] = postings.decoded(row["posting"])
        return found

    def _rows(self, blocks: Sequence[int], terms: Sequence[str], prefix: str | None = None) -> list[Row]:
        if not blocks:
            return []
        select = f"SELECT block, term, posting FROM image_postings WHERE block IN ({listed(blocks)}) AND"  # noqa: S608
        names, parameters = _named(terms)
        # As a union, because as one condition not every database would walk the index.
        parts = [f"{select} term IN ({names})"] if terms else []
        if prefix is not None:
            parts.append(f"{select} term >= :first AND term < :end")
            parameters |= {"first": prefix, "end": prefix + _LAST_CHARACTER}
        return self._context.fetch_all(" UNION ALL ".join(parts), parameters)

    # --- Writing -----------------------------------------------------------------------------------------------------

    def add(self, block: int, added: Offsets) -> None:
        """Add offsets to the postings of a block, which must be locked."""
        for terms in _statements(added):
            stored = self._row_postings(block, terms)
            self._write(
                block, {term: postings.union([stored.get(term, frozenset()), frozenset(added[term])]) for term in terms}
            )

    def remove(self, block: int, removed: Offsets) -> None:
        """Take offsets away from the postings of a block, which must be locked."""
        for terms in _statements(removed):
            stored = self._row_postings(block, terms)
            self._write(block, {term: postings.without(posting, removed[term]) for term, posting in stored.items()})

    def drop_batches(self, block: int) -> None:
        """Delete the batches of a block, which must be locked."""
        self._context.execute("DELETE FROM image_batches WHERE block = :block", {"block": block})
        self._context.execute("UPDATE image_blocks SET has_batches = 0 WHERE block = :block", {"block": block})

    def widen_bounds(self, block: int, created_at: Mapping[int, int]) -> None:
        """Let the bounds of a block, which must be locked, include images, by their offsets."""
        if not created_at:
            return
        row = self._context.fetch_one("SELECT bounds FROM image_blocks WHERE block = :block", {"block": block})
        bounds = RunBounds.decoded(row["bounds"]) if row and row["bounds"] else RunBounds.of_none()
        for offset, time in created_at.items():
            bounds.include(offset, time)
        self._context.execute(
            "UPDATE image_blocks SET oldest = :oldest, newest = :newest, bounds = :bounds WHERE block = :block",
            {
                "block": block,
                "oldest": min(bounds.oldest),
                "newest": max(bounds.newest),
                "bounds": bounds.encoded(),
            },
        )

    def _row_postings(self, block: int, terms: Sequence[str]) -> dict[str, Posting]:
        return {as_text(row["term"]): postings.decoded(row["posting"]) for row in self._rows([block], terms)}

    def _write(self, block: int, changed: Mapping[str, Posting]) -> None:
        """Store postings in place of those that were there."""
        rows = {term: postings.encoded(posting) for term, posting in changed.items()}
        self._context.execute_many(
            "REPLACE INTO image_postings (block, term, posting) VALUES (:block, :term, :posting)",
            [{"block": block, "term": term, "posting": data} for term, data in rows.items() if data],
        )
        empty = [term for term, data in rows.items() if not data]
        if empty:
            names, parameters = _named(empty)
            self._context.execute(
                f"DELETE FROM image_postings WHERE block = :block AND term IN ({names})",  # noqa: S608
                {"block": block, **parameters},
            )


def as_text(value: str | bytes) -> str:
    """Return text of a binary column, which servers give as bytes."""
    return value if isinstance(value, str) else value.decode()


def listed(numbers: Iterable[int]) -> str:
    """Return what stands in the brackets of IN for these numbers."""
    return ", ".join(map(str, numbers))


def _statements(terms: Iterable[str]) -> Iterator[list[str]]:
    """Cut terms into as many as one statement takes, in the order of the index."""
    every = sorted(terms)
    for start in range(0, len(every), _TERMS_A_STATEMENT):
        yield every[start : start + _TERMS_A_STATEMENT]


def _named(terms: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return what stands in the brackets of IN for these terms, and the parameters."""
    parameters = {f"term{number}": term for number, term in enumerate(terms)}
    return ", ".join(f":{name}" for name in parameters), parameters
