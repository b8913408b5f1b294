"""Where postings are stored: in a row for each term of a block, and those of a block that still grows in batches.

Batches are moved into rows when their block is full. Whoever reads looks into the batches first and then into the
rows, and so misses nothing that is moved meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pixyproxy.core.exceptions import ConstraintViolationError
from pixyproxy.data.database import DatabaseContext, Row
from pixyproxy.data.repositories import batches, postings
from pixyproxy.data.repositories.batches import Offsets
from pixyproxy.data.repositories.postings import Posting
from pixyproxy.data.repositories.run_bounds import RunBounds

# The last code point: what begins with a prefix lies between the prefix and the prefix followed by it.
_LAST_CHARACTER = "\U0010ffff"
_TERMS_A_STATEMENT = 500

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
        has_batches: whether it may have batches.
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
        found: dict[int, dict[str, list[Posting]]] = defaultdict(lambda: defaultdict(list))
        for row in self._batches(blocks, terms if prefix is None else [*terms, prefix]):
            text = as_text(row["postings"])
            in_batch = [
                (term, batches.posting_of(text, term)) for term in terms if batches.bucket_of(term) == row["bucket"]
            ]
            if prefix is not None:
                in_batch += batches.postings_by_prefix(text, prefix)
            for term, posting in in_batch:
                if posting:
                    found[row["block"]][term].append(postings.shifted(posting, row["batch"] << postings.BATCH_BITS))
        # After the batches, because terms are moved from there to here.
        for row in self._rows([block.number for block in blocks], terms, prefix):
            found[row["block"]][as_text(row["term"])].append(postings.decoded(row["posting"]))
        return {
            block: {term: postings.union(several) for term, several in terms.items()} for block, terms in found.items()
        }

    def _batches(self, blocks: Sequence[Block], terms: Iterable[str]) -> list[Row]:
        numbers = [block.number for block in blocks if block.has_batches]
        if not numbers:
            return []
        buckets = {batches.bucket_of(term) for term in terms}
        return self._context.fetch_all(
            "SELECT block, bucket, batch, postings FROM image_batches "  # noqa: S608
            f"WHERE block IN ({listed(numbers)}) AND bucket IN ({listed(buckets)})",
            {},
        )

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
        """Add offsets to the rows of a block, which must be locked."""
        self._add_rows(block, {term: postings.encoded(frozenset(offsets)) for term, offsets in added.items()})

    def add_to_batch(self, block: int, batch: int, added: Offsets) -> None:
        """Add offsets within a batch to it; its block must be locked."""
        taken = self._taken_from_batch(block, batch, added)
        both = {term: {*offsets, *added.get(term, ())} for term, offsets in taken.items()}
        self._insert_batch(block, batch, {**added, **both})

    def remove(self, block: int, removed: Offsets) -> None:
        """Take offsets away from rows and batches of a block, which must be locked."""
        for batch, some in _by_batch(removed).items():
            taken = self._taken_from_batch(block, batch, some)
            kept = {term: offsets.difference(some.get(term, ())) for term, offsets in taken.items()}
            self._insert_batch(block, batch, kept)
        for terms in _statements(removed):
            stored = self._row_postings(block, terms)
            left = {term: postings.without(postings.decoded(data), removed[term]) for term, data in stored.items()}
            self._replace_rows(block, stored, {term: postings.encoded(posting) for term, posting in left.items()})

    def merge(self, block: int, most: int) -> bool:
        """Move some buckets of a block, which must be locked, from its batches into its rows.

        Args:
            block: the block.
            most: how many buckets at the most.

        Returns:
            Whether there were any.
        """
        rows = self._context.fetch_all(
            "SELECT DISTINCT bucket FROM image_batches WHERE block = :block ORDER BY bucket LIMIT :most",
            {"block": block, "most": most},
        )
        if not rows:
            return False
        condition = f"block = :block AND bucket IN ({listed(row['bucket'] for row in rows)})"
        rows = self._context.fetch_all(
            f"SELECT batch, postings FROM image_batches WHERE {condition} ORDER BY batch",  # noqa: S608
            {"block": block},
        )
        self._add_rows(block, batches.rows_of((row["batch"], as_text(row["postings"])) for row in rows))
        self._context.execute(f"DELETE FROM image_batches WHERE {condition}", {"block": block})  # noqa: S608
        return True

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

    def _add_rows(self, block: int, added: Mapping[str, bytes]) -> None:
        """Add encoded postings to the rows of a block.

        Tried first as if there were no such rows: nearly always there are none, and to ask costs two thirds of writing.
        """
        for terms in _statements(added):
            some = {term: added[term] for term in terms}
            try:
                self._insert_rows(block, some)
            except ConstraintViolationError:
                # Some of them may have been written now. What is added twice is there once.
                stored = self._row_postings(block, terms)
                both = {term: [some[term], data] for term, data in stored.items()}
                united = {term: postings.union(map(postings.decoded, data)) for term, data in both.items()}
                encoded = {term: postings.encoded(posting) for term, posting in united.items()}
                self._replace_rows(block, stored, some | encoded)

    def _row_postings(self, block: int, terms: Sequence[str]) -> dict[str, bytes]:
        return {as_text(row["term"]): row["posting"] for row in self._rows([block], terms)}

    def _replace_rows(self, block: int, old: Iterable[str], new: Mapping[str, bytes]) -> None:
        if old:
            names, parameters = _named(list(old))
            self._context.execute(
                f"DELETE FROM image_postings WHERE block = :block AND term IN ({names})",  # noqa: S608
                {"block": block, **parameters},
            )
        self._insert_rows(block, new)

    def _insert_rows(self, block: int, rows: Mapping[str, bytes]) -> None:
        self._context.execute_many(
            "INSERT INTO image_postings (block, term, posting) VALUES (:block, :term, :posting)",
            [{"block": block, "term": term, "posting": data} for term, data in rows.items() if data],
        )

    def _taken_from_batch(self, block: int, batch: int, terms: Iterable[str]) -> dict[str, set[int]]:
        """Take out the texts of a batch that these terms are in, and return all that was in them."""
        place = {"block": block, "batch": batch}
        buckets = {batches.bucket_of(term) for term in terms}
        condition = f"block = :block AND batch = :batch AND bucket IN ({listed(buckets)})"
        rows = self._context.fetch_all(f"SELECT postings FROM image_batches WHERE {condition}", place)  # noqa: S608
        if rows:
            self._context.execute(f"DELETE FROM image_batches WHERE {condition}", place)  # noqa: S608
        return {
            term: offsets for row in rows for term, offsets in batches.all_offsets(as_text(row["postings"])).items()
        }

    def _insert_batch(self, block: int, batch: int, offsets: Offsets) -> None:
        self._context.execute_many(
            "INSERT INTO image_batches (block, bucket, batch, postings) VALUES (:block, :bucket, :batch, :postings)",
            [
                {"block": block, "bucket": bucket, "batch": batch, "postings": text}
                for bucket, text in sorted(batches.texts_of(offsets).items())
            ],
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


def _by_batch(offsets: Offsets) -> dict[int, dict[str, list[int]]]:
    """Return offsets within a block as offsets within its batches."""
    parts: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for term, some in offsets.items():
        for offset in some:
            parts[postings.batch_of(offset)][term].append(postings.offset_in_batch(offset))
    return parts
