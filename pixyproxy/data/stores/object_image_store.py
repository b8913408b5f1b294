"""The store of image bytes in an object store: S3 and what speaks as it does, Google Cloud Storage, Azure.

All of them are reached by obstore, which no other module knows.
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
from pixyproxy.core.models import new_guid
from pixyproxy.data.stores.bucket_address import BucketAddress
from pixyproxy.data.stores.image_store import STORE_GUID_NAME, ContentReader, ImageStore

if TYPE_CHECKING:
    from obstore import BytesStream, GetOptions
    from obstore.store import ClientConfig, RetryConfig
    from typing_extensions import Buffer

_logger = logging.getLogger(__name__)

# What is taken from the network at a time, whatever is asked for at a time: each taking lets other threads run.
_BLOCK_SIZE = 256 * 1024
_LISTING_SECONDS = 60.0
_ROOM_SECONDS = 10.0
# Clouds take about one write a second under the same key.
_ROOM_KEYS = 256
_NOTES = ".notes"
_ASIDE = ".aside"
_MAX_RETRIES = 5
_ATTEMPTS = 5
_LONGEST_PAUSE = timedelta(seconds=2)
# Beside the time that a store may be silent: how many times that an upload or a download may take as a whole.
_WHOLE_REQUEST = 6

# An answer that is an error says so in the text alone: obstore has classes for few.
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_QUERY = re.compile(r"\?\S*")
_SECOND_TELLING = re.compile(r"[<\n]")
# Statuses and codes that are called mistakes of whoever asks, and are none.
_PASSING = frozenset({"408", "429"})
_PASSING_CODES = frozenset({"RequestTimeout"})
_FULL = re.compile(r"QuotaExceeded|StorageFull|InsufficientStorage|AccountFull", re.IGNORECASE)
# Not found may also mean the bucket or, to some servers, our access key.
_NO_OBJECT = frozenset({"NoSuchKey", "NoSuchVersion", "BlobNotFound", ""})
_WRONG_SETTING = re.compile(r"builder error|without LOCATION")
_FAILURES = (BaseError, OSError, ValueError)


class ObjectImageStore(ImageStore):
    """Keeps each image in an object of its own, under the same names as the files of a folder.

    An object is there or not, never half; so no writer leaves anything half-written to be swept.
    """

    # A listing costs as much as a write, and a server would pay for 17,280 a day.
    listing_interval: float = _LISTING_SECONDS

    def __init__(self, objects: ObjectStore, uploads: ObjectStore, url: str = "") -> None:
        """Use a store.

        Args:
            objects: the store, for all that is small or answered bit by bit.
            uploads: the same store with the patience to send an image.
            url: its address, for the log.
        """
        self._objects = objects
        self._uploads = uploads
        self._url = url
        self._had_room_at = float("-inf")

    @classmethod
    def at(cls, address: BucketAddress, *, timeout: float, allow_http: bool) -> Self:
        """Use the store at an address; credentials and endpoint are read by obstore, from the cloud's variables.

        Args:
            address: where.
            timeout: the most seconds that the store may be silent.
            allow_http: whether its endpoint may be one without TLS.

        Raises:
            StorageMisconfiguredError: one of the cloud's variables is wrong.
        """
        patience = timedelta(seconds=timeout)
        client: ClientConfig = {
            "allow_http": allow_http,
            "connect_timeout": patience,
            "timeout": _WHOLE_REQUEST * patience,
        }
        try:
            uploads = _connect(address, client, patience)
            # Of an upload this would count the whole of it.
            objects = _connect(address, {**client, "read_timeout": patience}, patience)
        except _FAILURES as error:
            _logger.error("The object store cannot be set up: %s", _cause_of(error))
            raise _misconfigured() from error
        return cls(objects, uploads, str(address))

    def check(self) -> None:
        """Ask the store for something small.

        Raises:
            StorageMisconfiguredError: there is no such bucket, or it does not let us in.
            StorageUnavailableError: it cannot be reached.
        """
        self.noted()

    def require_room(self, images: int) -> None:  # noqa: D102  inherited
        # Nothing says how much room there is, or whether we may write, but writing. Where it worked it is taken to
        # work for a while.
        if time.monotonic() < self._had_room_at + _ROOM_SECONDS:
            return
        _send(self._objects, f".room/{random.randrange(_ROOM_KEYS)}", b"room")  # noqa: S311  no secret
        self._had_room_at = time.monotonic()

    def write(self, guid: str, data: Buffer) -> None:  # noqa: D102  inherited
        self._put(self._uploads, _key_of(guid), memoryview(data))

    def open(self, guid: str) -> ContentReader:  # noqa: D102  inherited
        return _ObjectReader(self._objects, _key_of(guid))

    def delete(self, guid: str) -> None:  # noqa: D102  inherited
        self._delete(_key_of(guid))

    def write_note(self, guid: str, note: str) -> None:  # noqa: D102  inherited
        self._put(self._objects, f"{_NOTES}/{guid}", memoryview(note.encode()))

    def read_note(self, guid: str) -> str | None:  # noqa: D102  inherited
        return self._text_of(f"{_NOTES}/{guid}")

    def delete_note(self, guid: str) -> None:  # noqa: D102  inherited
        self._delete(f"{_NOTES}/{guid}")

    def noted(self) -> list[str]:  # noqa: D102  inherited
        return self._names_under(_NOTES)

    def write_aside(self, guid: str, body: Buffer) -> str:  # noqa: D102  inherited
        key = f"{_ASIDE}/{guid}"
        self._put(self._uploads, key, memoryview(body))
        return f"{self._url}/{key}"

    def read_aside(self, guid: str) -> bytes | None:  # noqa: D102  inherited
        return self._bytes_of(f"{_ASIDE}/{guid}")

    def list_aside(self) -> list[str]:  # noqa: D102  inherited
        return self._names_under(_ASIDE)

    def guid(self) -> str:  # noqa: D102  inherited
        if self._text_of(STORE_GUID_NAME) is None:
            self._put(self._objects, STORE_GUID_NAME, memoryview(new_guid().encode()))
        return self._text_of(STORE_GUID_NAME) or ""

    def sweep(self) -> None:
        """Do nothing: no store shows or keeps an object whose upload was cut off."""

    def _names_under(self, prefix: str) -> list[str]:
        with _translating():
            listing = obstore.list(self._objects, f"{prefix}/").collect()
        return [found["path"].removeprefix(f"{prefix}/") for found in listing]

    def _text_of(self, key: str) -> str | None:
        data = self._bytes_of(key)
        return None if data is None else data.decode()

    def _bytes_of(self, key: str) -> bytes | None:
        try:
            with _translating():
                return obstore.get(self._objects, key).bytes().to_bytes()
        except _MissingObjectError:
            return None

    def _put(self, store: ObjectStore, key: str, data: memoryview) -> None:
        _send(store, key, data)
        if not self._holds(key, data):
            _logger.error("The object store took %s and has other bytes.", key)
            raise StorageUnavailableError("The image store does not keep what it is given.")

    def _holds(self, key: str, data: memoryview) -> bool:
        """Tell whether an object is what was sent; not every store checks what it receives."""
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

    def _delete(self, key: str) -> None:
        try:
            with _translating():
                obstore.delete(self._objects, key)
        except _MissingObjectError:
            pass  # Some clouds say so, and some do not.


class _ObjectReader(ContentReader):
    """Reads an object as it comes in.

    A caller who is slow lets the connection wait, so the store may cut it off; then it is asked for the rest.
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
        if self._blocks is not None and self._position > 0:
            try:
                return _taken_from(self._blocks)
            except StorageUnavailableError:
                self._blocks = None
        if self._blocks is None:
            self._blocks = self._ask_for_rest()
        return _taken_from(self._blocks)

    def _ask_for_rest(self) -> BytesStream:
        options: GetOptions = {"range": {"offset": self._position}, "if_match": self._version}
        with _translating():
            return obstore.get(self._store, self._key, options=options).stream(_BLOCK_SIZE)


