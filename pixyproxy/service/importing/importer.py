"""Imports images.

The order is: gather the bytes in a temporary file and check them, record a pending import, store the bytes, and commit
the detail in the transaction that deletes the pending import. After an interruption at any point, the pending import
expires, and recovery deletes what was stored.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO

from pixyproxy.core.exceptions import (
    ConstraintViolationError,
    CredentialsInvalidError,
    InvalidFieldError,
    PixyProxyException,
    RequestIdReusedError,
    StorageFullError,
    StorageUnavailableError,
)
from pixyproxy.core.fields import Origin, new_guid
from pixyproxy.core.models import Caller, Image, ImageDetail, ImageImport
from pixyproxy.core.text import default_filename
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.audit_outbox import AuditOutboxRepository
from pixyproxy.data.repositories.deletions import DeletionRepository
from pixyproxy.data.repositories.generations import GenerationRepository
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.pending_imports import PendingImportRepository
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.data.stores.local_image_store import NO_ROOM
from pixyproxy.data.transactions import in_transaction
from pixyproxy.generation.image_format import ImageFormat, NotAnImageError
from pixyproxy.service.creation.storing import ImageStoring
from pixyproxy.service.importing.inspection import inspect_file

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _ReceivedFile:
    """The bytes of a file that was received, and their SHA-256 in lower-case hexadecimal."""

    data: mmap.mmap
    sha256: str


class ImageImporter:
    """Imports images, each once for each request id."""

    def __init__(
        self,
        database: Database,
        store: ImageStore,
        storing: ImageStoring,
        *,
        max_bytes: int,
        longest_write: timedelta = timedelta(minutes=10),
        min_rate: int = 16 * 1024,
        slow_start: float = 60.0,
    ) -> None:
        """Initialize without importing anything.

        Args:
            database: where details are committed.
            store: where bytes are stored.
            storing: plans renditions, and deletes bytes.
            max_bytes: the most bytes of an image.
            longest_write: how long storing and committing may take; after that, the import counts as dead.
            min_rate: the bytes that must come per second, on average.
            slow_start: the seconds at the beginning in which that does not apply.
        """
        self._database = database
        self._store = store
        self._storing = storing
        self._max_bytes = max_bytes
        self._longest_write = longest_write
        self._min_rate = min_rate
        self._slow_start = slow_start

    def import_image(self, asked: ImageImport, data: Iterable[bytes], author: Caller) -> Image:
        """Store an image, or return the one of its request id. Raises as ``ImageServiceInterface.import_image``."""
        with _received(self._in_time(data), self._max_bytes) as file:
            if asked.sha256 not in (None, file.sha256):
                raise InvalidFieldError.of("info.sha256", "must be the SHA-256 of the data")
            fingerprint = _fingerprint(asked, file.sha256)
            image = self._find(asked, author, fingerprint)
            if image is not None:
                return image
            try:
                image_format = inspect_file(file.data)
            except NotAnImageError as error:
                raise InvalidFieldError.of("data", str(error)) from error
            detail = _detail_of(asked, file, image_format, author)
            return self._store_and_commit(asked, detail, file.data, author, fingerprint)

    def _in_time(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield pieces as long as they come fast enough: a sender that drips bytes would hold a slot for long."""
        began, size = time.monotonic(), 0
        for piece in pieces:
            size += len(piece)
            if time.monotonic() - began > self._slow_start + size / self._min_rate:
                raise InvalidFieldError.of(
                    "data",
                    f"must come with {self._min_rate // 1024} KiB a second or more, on average after the first "
                    f"{self._slow_start:g} s",
                )
            yield piece

    def _find(self, asked: ImageImport, author: Caller, fingerprint: str) -> Image | None:
        """Return the image that was imported under the request id, or None."""
        if asked.request_id is None:
            return None
        with self._database.reading() as context:
            known = GenerationRepository(context).find(author.user_id, asked.request_id)
            if known is None:
                return None
            if known.fingerprint != fingerprint:
                raise RequestIdReusedError
            return ImageRepository(context).get(known.image_guid, author)

    def _store_and_commit(
        self, asked: ImageImport, detail: ImageDetail, data: mmap.mmap, author: Caller, fingerprint: str
    ) -> Image:
        expires_at = datetime.now(UTC) + self._longest_write

        def commit(context: DatabaseContext) -> Image | None:
            # Of this and of recovery, one finds the row.
            if not PendingImportRepository(context).delete(detail.guid):
                return None
            if asked.request_id is not None:
                GenerationRepository(context).insert_import(author.user_id, asked.request_id, fingerprint, detail.guid)
            self._storing.plan_renditions(context, detail.guid)
            AuditOutboxRepository(context).add("image.imported", author.username, detail.guid, author=author.username)
            return ImageRepository(context).insert(detail, author.user_id)

        in_transaction(self._database, lambda context: PendingImportRepository(context).insert(detail.guid, expires_at))
        try:
            self._store.write(detail.guid, data)
            image = in_transaction(self._database, commit)
            if image is None:
                raise StorageUnavailableError(
                    f"Storing the image took longer than {self._longest_write.total_seconds():g} s; nothing was stored."
                )
        except ConstraintViolationError as error:
            self._discard(detail.guid)
            winner = self._find(asked, author, fingerprint)
            if winner is None:
                raise CredentialsInvalidError("The user has been removed.") from error
            return winner
        except Exception:  # Whatever failed, the bytes must not stay.
            self._discard(detail.guid)
            raise
        return image

    def _discard(self, guid: str) -> None:
        """Delete what was stored, unless the detail is committed after all and only the answer was lost."""

        def record(context: DatabaseContext) -> bool:
            is_pending = PendingImportRepository(context).delete(guid)
            if not is_pending and ImageRepository(context).has(guid):
                return False
            deletions = DeletionRepository(context)
            # Recovery may have recorded it already, and may have deleted the bytes before they were written.
            deletions.delete(guid)
            deletions.insert(guid)
            return True

        try:
            if in_transaction(self._database, record):
                self._storing.delete_bytes(guid)
        except PixyProxyException as error:
            _logger.warning("The bytes of the failed import %s are left to recovery: %s", guid, error.message)


