"""The search index: which images are found under which terms.

A new image is indexed in ``image_tail``, in one row with all its terms; searches scan the tail. When the tail has
enough rows, they are sealed: their terms are added to the posting lists of blocks of image ids, and the rows are
deleted. An image that is changed or deleted after that is inserted into the tail again, with the terms that it is
sealed under, and is sealed again.

So a search that reads the tail before the blocks finds every image under all its terms. For a while it may also find
an image under terms that the image no longer has, so each match is checked against the image.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pixyproxy.core.exceptions import ConstraintViolationError
from pixyproxy.core.text import caseless_key
from pixyproxy.data.database import DatabaseContext, Row, in_list
from pixyproxy.data.search.posting_store import PostingRepository, as_text
from pixyproxy.data.search.postings import DEFAULT_LAYOUT, BlockLayout
from pixyproxy.data.search.run_bounds import NO_NEWEST, NO_OLDEST, microseconds
from pixyproxy.data.search.terms import all_terms, joined, parted, text_terms

# The terms of the longest prompt take 350 kB in a statement, and MariaDB's max_allowed_packet is 16 MiB by default.
_IMAGES_PER_QUERY = 16


@dataclass(frozen=True)
class Indexed:
    """The fields of an image that the index depends on."""

    prompt: str
    filename: str
    tags: Sequence[str]
    author_id: int
    visibility: int

    def texts(self) -> list[str]:
        """Return the terms that the tail stores: those of the prompt and of the tags."""
        return text_terms(self.prompt, self.tags)

    def terms(self) -> set[str]:
        """Return all terms."""
        return all_terms(self.texts(), caseless_key(self.filename), self.author_id, self.visibility)


class SearchIndexRepository:
    """The search index, within one database context."""

    def __init__(self, context: DatabaseContext, layout: BlockLayout = DEFAULT_LAYOUT) -> None:
        self._context = context
        self._layout = layout
        self._postings = PostingRepository(context, layout)

    # --- Changes of images -------------------------------------------------------------------------------------------

    def add(self, image_id: int, image: Indexed) -> None:
        """Index a new image."""
        self._insert(image_id, image.texts(), None)

    def change(self, image_id: int, before: Indexed, after: Indexed) -> None:
        """Index a changed image again; its row must be locked."""
        texts = after.texts()
        if not self._insert(image_id, texts, before.terms()):
            sql = "UPDATE image_tail SET terms = :terms WHERE image_id = :image_id"
            self._context.execute(sql, {"image_id": image_id, "terms": joined(texts)})

    def remove(self, image_id: int, before: Indexed) -> None:
        """Remove a deleted image from the index; its row must have been locked."""
        if not self._insert(image_id, (), before.terms()):
            # The tail already has the terms that the image is sealed under, if it ever was sealed.
            sql = "DELETE FROM image_tail WHERE image_id = :image_id AND sealed_terms IS NULL"
            self._context.execute(sql, {"image_id": image_id})

    def _insert(self, image_id: int, texts: Iterable[str], sealed: Iterable[str] | None) -> bool:
        """Insert an image into the tail, and return False if it is there already.

        It is not looked up first, because a locking read of a missing row would block the inserts of others.
        """
        sealed_terms = None if sealed is None else joined(sorted(sealed))
        row = {"image_id": image_id, "terms": joined(texts), "sealed_terms": sealed_terms}
        try:
            self._context.insert_row("image_tail", row)
        except ConstraintViolationError:
            return False
        return True

    # --- Sealing -----------------------------------------------------------------------------------------------------

    def get_unsealed(self, limit: int) -> dict[int, int]:
        """Return the images with the lowest ids in the tail, in order: by id, the bytes of their terms."""
        rows = self._context.fetch_all(
            "SELECT image_id, LENGTH(terms) AS size FROM image_tail ORDER BY image_id LIMIT :limit", {"limit": limit}
        )
        return {row["image_id"]: row["size"] for row in rows}

    def count_unsealed(self) -> int:
        """Return the number of images in the tail."""
        return self._context.fetch_value("SELECT COUNT(*) FROM image_tail", {}) or 0

    def seal(self, image_ids: Sequence[int]) -> None:
        """Move those of the images that are still in the tail into their blocks, in a transaction of its own.

        Others who seal the same blocks or change these images wait until the end of the transaction.
        """
        blocks = sorted({self._layout.block_of(image_id) for image_id in image_ids})
        for block in blocks:
            self._lock_block(block)
        # All locks come before the first plain query, whose snapshot lasts until the end of the transaction.
        tail = self._context.fetch_all(
            f"SELECT image_id, terms, sealed_terms FROM image_tail WHERE image_id IN ({in_list(image_ids)})"  # noqa: S608
            f"{self._context.for_update}",
            {},
        )
        images = self._images(image_ids)
        for block in blocks:
            rows = [row for row in tail if self._layout.block_of(row["image_id"]) == block]
            self._seal_block(block, rows, images)
        self._context.execute(f"DELETE FROM image_tail WHERE image_id IN ({in_list(image_ids)})", {})  # noqa: S608

    def _seal_block(self, block: int, tail: Sequence[Row], images: Mapping[int, Row]) -> None:
        added, removed = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
        for row in tail:
            offset = self._layout.offset_of(row["image_id"])
            terms = _terms_of(row, images)
            sealed = set(parted(as_text(row["sealed_terms"] or "")))
            for term in terms - sealed:
                added[term].append(offset)
            for term in sealed - terms:
                removed[term].append(offset)
        self._postings.change(block, added, removed)
        existing = [images[row["image_id"]] for row in tail if row["image_id"] in images]
        times = {self._layout.offset_of(image["id"]): microseconds(image["created_at"]) for image in existing}
        self._postings.widen_bounds(block, times)

    def get_batched_block(self) -> int | None:
        """Return a block with batches of the first release, or None."""
        return next((block.number for block in self._postings.get_blocks() if block.has_batches), None)

    def reopen(self, block: int) -> None:
        """Move all images of a block back into the tail, and drop its batches; in a transaction of its own.

        The first release sealed the images of growing blocks into batches, which this release does not read. The
        posting lists of the block stay: they may have too many images, and each match is checked anyway.
        """
        self._lock_block(block)
        first, end = self._layout.first_id(block), self._layout.first_id(block + 1)
        self._context.execute(
            "UPDATE image_tail SET sealed_terms = NULL WHERE image_id >= :first AND image_id < :end",
            {"first": first, "end": end},
        )
        for start in range(first, end, _IMAGES_PER_QUERY):
            rows = self._context.fetch_all(
                "SELECT id, prompt, tags FROM images WHERE id >= :first AND id < :end "
                "AND id NOT IN (SELECT image_id FROM image_tail)",
                {"first": start, "end": min(start + _IMAGES_PER_QUERY, end)},
            )
            self._context.execute_many(
                "INSERT INTO image_tail (image_id, terms) VALUES (:image_id, :terms)",
                [
                    {"image_id": row["id"], "terms": joined(text_terms(row["prompt"], json.loads(row["tags"])))}
                    for row in rows
                ],
            )
        self._postings.drop_batches(block)

    def _lock_block(self, block: int) -> None:
        sql = f"SELECT block FROM image_blocks WHERE block = :block{self._context.for_update}"  # noqa: S608
        row = {"block": block, "oldest": NO_OLDEST, "newest": NO_NEWEST, "bounds": b"", "has_batches": 0}
        try:
            self._context.insert_row("image_blocks", row)
        except ConstraintViolationError:
            self._context.fetch_one(sql, {"block": block})

    def _images(self, image_ids: Sequence[int]) -> dict[int, Row]:
        rows = self._context.fetch_all(
            "SELECT id, filename_key, author_id, visibility, created_at FROM images "  # noqa: S608
            f"WHERE id IN ({in_list(image_ids)})",
            {},
        )
        return {row["id"]: row for row in rows}


def _terms_of(row: Row, images: Mapping[int, Row]) -> set[str]:
    """Return all terms of an image in the tail, none if the image is deleted."""
    image = images.get(row["image_id"])
    if image is None:
        return set()
    texts = parted(as_text(row["terms"]))
    return all_terms(texts, as_text(image["filename_key"]), image["author_id"], image["visibility"])
