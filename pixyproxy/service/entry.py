"""Entering pictures: from bytes that are made to an image that is found, whatever happens in between.

First a note of all that is known of the picture is stored beside its bytes, then the bytes, then the detail is entered
in the database, and last the note goes. So whenever this is cut off, what there is leads to the image or to nothing:
a note without the right bytes is thrown away, a note with them is entered.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from cachetools import TTLCache

from pixyproxy.core.exceptions import (
    ContentDamagedError,
    DBConnectionError,
    PixyProxyException,
    StorageUnavailableError,
    for_log,
)
from pixyproxy.core.models import Image, ImageDetail, Model
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.image_store import ImageStore
from pixyproxy.data.repositories.deletions import DeletionRepository
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, GenerationState
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.transactions import in_transaction
from pixyproxy.service.leases import LEASE

if TYPE_CHECKING:
    from typing_extensions import Buffer

Result = TypeVar("Result")

_logger = logging.getLogger(__name__)

_READ_BYTES = 1024 * 1024
_DELETIONS_A_SWEEP = 100
# An image that cannot be recovered is logged again after an hour, and no more than so many are within one.
_REPORT_SECONDS = 3600.0
_MAX_REPORTED = 1000
# A picture that the store does not take now: how often to try, and for how long. It is paid for, and nowhere else.
_KEEP_RETRY_SECONDS = 1.0
_KEEP_SECONDS = 600.0


class _Note(Model, extra="ignore"):
    """What is noted of a picture until it is entered; earlier releases noted more."""

    detail: ImageDetail


class ImageEntry:
    """Stores pictures and enters them, and finishes what was cut off."""

    def __init__(self, database: Database, store: ImageStore) -> None:
        self._database = database
        self._store = store
        # Pictures that this process kept and could not enter: nobody works on these any more, whatever their lease.
        self._left: set[str] = set()
        # Pictures with a note that were under way when they were last looked at.
        self._waiting: set[str] = set()
        # Images that were logged lately, because something is wrong with them.
        self._reported: TTLCache[str, None] = TTLCache(_MAX_REPORTED, ttl=_REPORT_SECONDS)
        self._list_at = 0.0
        # The deletion that failed last; the next recovery begins after it.
        self._failed_deletion = 0

    def keep(self, detail: ImageDetail, data: Buffer) -> None:
        """Store a picture and its note; when this returns, the picture cannot be lost any more.

        A store that is away is waited for, which may take minutes.

        Raises:
            StorageFullError: there is no room.
            StorageUnavailableError: the store stayed away. If it has the picture after all, ``finish_abandoned`` enters
                it.
        """
        note = _Note(detail=detail).model_dump_json()
        began = time.time()  # a clock that goes on while the machine sleeps
        give_up_at = time.monotonic() + _KEEP_SECONDS
        _until_stored(lambda: self._store.write_note(detail.guid, note), give_up_at)
        try:
            _until_stored(lambda: self._store.write(detail.guid, data), give_up_at)
        except StorageUnavailableError:
            raise
        except BaseException:
            self._drop_note(detail.guid)
            raise
        if not 0 <= time.time() - began < LEASE.total_seconds():
            # Taken for dead meanwhile: the note may have been thrown away as one without bytes.
            self._store.write_note(detail.guid, note)

    def keep_aside(self, guid: str, body: bytes) -> bool:
        """Keep a provider's answer from which no image could be read, and log where; return whether it is kept.

        A store that is away is waited for, as in ``keep``.
        """
        try:
            place = _until_stored(lambda: self._store.write_aside(guid, body), time.monotonic() + _KEEP_SECONDS)
        except PixyProxyException as error:
            _logger.error("The provider's answer for the image %s is lost: %s", guid, error.message)
            return False
        _logger.warning("The provider's answer for the image %s (%d bytes) is kept aside: %s", guid, len(body), place)
        return True

    def enter(self, generation: Generation, detail: ImageDetail) -> Image:
        """Enter a picture that is kept, or return its image where it was entered before.

        Raises:
            DBConnectionError: the database is away; ``finish_abandoned`` enters it later.
        """
        self._left.add(detail.guid)
        image = in_transaction(self._database, lambda context: _enter(context, generation, detail))
        self._left.discard(detail.guid)
        self._drop_note(detail.guid)
        return image

    def rescue(self, generation: Generation) -> bool:
        """Enter a picture whose process died before it did, if there is one; return whether it is entered now.

        Raises:
            DBConnectionError: the database is away.
        """
        guid = generation.image_guid
        text = self._store.read_note(guid)
        if text is None:
            return False
        if generation.state is GenerationState.STORED:
            self._drop_note(guid)
            return True
        detail = _Note.model_validate_json(text).detail
        sha256 = self._sha256_of(guid)
        if sha256 == detail.sha256:
            self.enter(generation, detail)
            return True
        if self._sha256_of(guid) != sha256:
            raise StorageUnavailableError("The image store gives now these bytes for an image and now those.")
        _logger.warning("The picture %s was cut off while it was stored, and is lost.", guid)
        if sha256 is not None:
            # Where there are no bytes, none are deleted: if the lease ran out too early, a writer that lives may be
            # about to put them there, and to enter them.
            self._store.delete(guid)
        self._store.delete_note(guid)
        return False

    def finish_abandoned(self) -> None:
        """Finish all that was cut off: pictures without a detail, bytes of deleted images, half-written files.

        What is wrong with one image, or with one of these kinds, stops no other.

        Raises:
            DBConnectionError: the database is away; the rest is left for the next time.
            PixyProxyException: the store cannot say what it has.
        """
        failure: PixyProxyException | None = None
        for step in (self._finish_known, self._finish_listed, self._finish_deletions, self._store.sweep):
            try:
                step()
            except DBConnectionError:
                raise
            except PixyProxyException as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def delete_bytes(self, guid: str) -> None:
        """Delete the bytes of an image whose detail is deleted, and what says that they may still be there."""
        self._store.delete_note(guid)
        self._store.delete(guid)
        in_transaction(self._database, lambda context: DeletionRepository(context).delete(guid))

    def _finish_known(self) -> None:
        """Finish the images that are known to have a note."""
        for guid in self._left | self._waiting:
            self._attempt(self._finish, guid)

    def _finish_listed(self) -> None:
        """Finish the others, where it is time to list them again."""
        if time.monotonic() < self._list_at:
            return
        for guid in set(self._store.noted()) - self._left - self._waiting:
            self._attempt(self._finish, guid)
        self._list_at = time.monotonic() + self._store.listing_interval

    def _finish_deletions(self) -> None:
        with self._database.reading() as context:
            deletions = DeletionRepository(context).get_next(_DELETIONS_A_SWEEP, after=self._failed_deletion)
        self._failed_deletion = 0
        for deletion in deletions:
            if not self._attempt(self.delete_bytes, deletion.image_guid):
                # A store that is away is not asked a hundred times.
                self._failed_deletion = deletion.id
                return

    def _attempt(self, finish: Callable[[str], None], guid: str) -> bool:
        """Do something for one image; log what is wrong with it, and return whether nothing is."""
        try:
            finish(guid)
        except DBConnectionError:
            raise
        except Exception as error:
            is_foreseen = isinstance(error, PixyProxyException)
            self._report(
                guid, f"cannot be recovered or deleted, and is tried again: {for_log(error)}", traceback=not is_foreseen
            )
            return False
        return True

    def _finish(self, guid: str) -> None:
        """Finish an image with a note, unless somebody works on it."""
        with self._database.reading() as context:
            generation = GenerationRepository(context).find_by_image(guid)
        if generation is not None and generation.is_under_way and guid not in self._left:
            self._waiting.add(guid)
            return
        if generation is None:
            # It was begun after the backup that the database was restored from.
            self._report(guid, "belongs to no generation; its note stays for a person to look at.")
        elif self.rescue(generation):
            _logger.info("Entered the image %s, whose picture was made before.", guid)
        # Entered, or there is nothing to enter.
        self._waiting.discard(guid)
        self._left.discard(guid)

    def _report(self, guid: str, what: str, *, traceback: bool = False) -> None:
        """Log what is wrong with an image, unless that was done lately."""
        if guid not in self._reported and len(self._reported) < _MAX_REPORTED:
            self._reported[guid] = None
            _logger.error("The image %s %s", guid, what, exc_info=traceback)

    def _sha256_of(self, guid: str) -> str | None:
        """Return the hash of the stored bytes, or None where there are none to read."""
        digest = hashlib.sha256()
        try:
            with self._store.open(guid) as reader:
                while chunk := reader.read(_READ_BYTES):
                    digest.update(chunk)
        except ContentDamagedError:
            return None
        return digest.hexdigest()

    def _drop_note(self, guid: str) -> None:
        try:
            self._store.delete_note(guid)
        except PixyProxyException as error:
            _logger.warning("The note beside the image %s could not be deleted: %s", guid, error.message)


def _until_stored(write: Callable[[], Result], give_up_at: float) -> Result:
    while True:
        try:
            return write()
        except StorageUnavailableError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(_KEEP_RETRY_SECONDS)


def _enter(context: DatabaseContext, generation: Generation, detail: ImageDetail) -> Image:
    images = ImageRepository(context)
    if GenerationRepository(context).finish(generation):
        return images.insert(detail, generation.author_id)
    return images.get_any(detail.guid)
