"""The search index: which images are found under which terms.

An image is first indexed in ``image_tail``, in one row with all its terms, which searches read through. Whenever
enough rows are there, they are sealed: their terms become postings, by blocks of image ids, and the rows go. An image
that is changed or deleted after that comes back into the tail, with the terms that it is sealed under, and is sealed
again.

So at any time every image is found under all its terms, in the tail or in its block, by whoever reads the tail first.
It may for a while be found under terms that it has no more: what is found must be looked at again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pixyproxy.core.exceptions import ConstraintViolationError
from pixyproxy.core.text import caseless_key
from pixyproxy.data.database import Database, DatabaseContext, Row
from pixyproxy.data.repositories import postings
from pixyproxy.data.repositories.batches import Offsets
from pixyproxy.data.repositories.index_terms import all_terms, joined, parted, text_terms
from pixyproxy.data.repositories.posting_store import PostingRepository, as_text, listed
from pixyproxy.data.repositories.run_bounds import NO_NEWEST, NO_OLDEST, microseconds

# Of more images than a quarter of a block, it costs less to write rows at once than batches first.
_BATCHED_SHARE = 4


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

    def get_growing_block(self) -> int:
        """Return the number of the last block, 0 where there is none yet."""
        return max((block.number for block in self._postings.get_blocks()), default=0)

    def seal(self, image_ids: Sequence[int], growing_block: int, database: Database) -> None:
        """Move images from the tail into their blocks, as far as they are still there; in a transaction of its own.

        Whoever else seals the same blocks, or changes these images, waits until the end of the transaction.

        Args:
            image_ids: the images.
            growing_block: the last block so far; it and those after it get batches, the others rows.
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
            self._seal_block(block, rows, images, may_have_batches=block >= growing_block)
        self._context.execute(f"DELETE FROM image_tail WHERE image_id IN ({listed(image_ids)})", {})  # noqa: S608

    def _seal_block(
        self, block: int, tail: Sequence[Row], images: Mapping[int, Row], *, may_have_batches: bool
    ) -> None:
        lost = _lost(tail, images)
        if lost:
            self._postings.remove(block, lost)
        if may_have_batches and len(tail) < (1 << postings.BLOCK_BITS) // _BATCHED_SHARE:
            for batch in sorted({_batch_of(row) for row in tail}):
                some = [row for row in tail if _batch_of(row) == batch]
                gained = _gained(some, images, postings.offset_in_batch)
                if gained:
                    self._postings.add_to_batch(block, batch, gained)
            self._note_batches(block, has_batches=True)
        else:
            self._postings.add(block, _gained(tail, images, postings.offset_of))
        made = [images[row["image_id"]] for row in tail if row["image_id"] in images]
        times = {postings.offset_of(image["id"]): microseconds(image["created_at"]) for image in made}
        self._postings.widen_bounds(block, times)

    # --- Merging -----------------------------------------------------------------------------------------------------

    def get_full_block(self) -> int | None:
        """Return a block that has batches although it does not grow any more, or None."""
        growing = self.get_growing_block()
        full = (block.number for block in self._postings.get_blocks() if block.has_batches and block.number < growing)
        return next(full, None)

    def merge(self, block: int, buckets: int, database: Database) -> None:
        """Move a number of buckets of a full block from its batches into its rows; in a transaction of its own."""
        self._lock_block(block, database)
        if not self._postings.merge(block, buckets):
            self._note_batches(block, has_batches=False)

    def _note_batches(self, block: int, *, has_batches: bool) -> None:
        self._context.execute(
            "UPDATE image_blocks SET has_batches = :has_batches WHERE block = :block",
            {"block": block, "has_batches": int(has_batches)},
        )

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


def without_unfinished(image_ids: list[int]) -> list[int]:
    """Return images, given in the order of their ids, without those of the last batch, unless there is no other.

    A batch that is sealed in two parts is read and written anew for the second. The images left out are fewer than a
    batch has.
    """
    last = image_ids[-1] >> postings.BATCH_BITS
    finished = [image_id for image_id in image_ids if image_id >> postings.BATCH_BITS < last]
    return finished or image_ids


def _batch_of(row: Row) -> int:
    return postings.batch_of(postings.offset_of(row["image_id"]))


def _gained(tail: Iterable[Row], images: Mapping[int, Row], offset_of: Callable[[int], int]) -> Offsets:
    """Return where postings gain images of the tail."""
    gained = defaultdict[str, list[int]](list)
    for row in tail:
        offset = offset_of(row["image_id"])
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