def _detail_of(asked: ImageImport, file: _ReceivedFile, image_format: ImageFormat, author: Caller) -> ImageDetail:
    now = datetime.now(UTC)
    return ImageDetail(
        guid=new_guid(),
        prompt=asked.prompt,
        filename=asked.filename or default_filename(asked.prompt, image_format.content_type),
        tags=asked.tags,
        visibility=asked.visibility,
        author=author.username,
        content_type=image_format.content_type,
        size_bytes=len(file.data),
        sha256=file.sha256,
        width=image_format.width,
        height=image_format.height,
        model="",
        origin=Origin.IMPORTED,
        created_at=now,
        updated_at=now,
    )


def _fingerprint(asked: ImageImport, sha256: str) -> str:
    """Return a hash of all fields of a request but its ids, and of its bytes; equal requests have equal ones."""
    fields = asked.model_dump_json(exclude={"request_id", "sha256"})
    return hashlib.sha256(f"{fields}{sha256}".encode()).hexdigest()


@contextmanager
def _received(pieces: Iterable[bytes], max_bytes: int) -> Iterator[_ReceivedFile]:
    """Gather bytes in a temporary file, which has no name and goes with the process.

    Raises:
        InvalidFieldError: there are none, or more than ``max_bytes``.
        StorageFullError: there is no room for them.
        StorageUnavailableError: no temporary file can be made.
    """
    digest = hashlib.sha256()
    size = 0
    with _temporary_file() as file:
        for piece in pieces:
            size += len(piece)
            if size > max_bytes:
                raise InvalidFieldError.of("data", f"must have at most {max_bytes:,} bytes")
            digest.update(piece)
            rest = memoryview(piece)
            while rest:
                with _translating():
                    rest = rest[file.write(rest) :]
        if size == 0:
            raise InvalidFieldError.of("data", "must not be empty")
        mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        try:
            yield _ReceivedFile(mapping, digest.hexdigest())
        finally:
            with suppress(BufferError):  # The traceback of an error may refer to a view.
                mapping.close()


def _temporary_file() -> IO[bytes]:
    try:
        # Unbuffered: after a failed write, closing the file would write the buffer again.
        return tempfile.TemporaryFile(buffering=0)
    except OSError as error:
        # No temporary folder can be written to, or too many files are open.
        raise StorageUnavailableError("No temporary file can be made; nothing was stored.") from error


@contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise StorageFullError("There is no room left for a temporary file; nothing was stored.") from error