class _MissingObjectError(ContentDamagedError):
    """There is no such object."""


class _ConflictError(StorageUnavailableError):
    """The store is in the middle of something else with this key, or one beside it; obstore does not ask again."""


def _key_of(guid: str) -> str:
    """The path of the image's file in a folder, so that a store may be copied into a folder and back."""
    return f"{guid[0:2]}/{guid[2:4]}/{guid}"


def _connect(address: BucketAddress, client: ClientConfig, patience: timedelta) -> ObjectStore:
    retries: RetryConfig = {
        "max_retries": _MAX_RETRIES,
        "retry_timeout": patience,
        "backoff": {"max_backoff": _LONGEST_PAUSE},
    }
    place, prefix = address.bucket, address.prefix or None
    match address.scheme:
        case "s3":
            # Deleting several at once is not known to all that speak as S3 does; we delete one at a time.
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
            # In one request: parts of an upload that was cut off would stay, unseen and paid for.
            obstore.put(store, key, data, use_multipart=False)
    except _MissingObjectError as error:
        # Not every cloud says that it is the bucket that is missing.
        _logger.error("There is no such bucket.")
        raise _misconfigured() from error


def _taken_from(blocks: BytesStream) -> memoryview:
    with _translating():
        block = next(blocks, b"")
    if not block:
        raise ContentDamagedError("The stored bytes of the image are fewer than the store says.")
    return memoryview(block)


# --- What went wrong --------------------------------------------------------------------------------------------------


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
        return _ConflictError("The image store is changing this very object.")
    if isinstance(error, PreconditionError):
        return ContentDamagedError("The stored bytes of the image were changed while they were read.")
    cause = f"{_cause_of(error)} {code}".strip()
    if status == "507" or _FULL.search(code):
        _logger.warning("The object store is full: %s", cause)
        return StorageFullError("There is no room left for images.")
    is_our_mistake = status.startswith(("3", "4")) and status not in _PASSING and code not in _PASSING_CODES
    if is_our_mistake or _WRONG_SETTING.search(text):
        _logger.error("The object store refuses us: %s", cause)
        return _misconfigured()
    _logger.warning("The object store failed: %s", cause)
    return StorageUnavailableError("The image store cannot be reached or does not answer.")


def _cause_of(error: Exception) -> str:
    """On one line, without what may be a signature, and without the body and obstore's second, longer telling."""
    return _QUERY.sub("", _SECOND_TELLING.split(str(error))[0]).strip()


def _misconfigured() -> StorageMisconfiguredError:
    return StorageMisconfiguredError("The image store refuses the server; its operator must mend that.")


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""
