"""Stores and commits images.

The order is: store a manifest with the detail of the image, store its bytes, commit the detail to the database, delete
the manifest. After an interruption at any point, recovery commits a manifest that has the right bytes, and deletes any
other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from pixyproxy.core.exceptions import (
    ContentDamagedError,
    PixyProxyException,
    StorageFullError,
    StorageUnavailableError,
)
from pixyproxy.core.fields import GenerationState
from pixyproxy.core.models import ImageDetail, Model
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.deletions import DeletionRepository
from pixyproxy.data.repositories.generations import Generation, GenerationRepository
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.renditions import RenditionRepository
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.data.transactions import in_transaction
from pixyproxy.service.content import sha256_of
from pixyproxy.service.creation.retrying import Result, retried

if TYPE_CHECKING:
    from typing_extensions import Buffer

_logger = logging.getLogger(__name__)

# An operator may make room, or repair the store, while an image that was paid for waits in memory.
_WAITED_FOR = (StorageUnavailableError, StorageFullError)


class _Manifest(Model, extra="ignore"):
    """The stored manifest; that of the first release has further fields."""

    detail: ImageDetail


class ImageStoring:
    """Stores images and commits them."""

    def __init__(
        self,
        database: Database,
        store: ImageStore,
        *,
        lease: timedelta,
        planned_renditions: Sequence[int] = (),
        retry_interval: float = 1.0,
        give_up_after: float = 600.0,
    ) -> None:
        """Initialize without storing anything.

        Args:
            database: where details are committed.
            store: where bytes and manifests are stored.
            lease: how long a lease lasts.
            planned_renditions: the edges of the renditions that are made of every image, in pixels, or ``PLACEHOLDER``.
            retry_interval: seconds between two attempts to write to a store that is unavailable or full.
            give_up_after: seconds after which such attempts end.
        """
        self._database = database
        self._store = store
        self._lease = lease
        self._planned_renditions = planned_renditions
        self._retry_interval = retry_interval
        self._give_up_after = give_up_after

    def store(self, detail: ImageDetail, data: Buffer) -> None:
        """Store the bytes of an image and its manifest, durably.

        Writes to a store that is unavailable or full are retried for ``give_up_after`` seconds.

        Raises:
            StorageFullError: there is still no room.
            StorageUnavailableError: the store is still unavailable.

        After both, recovery commits the image if the store has its bytes, and deletes the manifest otherwise.
        """
        manifest = _Manifest(detail=detail).model_dump_json()
        began = time.time()  # unlike the monotonic clock, it advances while the machine is suspended
        give_up_at = time.monotonic() + self._give_up_after
        self._until_stored(detail.guid, lambda: self._store.write_manifest(detail.guid, manifest), give_up_at)
        try:
            self._until_stored(detail.guid, lambda: self._store.write(detail.guid, data), give_up_at)
        except _WAITED_FOR:
            raise
        except BaseException:
            self._drop_manifest(detail.guid)
            raise
        if not 0 <= time.time() - began < self._lease.total_seconds():
            # The lease has expired: recovery may have deleted the manifest before the bytes were there.
            with suppress(PixyProxyException):  # It is needed only if this process dies before it has committed.
                self._store.write_manifest(detail.guid, manifest)

    def keep_aside(self, guid: str, body: Buffer) -> bool:
        """Keep a provider's answer without a readable image, or an image that cannot be stored, for the operator.

        Logs where. Retries as ``store`` does. Returns whether it is kept.
        """
        give_up_at = time.monotonic() + self._give_up_after
        try:
            place = self._until_stored(guid, lambda: self._store.write_aside(guid, body), give_up_at)
        except PixyProxyException as error:
            _logger.error("The provider's answer for the image %s is lost: %s", guid, error.message)
            return False
        _logger.warning(
            "The provider's answer for the image %s (%d bytes) is kept aside: %s. To save it as a file: "
            "pixyproxy generations salvage %s --output FILE",
            guid,
            memoryview(body).nbytes,
            place,
            guid,
        )
        return True

    def commit(self, generation: Generation, detail: ImageDetail) -> None:
        """Commit the detail of a stored image, unless it was committed before, and perhaps deleted since.

        Raises:
            DBConnectionError: the database is unavailable.
        """
        in_transaction(self._database, lambda context: self._commit(context, generation, detail))
        self._drop_manifest(detail.guid)

    def _commit(self, context: DatabaseContext, generation: Generation, detail: ImageDetail) -> None:
        if GenerationRepository(context).succeed(generation, detail.cost):
            self.plan_renditions(context, detail.guid)
            ImageRepository(context).insert(detail, generation.author_id, generation.reserved_nano_usd)

    def plan_renditions(self, context: DatabaseContext, guid: str) -> None:
        """Plan the renditions of a new image, in the transaction that commits it."""
        for edge in self._planned_renditions:
            RenditionRepository(context).plan([guid], edge)

    def rescue(self, generation: Generation, *, discards: bool = False) -> bool:
        """Commit the stored image of a generation whose worker has ended; return whether an image is committed.

        Args:
            generation: the generation.
            discards: delete the manifest, and any bytes, of an image that is not stored whole. Only if the worker has
                certainly ended.

        Raises:
            DBConnectionError: the database is unavailable.
        """
        guid = generation.image_guid
        manifest = self._store.read_manifest(guid)
        if manifest is None:
            return False
        if generation.state is GenerationState.SUCCEEDED:
            self._drop_manifest(guid)
            return True
        detail = _Manifest.model_validate_json(manifest).detail
        sha256 = sha256_of(self._store, guid)
        if sha256 == detail.sha256:
            self.commit(generation, detail)
            return True
        if discards:
            self._discard(guid, sha256)
        return False

    def _discard(self, guid: str, sha256: str | None) -> None:
        """Delete what is stored of an image whose bytes have the wrong hash, or None."""
        if sha256_of(self._store, guid) != sha256:
            raise StorageUnavailableError("The image store returns different bytes for the same image.")
        _logger.warning("The image %s is lost: its worker ended before all bytes were stored.", guid)
        if sha256 is not None:
            # A worker whose lease expired too early may still write the bytes, and commit them. So nothing is deleted
            # if there are none.
            self._store.delete(guid)
        self._store.delete_manifest(guid)

    def has_content(self, guid: str) -> bool:
        """Tell whether bytes of an image are stored."""
        try:
            self._store.open(guid).close()
        except ContentDamagedError:
            return False
        return True

    def delete_bytes(self, guid: str) -> None:
        """Delete the bytes of a deleted image and of its renditions, and the record of its deletion.

        If a rendition is being made, that and the record are left to recovery.
        """
        self._store.delete_manifest(guid)
        self._store.delete(guid)
        with self._database.reading() as context:
            renditions = RenditionRepository(context).get_of_image(guid)
        idle = [rendition for rendition in renditions if not rendition.is_leased]
        for rendition in idle:
            self._store.delete_rendition(guid, rendition.edge)

        def delete(context: DatabaseContext) -> None:
            RenditionRepository(context).delete([rendition.id for rendition in idle])
            if len(idle) == len(renditions):
                DeletionRepository(context).delete(guid)

        in_transaction(self._database, delete)

    def _until_stored(self, guid: str, write: Callable[[], Result], give_up_at: float) -> Result:
        def warn(error: PixyProxyException) -> None:
            seconds = give_up_at - time.monotonic()
            _logger.warning("The image %s cannot be stored yet; retrying for %.0f s: %s", guid, seconds, error.message)

        return retried(write, *_WAITED_FOR, interval=self._retry_interval, give_up_at=give_up_at, on_first_error=warn)

    def _drop_manifest(self, guid: str) -> None:
        try:
            self._store.delete_manifest(guid)
        except PixyProxyException as error:
            _logger.warning("The manifest of the image %s could not be deleted: %s", guid, error.message)
