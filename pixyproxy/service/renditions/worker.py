"""Makes renditions: claims those of one image at a time, decodes the image once, and stores them."""

from __future__ import annotations

import hashlib
import logging
import time
from datetime import UTC, datetime, timedelta

from pixyproxy.core.exceptions import (
    ConflictError,
    ContentDamagedError,
    DBConnectionError,
    ImageNotFoundError,
    PixyProxyException,
    StorageUnavailableError,
)
from pixyproxy.core.local_signal import LocalSignal, wait_for_any
from pixyproxy.core.models import Image
from pixyproxy.core.periodic_task import PeriodicTask
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.renditions import PLACEHOLDER, RenditionClaim, RenditionRepository
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.data.transactions import in_transaction
from pixyproxy.generation.image_format import NotAnImageError
from pixyproxy.generation.rendering import PLACEHOLDER_PIXELS, Rendered, decode_small, placeholder_of, render
from pixyproxy.service.content import damaged

_logger = logging.getLogger(__name__)

# After which another worker makes what one has claimed.
_LEASE = timedelta(seconds=30)
# Between two queries for what other servers have requested.
_POLL_SECONDS = 1.0
# An image whose workers died so often may be the cause, and is left alone for a while.
_MAX_ATTEMPTS = 3
_AFTER_CRASHES = timedelta(hours=1)
_AFTER_FAILURE = timedelta(seconds=5)
# Planned renditions take a quarter of a core, and less on a busy machine.
_PAUSE_FACTOR = 3.0


class RenditionWorker:
    """Makes renditions in a thread of its own, one image at a time, which bounds the memory for decoded images."""

    def __init__(
        self,
        database: Database,
        store: ImageStore,
        *,
        owner: str,
        requested: LocalSignal,
    ) -> None:
        """Initialize without claiming anything.

        A predecessor with the same name, ``owner``, must have ended. ``requested`` is received when this server has
        requested a rendition.
        """
        self._database = database
        self._store = store
        self._owner = owner
        self._requested = requested
        # Renditions may be claimed by this name and not made: at first by a predecessor that died, later by this worker
        # after a failure of the database.
        self._may_have_claims = True
        self._has_predecessor = True
        # Every other time: one caller who requests thousands would make all others wait for the whole queue.
        self._takes_latest = False
        self._ended = LocalSignal()
        self._task = PeriodicTask("renditions", self._run, retry_interval=_POLL_SECONDS)

    def start(self) -> None:
        """Start the thread."""
        self._task.start()

    def close(self) -> None:
        """Stop the thread after the image that it works on."""
        self._ended.send()
        self._task.close()
        self._ended.close()

    def _run(self) -> float:
        if self._may_have_claims:
            in_transaction(
                self._database,
                lambda context: RenditionRepository(context).give_back(self._owner, was_attempt=self._has_predecessor),
            )
            self._may_have_claims = self._has_predecessor = False
        try:
            pause = self.work()
        except (DBConnectionError, ConflictError):
            self._may_have_claims = True
            raise
        wait_for_any(self._requested, self._ended, timeout=pause)
        self._requested.read()
        return 0.0

    def work(self) -> float:
        """Make the renditions of one image; return the seconds until the next one, unless one is requested before."""
        with self._database.reading() as context:
            image_guid = RenditionRepository(context).next_due(takes_latest=self._takes_latest)
        if image_guid is None:
            return _POLL_SECONDS
        self._takes_latest = not self._takes_latest
        claim = in_transaction(
            self._database, lambda context: RenditionRepository(context).claim(image_guid, self._owner, _LEASE)
        )
        if claim is None:
            return 0.0  # Another worker was faster; there may be more.
        started = time.monotonic()
        self._make(claim)
        return 0.0 if claim.is_requested else _PAUSE_FACTOR * (time.monotonic() - started)

    def _make(self, claim: RenditionClaim) -> None:
        try:
            if claim.attempts > _MAX_ATTEMPTS:
                _logger.error("The workers that made renditions of the image %s have died.", claim.image_guid)
                self._fail(claim, PixyProxyException("The rendition cannot be made."), _AFTER_CRASHES)
                return
            small = decode_small(self._read(claim.image_guid), max(*claim.edges, PLACEHOLDER_PIXELS))
            for edge in claim.edges:
                if edge == PLACEHOLDER:
                    self._keep_placeholder(claim.image_guid, placeholder_of(small))
                else:
                    self._keep(claim.image_guid, edge, render(small, edge))
        except ImageNotFoundError:
            self._forget(claim)
        except (DBConnectionError, ConflictError):
            raise  # The next run gives it back.
        except NotAnImageError as error:
            _logger.error("No rendition can be made of the image %s: %s", claim.image_guid, error)
            self._fail(claim, ContentDamagedError("The stored bytes of the image cannot be decoded."))
        except PixyProxyException as error:
            self._fail(claim, error)
        except Exception:  # The image may be the cause: without a recorded failure, its calls would wait in vain.
            _logger.exception("A rendition of the image %s cannot be made.", claim.image_guid)
            self._fail(claim, PixyProxyException("The rendition cannot be made."))

    def _read(self, guid: str) -> bytes:
        """Return the bytes of an image, checked."""
        image = self._get_image(guid)
        try:
            with self._store.open(guid) as reader:
                data = reader.read(image.size_bytes) if reader.size == image.size_bytes else b""
        except ContentDamagedError:
            self._get_image(guid)  # If the image was deleted meanwhile, this raises ImageNotFoundError.
            raise
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise damaged()
        return data

    def _get_image(self, guid: str) -> Image:
        with self._database.reading() as context:
            return ImageRepository(context).get_any(guid)

    def _keep(self, guid: str, edge: int, rendered: Rendered) -> None:
        self._store.write_rendition(guid, edge, rendered.data)
        is_known = in_transaction(
            self._database,
            lambda context: RenditionRepository(context).complete(
                guid,
                edge,
                self._owner,
                sha256=hashlib.sha256(rendered.data).hexdigest(),
                size_bytes=len(rendered.data),
                width=rendered.width,
                height=rendered.height,
            ),
        )
        if not is_known:
            # The image was deleted after the lease had expired.
            self._store.delete_rendition(guid, edge)

    def _keep_placeholder(self, guid: str, placeholder: bytes) -> None:
        def keep(context: DatabaseContext) -> None:
            ImageRepository(context).set_placeholder(guid, placeholder)
            renditions = RenditionRepository(context)
            renditions.delete([found.id for found in renditions.get([guid], PLACEHOLDER).values()])

        in_transaction(self._database, keep)

    def _fail(self, claim: RenditionClaim, error: PixyProxyException, pause: timedelta = _AFTER_FAILURE) -> None:
        again_at = datetime.now(UTC) + pause

        def fail(context: DatabaseContext) -> None:
            renditions = RenditionRepository(context)
            if isinstance(error, StorageUnavailableError):
                # Nobody requests what is planned, such as a placeholder, when the store is back.
                renditions.postpone(claim, self._owner, again_at)
            renditions.fail(claim, self._owner, error, again_at)

        in_transaction(self._database, fail)

    def _forget(self, claim: RenditionClaim) -> None:
        """Delete the claimed renditions of an image that does not exist any more."""
        for edge in claim.edges:
            # A worker that died may have stored it.
            self._store.delete_rendition(claim.image_guid, edge)
        in_transaction(self._database, lambda context: RenditionRepository(context).drop(claim, self._owner))
