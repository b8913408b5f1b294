"""The store of image bytes in an object store: S3 and compatible ones, Google Cloud Storage, Azure.

Only this module uses obstore.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Self

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from pixyproxy.core.exceptions import (
    ContentDamagedError,
    PixyProxyException,
    StorageFullError,
    StorageMisconfiguredError,
    StorageUnavailableError,
)
from pixyproxy.data.stores.bucket_address import BucketAddress
from pixyproxy.data.stores.image_store import ContentReader, ImageStore

if TYPE_CHECKING:
    from obstore import BytesStream, GetOptions
    from obstore.store import ClientConfig, RetryConfig
    from typing_extensions import Buffer

_logger = logging.getLogger(__name__)

# The bytes that are taken from obstore at once, for any size of reads: each time the interpreter's lock is released.
_BLOCK_SIZE = 256 * 1024
_ROOM_SECONDS = 10.0
# Clouds allow about one write a second of the same key.
_ROOM_KEYS = 256
_MAX_RETRIES = 5
_ATTEMPTS = 5
_LONGEST_PAUSE = timedelta(seconds=2)
# How many times as long as it may be silent a store may take for a whole upload or download.
_WHOLE_REQUEST = 6

# obstore has exception classes for few errors; the others are recognized by their text.
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_QUERY = re.compile(r"\?\S*")
_DETAILS = re.compile(r"[<\n]")
# Statuses and codes of client errors that are transient.
_TRANSIENT = frozenset({"408", "429"})
_TRANSIENT_CODES = frozenset({"RequestTimeout"})
_FULL = re.compile(r"QuotaExceeded|StorageFull|InsufficientStorage|AccountFull", re.IGNORECASE)
# The codes of a missing object; others that come with "not found" mean the bucket or the access key.
_NO_OBJECT = frozenset({"NoSuchKey", "NoSuchVersion", "BlobNotFound", ""})
_WRONG_SETTING = re.compile(r"builder error|without LOCATION")
_FAILURES = (BaseError, OSError, ValueError)


class ObjectImageStore(ImageStore):
    """Stores everything in objects of a bucket."""

    # A listing costs as much as a write: every 5 seconds they would be 17,280 a day for each server.
    listing_interval: float = 60.0

    def __init__(self, objects: ObjectStore, uploads: ObjectStore, url: str = "") -> None:
        """Use a store.

        Args:
            objects: the store, with a limit to the time without data.
            uploads: the same store without that limit, for requests that send much.
            url: its address, for the log.
        """
        self._objects = objects
        self._uploads = uploads
        self._url = url
        self._had_room_at = float("-inf")

    @classmethod
    def at(cls, address: BucketAddress, *, timeout: float, allow_http: bool) -> Self:
        """Use the store at an address; obstore reads credentials and endpoint from the cloud's environment variables.

        Args:
            address: the address.
            timeout: the most seconds that the store may be silent.
            allow_http: whether its endpoint may be one without TLS.

        Raises:
            StorageMisconfiguredError: one of the cloud's variables is wrong.
        """
        longest_silence = timedelta(seconds=timeout)
        client: ClientConfig = {
            "allow_http": allow_http,
            "connect_timeout": longest_silence,
            "timeout": _WHOLE_REQUEST * longest_silence,
        }
        try:
            uploads = _connect(address, client, longest_silence)
            # For an upload, read_timeout limits the whole request.
            objects = _connect(address, {**client, "read_timeout": longest_silence}, longest_silence)
        except _FAILURES as error:
            _logger.error("The object store cannot be set up: %s", _cause_of(error))
            raise _misconfigured() from error
        return cls(objects, uploads, str(address))

    def require_room(self, images: int) -> None:  # noqa: D102  inherited
        # Only a write shows whether there is room and whether writing is permitted. Its result is reused for a while.
        if time.monotonic() < self._had_room_at + _ROOM_SECONDS:
            return
        _send(self._objects, f".room/{random.randrange(_ROOM_KEYS)}", b"room")  # noqa: S311  no secret
        self._had_room_at = time.monotonic()

    def delete_partial_writes(self) -> None:
        """Do nothing: an upload that is interrupted leaves nothing."""

    def _put(self, path: str, data: Buffer) -> None:
        sent = memoryview(data)
        _send(self._uploads if sent.nbytes > _BLOCK_SIZE else self._objects, path, sent)
        if not self._holds(path, sent):
            _logger.error("The object store accepted %s and has other bytes.", path)
            raise StorageUnavailableError("The image store does not keep what it is given.")

    def _open(self, path: str) -> ContentReader:
        return _ObjectReader(self._objects, path)

    def _holds(self, key: str, data: memoryview) -> bool:
        """Tell whether an object has the bytes that were sent; not every store checks what it receives."""
        offset = 0
        try:
            with _ObjectReader(self._objects, key) as reader:
                if reader.size != data.nbytes:
                    return False
                while block := reader.read(_BLOCK_SIZE):
                    if block != data[offset : offset + len(block)].tobytes():
                        return False
                    offset += len(block)
        except ContentDamagedError:
            return False
        return True

    def _get(self, path: str) -> bytes | None:
        try:
            with _translating():
                return obstore.get(self._objects, path).bytes().to_bytes()
        except _MissingObjectError:
            return None

    def _remove(self, path: str) -> None:
        with suppress(_MissingObjectError), _translating():  # Not every cloud reports a missing object.
            obstore.delete(self._objects, path)

    def _names_in(self, folder: str) -> list[str]:
        with _translating():
            listing = obstore.list(self._objects, f"{folder}/").collect()
        return [found["path"].removeprefix(f"{folder}/") for found in listing]

    def _location_of(self, path: str) -> str:
        return f"{self._url}/{path}"


class _ObjectReader(ContentReader):
    """Reads an object as it arrives.

    The store may close the connection of a slow reader; then the rest is requested again.
    """

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store = store
        self._key = key
        self._position = 0
        self._rest = memoryview(b"")
        self._is_closed = False
        with _translating():
            found = obstore.get(store, key)
        self.size = found.meta["size"]
        self._version = found.meta["e_tag"]
        self._blocks: BytesStream | None = found.stream(_BLOCK_SIZE)

    def seek(self, offset: int) -> None:
        if offset != self._position:
            self._position = offset
            self._rest = memoryview(b"")
            self._blocks = None

    def read(self, count: int) -> bytes:
        if self._is_closed:
            raise ValueError("closed")
        parts = []
        while count > 0 and self._position < self.size:
            if not self._rest:
                self._rest = self._next_block()
            part, self._rest = self._rest[:count], self._rest[count:]
            self._position += len(part)
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        self._is_closed = True
        self._rest = memoryview(b"")
        self._blocks = None

    def _next_block(self) -> memoryview:
        if self._blocks is not None:
            try:
                return _next_of(self._blocks)
            except StorageUnavailableError:
                self._blocks = None
        if self._blocks is None:
            self._blocks = self._ask_for_rest()
        return _next_of(self._blocks)

    def _ask_for_rest(self) -> BytesStream:
        options: GetOptions = {"range": {"offset": self._position}, "if_match": self._version}
        with _translating():
            return obstore.get(self._store, self._key, options=options).stream(_BLOCK_SIZE)


class _MissingObjectError(ContentDamagedError):
    """There is no such object."""


class _ConflictError(StorageUnavailableError):
    """Another request changes this object; obstore does not retry."""


def _connect(address: BucketAddress, client: ClientConfig, longest_silence: timedelta) -> ObjectStore:
    retries: RetryConfig = {
        "max_retries": _MAX_RETRIES,
        "retry_timeout": longest_silence,
        "backoff": {"max_backoff": _LONGEST_PAUSE},
    }
    place, prefix = address.bucket, address.prefix or None
    match address.scheme:
        case "s3":
            # Not all compatible stores know the bulk deletion of S3.
            return S3Store(place, prefix=prefix, disable_bulk_delete=True, client_options=client, retry_config=retries)
        case "gs":
            return GCSStore(place, prefix=prefix, client_options=client, retry_config=retries)
        case _:
            return AzureStore(place, prefix=prefix, client_options=client, retry_config=retries)


def _send(store: ObjectStore, key: str, data: Buffer) -> None:
    for _ in range(_ATTEMPTS - 1):
        with suppress(_ConflictError):
            _send_once(store, key, data)
            return
    _send_once(store, key, data)


def _send_once(store: ObjectStore, key: str, data: Buffer) -> None:
    try:
        with _translating():
            # In one request: the parts of an interrupted multipart upload would stay, hidden and billed.
            obstore.put(store, key, data, use_multipart=False)
    except _MissingObjectError as error:
        # Not every cloud tells a missing bucket from a missing object.
        _logger.error("The bucket does not exist.")
        raise _misconfigured() from error


def _next_of(blocks: BytesStream) -> memoryview:
    with _translating():
        block = next(blocks, b"")
    if not block:
        raise ContentDamagedError("The image store returned fewer bytes than it announced.")
    return memoryview(block)


# --- Errors -----------------------------------------------------------------------------------------------------------


@contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        raise _translated(error) from error


def _translated(error: Exception) -> PixyProxyException:
    text = str(error)
    status = _first(_STATUS, text)
    code = _first(_CODE, text)
    if isinstance(error, FileNotFoundError) and code in _NO_OBJECT:
        return _MissingObjectError("The stored bytes of the image are missing.")
    if isinstance(error, AlreadyExistsError):
        return _ConflictError("The image store is changing this object.")
    if isinstance(error, PreconditionError):
        return ContentDamagedError("The stored bytes of the image were changed while they were read.")
    cause = f"{_cause_of(error)} {code}".strip()
    if status == "507" or _FULL.search(code):
        _logger.warning("The object store is full: %s", cause)
        return StorageFullError("There is no room left for images.")
    is_misconfigured = status.startswith(("3", "4")) and status not in _TRANSIENT and code not in _TRANSIENT_CODES
    if is_misconfigured or _WRONG_SETTING.search(text):
        _logger.error("The object store refuses the request: %s", cause)
        return _misconfigured()
    _logger.warning("The object store failed: %s", cause)
    return StorageUnavailableError("The image store cannot be reached or does not answer.")


def _cause_of(error: Exception) -> str:
    """Return the first line of an error, without URL parameters, which may be a signature, and without the body."""
    return _QUERY.sub("", _DETAILS.split(str(error))[0]).strip()


def _misconfigured() -> StorageMisconfiguredError:
    return StorageMisconfiguredError("The image store refuses the server; its operator must correct the configuration.")


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""
