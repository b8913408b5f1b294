"""Copies the bytes of all images from one store into another, while servers are running.

Verified copies are recorded page by page: a run that was interrupted continues from there, and a later run copies only
new images. Images are not changed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from pixyproxy.core.exceptions import (
    ContentDamagedError,
    DBConnectionError,
    PixyProxyException,
    StorageFullError,
    StorageUnavailableError,
    for_log,
)
from pixyproxy.core.fields import GenerationState
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.generations import GenerationRepository
from pixyproxy.data.repositories.image_copies import ImageCopyRepository, ImageToCopy
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.renditions import RenditionRepository
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.data.transactions import in_transaction
from pixyproxy.service.content import sha256_of

_logger = logging.getLogger(__name__)

Subject = TypeVar("Subject")
Result = TypeVar("Result")

# Each thread has one image in memory.
_THREADS = 8
# After an interruption, at most one page is copied again.
_PAGE_SIZE = 100
# The next image would fail as well.
_FATAL_ERRORS = (DBConnectionError, StorageFullError, StorageUnavailableError)


class CopyOutcome(StrEnum):
    """The outcome of copying one image.

    It was COPIED now, or an earlier copy was VERIFIED now or is KNOWN to be verified; its bytes are MISSING or DAMAGED
    in the source; or it was DELETED meanwhile. It FAILED if a store cannot read, write or delete it, but can do so with
    others.
    """

    COPIED = "copied"
    VERIFIED = "verified"
    KNOWN = "known"
    MISSING = "missing"
    DAMAGED = "damaged"
    DELETED = "deleted"
    FAILED = "failed"


@dataclass(frozen=True)
class CopyResult:
    """The outcome for one image."""

    guid: str
    outcome: CopyOutcome

    @property
    def is_verified_now(self) -> bool:
        """Whether the bytes in the target have just been verified."""
        return self.outcome in (CopyOutcome.COPIED, CopyOutcome.VERIFIED)


class ImageCopying:
    """Copies all images from one store into another."""

    def __init__(self, database: Database, source: ImageStore, target: ImageStore, *, deletes_source: bool) -> None:
        """Prepare to copy; with ``deletes_source``, bytes are deleted from the source once the copies are verified."""
        self._database = database
        self._source = source
        self._target = target
        self._deletes_source = deletes_source
        self._store_guid = target.guid()

    def count_images(self) -> int:
        """Return the number of images, copied or not."""
        with self._database.reading() as context:
            return self._copies(context).count_images()

    def run(self) -> Iterator[CopyResult]:
        """Copy all images, and yield the outcome of each.

        Raises:
            StorageFullError: the target has no room.
            StorageUnavailableError: one of the stores does not answer.
            DBConnectionError: the database cannot be reached.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            for images in self._pages():
                results = []
                for result in pool.map(lambda image: _attempt(self._copy, image, image.guid), images):
                    results.append(result)
                    yield result
                verified = [result.guid for result in results if result.is_verified_now]
                self._record_copies(verified)
                if self._deletes_source:
                    deleted = pool.map(lambda guid: _attempt(self._delete_from_source, guid, guid), verified)
                    yield from filter(None, deleted)
        # Image bytes whose detail is not committed, for recovery by servers on the target.
        yield from _failures(self._copy_uncommitted, self._source.list_manifests())
        # Answers that were set aside, which are few and also stay in the source.
        yield from _failures(self._copy_aside, set(self._source.list_aside()) - set(self._target.list_aside()))
        yield from self._delete_copies_of_deleted()

    def _copies(self, context: DatabaseContext) -> ImageCopyRepository:
        return ImageCopyRepository(context, self._store_guid)

    def _record_copies(self, guids: list[str]) -> None:
        in_transaction(self._database, lambda context: self._copies(context).replace(guids))

    def _delete_copies(self, guids: list[str]) -> None:
        in_transaction(self._database, lambda context: self._copies(context).delete(guids))

    def _pages(self) -> Iterator[list[ImageToCopy]]:
        after = 0
        while True:
            with self._database.reading() as context:
                images = self._copies(context).get_images(_PAGE_SIZE, after=after)
            if not images:
                return
            yield images
            after = images[-1].id

    def _copy(self, image: ImageToCopy) -> CopyResult:
        if image.is_copied and not self._deletes_source:
            return CopyResult(image.guid, CopyOutcome.KNOWN)
        if sha256_of(self._target, image.guid) == image.sha256:
            return CopyResult(image.guid, CopyOutcome.VERIFIED)
        data = _read(self._source, image.guid)
        if data is None:
            return CopyResult(image.guid, CopyOutcome.MISSING if self._exists(image) else CopyOutcome.DELETED)
        if hashlib.sha256(data).hexdigest() != image.sha256:
            return CopyResult(image.guid, CopyOutcome.DAMAGED)
        self._target.write(image.guid, data)
        return CopyResult(image.guid, CopyOutcome.COPIED)

    def _delete_from_source(self, guid: str) -> None:
        """Delete the bytes of an image and of its renditions, which are made again on demand."""
        with self._database.reading() as context:
            renditions = RenditionRepository(context).get_of_image(guid)
        for rendition in renditions:
            self._source.delete_rendition(guid, rendition.edge)
        self._source.delete(guid)

    def _exists(self, image: ImageToCopy) -> bool:
        with self._database.reading() as context:
            return ImageRepository(context).has(image.guid)

    def _copy_uncommitted(self, guid: str) -> None:
        with self._database.reading() as context:
            generation = GenerationRepository(context).find_by_image(guid)
        if generation is None or generation.state is GenerationState.SUCCEEDED:
            return
        manifest, data = self._source.read_manifest(guid), _read(self._source, guid)
        if manifest is not None and data is not None:
            # The bytes first: recovery deletes a manifest without them.
            self._target.write(guid, data)
            self._target.write_manifest(guid, manifest)

    def _copy_aside(self, guid: str) -> None:
        body = self._source.read_aside(guid)
        if body is not None:
            self._target.write_aside(guid, body)

    def _delete_copies_of_deleted(self) -> Iterator[CopyResult]:
        """Delete the copies of images that have been deleted since; yield failures."""
        after = ""
        while True:
            with self._database.reading() as context:
                copies = self._copies(context).get_copies(_PAGE_SIZE, after=after)
            if not copies:
                return
            deleted = [guid for guid, has_image in copies.items() if not has_image]
            failed = list(_failures(self._target.delete, deleted))
            yield from failed
            self._delete_copies([guid for guid in deleted if guid not in {result.guid for result in failed}])
            after = max(copies)


def _attempt(work: Callable[[Subject], Result], subject: Subject, guid: str) -> Result | CopyResult:
    """Return the result of ``work``; if it fails for this image alone, log the error, and return the outcome FAILED."""
    try:
        return work(subject)
    except _FATAL_ERRORS:
        raise
    except PixyProxyException as error:
        _logger.warning("Copying failed for the image %s: %s", guid, for_log(error))
        return CopyResult(guid, CopyOutcome.FAILED)


def _failures(work: Callable[[str], None], guids: Iterable[str]) -> Iterator[CopyResult]:
    """Do something for each image, and yield the failures."""
    for guid in guids:
        if result := _attempt(work, guid, guid):
            yield result


def _read(store: ImageStore, guid: str) -> bytes | None:
    """Return the bytes of an image, or None if they are missing or cannot be read."""
    try:
        with store.open(guid) as reader:
            return reader.read(reader.size)
    except ContentDamagedError:
        return None
