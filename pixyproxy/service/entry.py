"""Entering pictures: from bytes that are made to an image that is found, whatever happens in between.

First a note of all that is known of the picture is stored beside its bytes, then the bytes, then the detail is entered
in the database, and last the note goes. So whenever this is cut off, what there is leads to the image or to nothing:
a note without the right bytes is thrown away, a note with them is entered.
"""

from __future__ import annotations

import hashlib
import logging
import time

from pixyproxy.core.exceptions import ContentDamagedError, PixyProxyException
from pixyproxy.core.models import Image, ImageDetail, Model
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.image_store import ImageStore
from pixyproxy.data.repositories.deletions import DeletionRepository
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, GenerationState
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.transactions import in_transaction
from pixyproxy.service.leases import LEASE

_logger = logging.getLogger(__name__)

_READ_BYTES = 1024 * 1024
_DELETIONS_A_SWEEP = 100


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

    def keep(self, detail: ImageDetail, data: bytes | memoryview) -> None:
        """Store a picture and its note; when this returns, the picture cannot be lost any more.

        Raises:
            StorageFullError: there is no room.
        """
        note = _Note(detail=detail).model_dump_json()
        began = time.time()  # a clock that goes on while the machine sleeps
        self._store.write_note(detail.guid, note)
        try:
            self._store.write(detail.guid, data)
        except BaseException:
            self._drop_note(detail.guid)
            raise
        if not 0 <= time.time() - began < LEASE.total_seconds():
            # Taken for dead meanwhile: the note may have been thrown away as one without bytes.
            self._store.write_note(detail.guid, note)

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
        _logger.warning("The picture %s was cut off while it was stored, and is lost.", guid)
        if sha256 is not None:
            # Where there are no bytes, none are deleted: if the lease ran out too early, a writer that lives may be
            # about to put them there, and to enter them.
            self._store.delete(guid)
        self._store.delete_note(guid)
        return False

    def finish_abandoned(self) -> None:
        """Finish all that was cut off: pictures without a detail, bytes of deleted images, half-written files.

        Raises:
            DBConnectionError: the database is away; the rest is left for the next time.
        """
        for guid in self._store.noted():
            self._finish(guid)
        with self._database.reading() as context:
            deleted = DeletionRepository(context).get_oldest(_DELETIONS_A_SWEEP)
        for guid in deleted:
            self.delete_bytes(guid)
        self._store.sweep()

    def delete_bytes(self, guid: str) -> None:
        """Delete the bytes of an image whose detail is deleted, and what says that they may still be there."""
        self._store.delete_note(guid)
        self._store.delete(guid)
        in_transaction(self._database, lambda context: DeletionRepository(context).delete(guid))

    def _finish(self, guid: str) -> None:
        """Finish an image with a note, unless somebody works on it."""
        with self._database.reading() as context:
            generation = GenerationRepository(context).find_by_image(guid)
        if generation is None:
            _logger.error("The picture %s belongs to no generation; its note stays for a person to look at.", guid)
        elif (guid in self._left or not generation.is_under_way) and self.rescue(generation):
            _logger.info("Entered the image %s, whose picture was made before.", guid)

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


def _enter(context: DatabaseContext, generation: Generation, detail: ImageDetail) -> Image:
    images = ImageRepository(context)
    if GenerationRepository(context).finish(generation):
        return images.insert(detail, generation.author_id)
    return images.get_any(detail.guid)
