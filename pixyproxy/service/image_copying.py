"""Copying the bytes of all images from one store into another, while servers go on serving.

What was copied and verified is written down page by page, so that a copy that was cut off goes on where it was, and a
second one takes only what is new. Nothing here changes an image.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from pixyproxy.core.exceptions import (
    ContentDamagedError,
    DBConnectionError,
    ImageNotFoundError,
    PixyProxyException,
    StorageFullError,
    StorageUnavailableError,
    for_log,
)
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.generations import GenerationRepository, GenerationState
from pixyproxy.data.repositories.image_copies import ImageCopyRepository, ImageToCopy
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.data.transactions import in_transaction

_logger = logging.getLogger(__name__)

Subject = TypeVar("Subject")
Result = TypeVar("Result")

# Each holds one image in memory.
_IMAGES_AT_ONCE = 8
# What is copied again at most after a copy was cut off.
_PAGE = 100
_COPIES_PAGE = 1000
_READ_BYTES = 1024 * 1024
# What would go wrong with every other image as well.
_ENDING_ERRORS = (DBConnectionError, StorageFullError, StorageUnavailableError)


class CopyOutcome(StrEnum):
    """What became of one image.

    It was COPIED now, or an earlier copy was VERIFIED now, or was KNOWN to have been verified; its bytes are MISSING in
    the source, or DAMAGED there; or it was DELETED meanwhile. It FAILED where a store does not read, take or delete it,
    but does so with others.
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
    """One image, and what became of it."""

    guid: str
    outcome: CopyOutcome

    @property
    def is_verified_now(self) -> bool:
        """Whether the bytes in the target have just been found to be the image's."""
        return self.outcome in (CopyOutcome.COPIED, CopyOutcome.VERIFIED)


class ImageCopying:
    """Copies all images from one store into another."""

    def __init__(self, database: Database, source: ImageStore, target: ImageStore, *, deletes_source: bool) -> None:
        """Copy nothing yet.

        Args:
            database: where the images are entered.
            source: where their bytes are.
            target: where they are to be.
            deletes_source: whether the bytes in the source are deleted once those in the target are verified.
        """
        self._database = database
        self._source = source
        self._target = target
        self._deletes_source = deletes_source
        self._store_guid = target.guid()

    def count_images(self) -> int:
        """Return how many images there are, copied or not."""
        with self._database.reading() as context:
            return self._copies(context).count_images()

    def run(self) -> Iterator[CopyResult]:
        """Copy, and say of each image what became of it.

        Raises:
            StorageFullError: the target has no room.
            StorageUnavailableError: one of the stores is away.
            DBConnectionError: the database is away.
        """
        with ThreadPoolExecutor(_IMAGES_AT_ONCE) as pool:
            for images in self._pages():
                results = []
                for result in pool.map(lambda image: _attempt(self._copy, image, image.guid), images):
                    results.append(result)
                    yield result
                verified = [result.guid for result in results if result.is_verified_now]
                self._note_copies(verified)
                if self._deletes_source:
                    list(pool.map(self._source.delete, verified))
        yield from self._copy_noted()
        yield from self._copy_aside()
        yield from self._delete_copies_of_deleted()

    def _copies(self, context: DatabaseContext) -> ImageCopyRepository:
        return ImageCopyRepository(context, self._store_guid)

    def _note_copies(self, guids: list[str]) -> None:
        in_transaction(self._database, lambda context: self._copies(context).replace(guids))

    def _forget_copies(self, guids: list[str]) -> None:
        in_transaction(self._database, lambda context: self._copies(context).delete(guids))

    def _pages(self) -> Iterator[list[ImageToCopy]]:
        after = 0
        while True:
            with self._database.reading() as context:
                images = self._copies(context).get_images(_PAGE, after=after)
            if not images:
                return
            yield images
            after = images[-1].id

    def _copy(self, image: ImageToCopy) -> CopyResult:
        if image.is_copied and not self._deletes_source:
            return CopyResult(image.guid, CopyOutcome.KNOWN)
        if _is_whole(self._target, image):
            return CopyResult(image.guid, CopyOutcome.VERIFIED)
        data = _read(self._source, image.guid)
        if data is None:
            return CopyResult(image.guid, CopyOutcome.MISSING if self._is_there(image) else CopyOutcome.DELETED)
        if hashlib.sha256(data).hexdigest() != image.sha256:
            return CopyResult(image.guid, CopyOutcome.DAMAGED)
        self._target.write(image.guid, data)
        return CopyResult(image.guid, CopyOutcome.COPIED)

    def _is_there(self, image: ImageToCopy) -> bool:
        try:
            with self._database.reading() as context:
                ImageRepository(context).get_any(image.guid)
        except ImageNotFoundError:
            return False
        return True

    def _copy_noted(self) -> Iterator[CopyResult]:
        """Copy pictures that are not entered yet, so that servers on the target enter them; give those that failed."""
        for guid in self._source.list_manifests():
            if result := _attempt(self._copy_with_note, guid, guid):
                yield result

    def _copy_with_note(self, guid: str) -> None:
        with self._database.reading() as context:
            generation = GenerationRepository(context).find_by_image(guid)
        if generation is None or generation.state is GenerationState.SUCCEEDED:
            return
        note, data = self._source.read_manifest(guid), _read(self._source, guid)
        if note is not None and data is not None:
            # The bytes first: a note without them would be thrown away.
            self._target.write(guid, data)
            self._target.write_manifest(guid, note)

    def _copy_aside(self) -> Iterator[CopyResult]:
        """Copy answers that were kept aside, which are few and stay in the source too; give those that failed."""
        for guid in set(self._source.list_aside()) - set(self._target.list_aside()):
            if result := _attempt(self._copy_body, guid, guid):
                yield result

    def _copy_body(self, guid: str) -> None:
        body = self._source.read_aside(guid)
        if body is not None:
            self._target.write_aside(guid, body)

    def _delete_copies_of_deleted(self) -> Iterator[CopyResult]:
        """Delete what was copied of images that have been deleted since; give those that failed."""
        after = ""
        while True:
            with self._database.reading() as context:
                copies = self._copies(context).get_copies(_COPIES_PAGE, after=after)
            if not copies:
                return
            gone = [copy.image_guid for copy in copies if not copy.has_image]
            failed = [result for guid in gone if (result := _attempt(self._target.delete, guid, guid))]
            yield from failed
            self._forget_copies([guid for guid in gone if guid not in {result.guid for result in failed}])
            after = copies[-1].image_guid


def _attempt(work: Callable[[Subject], Result], subject: Subject, guid: str) -> Result | CopyResult:
    """Do something for one image; where it goes wrong with this one alone, log why, and return that it FAILED."""
    try:
        return work(subject)
    except _ENDING_ERRORS:
        raise
    except PixyProxyException as error:
        _logger.warning("The image %s: %s", guid, for_log(error))
        return CopyResult(guid, CopyOutcome.FAILED)


def _is_whole(store: ImageStore, image: ImageToCopy) -> bool:
    digest = hashlib.sha256()
    try:
        with store.open(image.guid) as reader:
            if reader.size != image.size_bytes:
                return False
            while chunk := reader.read(_READ_BYTES):
                digest.update(chunk)
    except ContentDamagedError:
        return False
    return digest.hexdigest() == image.sha256


def _read(store: ImageStore, guid: str) -> bytes | None:
    """Return the bytes of an image, or None where there are none that can be read."""
    try:
        with store.open(guid) as reader:
            return reader.read(reader.size)
    except ContentDamagedError:
        return None
