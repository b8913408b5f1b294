"""The search index: which images are found under which terms.

An image is first indexed in ``image_tail``, in one row with all its terms, which searches read through. Whenever
enough rows are there, they are sealed: their terms go into ``image_postings``, which has a row for each term of each
block of image ids, and the rows go. An image that is changed or deleted after that comes back into the tail, with the
terms that it is sealed under, and is sealed again.

So at any time every image is found under all its terms, in the tail or in its block, by whoever reads the tail first.
It may for a while be found under terms that it has no more: what is found must be looked at again.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pixyproxy.core.exceptions import ConstraintViolationError
from pixyproxy.core.text import caseless_key
from pixyproxy.data.database import Database, DatabaseContext, Row
from pixyproxy.data.repositories import postings
from pixyproxy.data.repositories.index_terms import all_terms, joined, parted, text_terms

# In the place of a term, the bounds of a block's runs. No term is empty.
BOUNDS = ""
_TERMS_A_STATEMENT = 500
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Beyond all times, the wrong way round: the bounds of a run without images.
_NO_OLDEST, _NO_NEWEST = 2**63 - 1, -(2**63)


@dataclass(frozen=True)
class Indexed:
    """What of an image the index depends on."""

    prompt: str
    filename: str
    tags: Sequence[str]
    author_id: int
    visibility: int

    def texts(self) -> list[str]:
        """Return the terms that the tail holds of it."""
        return text_terms(self.prompt, self.tags)

    def terms(self) -> set[str]:
        """Return all its terms."""
        return all_terms(self.texts(), caseless_key(self.filename), self.author_id, self.visibility)


@dataclass(frozen=True)
class Unsealed:
    """An image in the tail, and how many bytes its terms take there."""

    image_id: int
    size: int


@dataclass
class RunBounds:
    """When the oldest and the newest image of each run of a block were created, in microseconds."""

    oldest: list[int]
    newest: list[int]

    @classmethod
    def of_none(cls) -> RunBounds:
        """Return the bounds of a block without images."""
        count = postings.runs_a_block()
        return cls([_NO_OLDEST] * count, [_NO_NEWEST] * count)

    @classmethod
    def decoded(cls, data: bytes) -> RunBounds:
        """Read what ``encoded`` wrote."""
        times = struct.unpack(f"<{len(data) // 8}q", data)
        middle = len(times) // 2
        return cls(list(times[:middle]), list(times[middle:]))

    def encoded(self) -> bytes:
        """Write them as they are stored."""
        return struct.pack(f"<{2 * len(self.oldest)}q", *self.oldest, *self.newest)

    def include(self, offset: int, created_at: int) -> None:
        """Widen them for an image."""
        run = postings.run_of(offset)
        self.oldest[run] = min(self.oldest[run], created_at)
        self.newest[run] = max(self.newest[run], created_at)


class SearchIndexRepository:
    """The search index, within one database context."""

    def __init__(self, context: DatabaseContext) -> None:
        self._context = context

    # --- Following the images ----------------------------------------------------------------------------------------

    def add(self, image_id: int, image: Indexed) -> None:
        """Index a new image."""
        self._insert(image_id, image.texts(), None)

    def change(self, image_id: int, before: Indexed, after: Indexed) -> None:
        """Index a changed image anew; its row must be locked."""
        texts = after.texts()
        if not self._insert(image_id, texts, before.terms()):
            sql = "UPDATE image_tail SET terms = :terms WHERE image_id = :image_id"
            self._context.execute(sql, {"image_id": image_id, "terms": joined(texts)})

    def remove(self, image_id: int, before: Indexed) -> None:
        """Index a deleted image no more; its row must have been locked."""
        if not self._insert(image_id, (), before.terms()):
            # One that was never sealed leaves nothing; of one that was, the tail knows already under what.
            sql = "DELETE FROM image_tail WHERE image_id = :image_id AND sealed_terms IS NULL"
            self._context.execute(sql, {"image_id": image_id})

    def _insert(self, image_id: int, texts: Iterable[str], sealed: Iterable[str] | None) -> bool:
        """Put an image into the tail, and return whether it was not there yet.

        Tried first and not asked first: to look with a lock for a row that is not there would keep others from
        adding theirs.
        """
        try:
            self._context.execute(
                "INSERT INTO image_tail (image_id, terms, sealed_terms) VALUES (:image_id, :terms, :sealed_terms)",
                {
                    "image_id": image_id,
                    "terms": joined(texts),
                    "sealed_terms": None if sealed is None else joined(sorted(sealed)),
                },
            )
        except ConstraintViolationError:
            return False
        return True

    # --- Sealing -----------------------------------------------------------------------------------------------------

    def get_unsealed(self, limit: int) -> list[Unsealed]:
        """Return the images in the tail with the lowest ids."""
        rows = self._context.fetch_all(
            "SELECT image_id, LENGTH(terms) AS size FROM image_tail ORDER BY image_id LIMIT :limit", {"limit": limit}
        )
        return [Unsealed(row["image_id"], row["size"]) for row in rows]

    def count_unsealed(self) -> int:
        """Return how many images the tail has."""
        row = self._context.fetch_one("SELECT COUNT(*) AS number FROM image_tail", {})
        return 0 if row is None else int(row["number"])

    def seal(self, image_ids: Sequence[int], database: Database) -> None:
        """Move images from the tail into their blocks, as far as they are still there; in a transaction of its own.

        Whoever else seals the same blocks, or changes these images, waits until the end of the transaction.
        """
        blocks = sorted({postings.block_of(image_id) for image_id in image_ids})
        for block in blocks:
            self._lock_block(block, database)
        # All locks come before the first plain query, whose view of the database lasts to the end.
        tail = self._context.fetch_all(
            f"SELECT image_id, terms, sealed_terms FROM image_tail WHERE image_id IN ({_listed(image_ids)})"  # noqa: S608
            f"{database.for_update}",
            {},
        )
        images = self._images(image_ids)
        for block in blocks:
            rows = [row for row in tail if postings.block_of(row["image_id"]) == block]
            self._write_postings(block, *_changes(rows, images))
            self._write_bounds(block, [images[row["image_id"]] for row in rows if row["image_id"] in images])
        self._context.execute(f"DELETE FROM image_tail WHERE image_id IN ({_listed(image_ids)})", {})  # noqa: S608

    def _lock_block(self, block: int, database: Database) -> None:
        values = {"block": block, "oldest": _NO_OLDEST, "newest": _NO_NEWEST}
        sql = f"SELECT block FROM image_blocks WHERE block = :block{database.for_update}"  # noqa: S608
        try:
            self._context.execute(
                "INSERT INTO image_blocks (block, oldest, newest) VALUES (:block, :oldest, :newest)", values
            )
        except ConstraintViolationError:
            self._context.fetch_one(sql, values)

    def _images(self, image_ids: Sequence[int]) -> dict[int, Row]:
        rows = self._context.fetch_all(
            "SELECT id, filename_key, author_id, visibility, created_at FROM images "  # noqa: S608
            f"WHERE id IN ({_listed(image_ids)})",
            {},
        )
        return {row["id"]: row for row in rows}

    def _write_postings(self, block: int, added: _Offsets, removed: _Offsets) -> None:
        terms = sorted(added.keys() | removed.keys())
        for start in range(0, len(terms), _TERMS_A_STATEMENT):
            some = terms[start : start + _TERMS_A_STATEMENT]
            stored = self._postings(block, some)
            changed = {}
            for term in some:
                before = postings.decoded(stored.get(term, b""))
                after = postings.changed(before, added.get(term, ()), removed.get(term, ()))
                changed[term] = postings.encoded(after)
            self._replace(block, stored, {term: data for term, data in changed.items() if data})

    def _write_bounds(self, block: int, images: Sequence[Row]) -> None:
        if not images:
            return
        stored = self._postings(block, [BOUNDS])
        bounds = RunBounds.decoded(stored[BOUNDS]) if stored else RunBounds.of_none()
        for image in images:
            bounds.include(postings.offset_of(image["id"]), microseconds(image["created_at"]))
        self._replace(block, stored, {BOUNDS: bounds.encoded()})
        self._context.execute(
            "UPDATE image_blocks SET oldest = :oldest, newest = :newest WHERE block = :block",
            {"block": block, "oldest": min(bounds.oldest), "newest": max(bounds.newest)},
        )

    def _postings(self, block: int, terms: Sequence[str]) -> dict[str, bytes]:
        names, parameters = term_parameters(terms)
        rows = self._context.fetch_all(
            f"SELECT term, posting FROM image_postings WHERE block = :block AND term IN ({names})",  # noqa: S608
            {"block": block, **parameters},
        )
        return {as_text(row["term"]): row["posting"] for row in rows}

    def _replace(self, block: int, old: Iterable[str], new: Mapping[str, bytes]) -> None:
        if old:
            names, parameters = term_parameters(list(old))
            self._context.execute(
                f"DELETE FROM image_postings WHERE block = :block AND term IN ({names})",  # noqa: S608
                {"block": block, **parameters},
            )
        self._context.execute_many(
            "INSERT INTO image_postings (block, term, posting) VALUES (:block, :term, :posting)",
            [{"block": block, "term": term, "posting": data} for term, data in new.items()],
        )


def microseconds(time: datetime) -> int:
    """Return a time as the index counts it: microseconds since 1970."""
    return (time - _EPOCH) // _MICROSECOND


def term_parameters(terms: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return what stands in the brackets of IN for these terms, and the parameters."""
    parameters = {f"term{number}": term for number, term in enumerate(terms)}
    return ", ".join(f":{name}" for name in parameters), parameters


def as_text(value: str | bytes) -> str:
    """Return a key column's text, which servers give as bytes."""
    return value if isinstance(value, str) else value.decode()


_Offsets = Mapping[str, Sequence[int]]
"""Of some terms, the offsets that their postings gain or lose."""


def _changes(tail: Sequence[Row], images: Mapping[int, Row]) -> tuple[_Offsets, _Offsets]:
    """Return what postings gain, and what they lose."""
    added, removed = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for row in tail:
        offset = postings.offset_of(row["image_id"])
        sealed = set(parted(as_text(row["sealed_terms"] or "")))
        wanted = _terms_of(as_text(row["terms"]), images.get(row["image_id"]))
        for term in wanted - sealed:
            added[term].append(offset)
        for term in sealed - wanted:
            removed[term].append(offset)
    return added, removed


def _terms_of(texts: str, image: Mapping[str, Any] | None) -> set[str]:
    """Return all terms of an image in the tail, none where it is deleted."""
    if image is None:
        return set()
    return all_terms(parted(texts), as_text(image["filename_key"]), image["author_id"], image["visibility"])


def _listed(ids: Iterable[int]) -> str:
    return ", ".join(map(str, ids))
