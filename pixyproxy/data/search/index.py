"""The search index: which images are found under which terms.

An image is first indexed in ``image_tail``, in one row with all its terms, which searches read through. Whenever
enough rows are there, they are sealed: their terms become postings, by blocks of image ids, and the rows go. An image
that is changed or deleted after that comes back into the tail, with the terms that it is sealed under, and is sealed
again.

So at any time every image is found under all its terms, in the tail or in its block, by whoever reads the tail first.
It may for a while be found under terms that it has no more: what is found must be looked at again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pixyproxy.core.exceptions import ConstraintViolationError
from pixyproxy.core.text import caseless_key
from pixyproxy.data.database import Database, DatabaseContext, Row
from pixyproxy.data.search import postings
from pixyproxy.data.search.posting_store import Offsets, PostingRepository, as_text, listed
from pixyproxy.data.search.run_bounds import NO_NEWEST, NO_OLDEST, microseconds
from pixyproxy.data.search.terms import all_terms, joined, parted, text_terms

# Prompts can be long.
_IMAGES_A_QUERY = 256


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


class SearchIndexRepository:
    """The search index, within one database context."""

    def __init__(self, context: DatabaseContext) -> None:
        self._context = context
        self._postings = PostingRepository(context)

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

        Args:
            image_ids: the images.
            database: where this context is from.
        """
        blocks = sorted({postings.block_of(image_id) for image_id in image_ids})
        for block in blocks:
            self._lock_block(block, database)
        # All locks come before the first plain query, whose view of the database lasts to the end.
        tail = self._context.fetch_all(
            f"SELECT image_id, terms, sealed_terms FROM image_tail WHERE image_id IN ({listed(image_ids)})"  # noqa: S608
            f"{database.for_update}",
            {},
        )
        images = self._images(image_ids)
        for block in blocks:
            rows = [row for row in tail if postings.block_of(row["image_id"]) == block]
            self._seal_block(block, rows, images)
        self._context.execute(f"DELETE FROM image_tail WHERE image_id IN ({listed(image_ids)})", {})  # noqa: S608

    def _seal_block(self, block: int, tail: Sequence[Row], images: Mapping[int, Row]) -> None:
        self._postings.remove(block, _lost(tail, images))
        self._postings.add(block, _gained(tail, images))
        made = [images[row["image_id"]] for row in tail if row["image_id"] in images]
        times = {postings.offset_of(image["id"]): microseconds(image["created_at"]) for image in made}
        self._postings.widen_bounds(block, times)

    def get_batched_block(self) -> int | None:
        """Return a block with batches of the first release, or None."""
        return next((block.number for block in self._postings.get_blocks() if block.has_batches), None)

    def reopen(self, block: int, database: Database) -> None:
        """Move all images of a block back into the tail, and drop its batches; in a transaction of its own.

        The first release sealed the images of growing blocks into batches, which are not read any more. What its rows
        have of the block stays: a search that finds too much there looks at the images, as always.
        """
        self._lock_block(block, database)
        first, end = block << postings.BLOCK_BITS, (block + 1) << postings.BLOCK_BITS
        self._context.execute(
            "UPDATE image_tail SET sealed_terms = NULL WHERE image_id >= :first AND image_id < :end",
            {"first": first, "end": end},
        )
        for start in range(first, end, _IMAGES_A_QUERY):
            rows = self._context.fetch_all(
                "SELECT id, prompt, tags FROM images WHERE id >= :first AND id < :end "
                "AND id NOT IN (SELECT image_id FROM image_tail)",
                {"first": start, "end": start + _IMAGES_A_QUERY},
            )
            self._context.execute_many(
                "INSERT INTO image_tail (image_id, terms) VALUES (:image_id, :terms)",
                [
                    {"image_id": row["id"], "terms": joined(text_terms(row["prompt"], json.loads(row["tags"])))}
                    for row in rows
                ],
            )
        self._postings.drop_batches(block)

    def _lock_block(self, block: int, database: Database) -> None:
        sql = f"SELECT block FROM image_blocks WHERE block = :block{database.for_update}"  # noqa: S608
        try:
            self._context.execute(
                "INSERT INTO image_blocks (block, oldest, newest, bounds, has_batches) "
                "VALUES (:block, :oldest, :newest, '', 0)",
                {"block": block, "oldest": NO_OLDEST, "newest": NO_NEWEST},
            )
        except ConstraintViolationError:
            self._context.fetch_one(sql, {"block": block})

    def _images(self, image_ids: Sequence[int]) -> dict[int, Row]:
        rows = self._context.fetch_all(
            "SELECT id, filename_key, author_id, visibility, created_at FROM images "  # noqa: S608
            f"WHERE id IN ({listed(image_ids)})",
            {},
        )
        return {row["id"]: row for row in rows}


def _gained(tail: Iterable[Row], images: Mapping[int, Row]) -> Offsets:
    """Return where postings gain images of the tail."""
    gained = defaultdict[str, list[int]](list)
    for row in tail:
        offset = postings.offset_of(row["image_id"])
        terms = _terms_of(row, images)
        if row["sealed_terms"] is not None:
            terms -= _sealed_terms_of(row)
        for term in terms:
            gained[term].append(offset)
    return gained


def _lost(tail: Iterable[Row], images: Mapping[int, Row]) -> Offsets:
    """Return where postings lose images of the tail."""
    lost = defaultdict[str, list[int]](list)
    for row in tail:
        if row["sealed_terms"] is not None:
            for term in _sealed_terms_of(row) - _terms_of(row, images):
                lost[term].append(postings.offset_of(row["image_id"]))
    return lost


def _sealed_terms_of(row: Row) -> set[str]:
    return set(parted(as_text(row["sealed_terms"])))


def _terms_of(row: Row, images: Mapping[int, Row]) -> set[str]:
    """Return all terms of an image in the tail, none where it is deleted."""
    image = images.get(row["image_id"])
    if image is None:
        return set()
    texts = parted(as_text(row["terms"]))
    return all_terms(texts, as_text(image["filename_key"]), image["author_id"], image["visibility"])
