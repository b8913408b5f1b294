"""An image's bytes as a file, which is there whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pixyproxy.client.content import ContentStream
from pixyproxy.client.errors import ContentDamagedError, InvalidRequestError, TryLaterError
from pixyproxy.client.models import ContentInfo

# Opens the bytes from an offset on.
OpenStream = Callable[[int], ContentStream]
OnProgress = Callable[[int, int], None]

_BLOCK = 1024 * 1024


def download(
    open_stream: OpenStream, guid: str, path: Path, *, overwrite: bool, on_progress: OnProgress | None
) -> ContentInfo:
    """Save an image's bytes under a path, going on with what an earlier attempt has left.

    They come into a hidden file beside it, ``.pixyproxy-GUID.part``, which stays where the download is broken off, and
    is renamed once all bytes are there and right.

    Raises:
        FileExistsError: there is such a file already, and ``overwrite`` is not set.
        OSError: the file cannot be written.
        TryLaterError: another process is downloading the same image into the same folder.
        PixyProxyClientError: the bytes cannot be had.
    """
    _refuse_existing(path, overwrite)
    part = path.with_name(f".pixyproxy-{_checked_guid(guid)}.part")
    with _opened(part) as file:
        try:
            info = _fill(file, open_stream, on_progress)
        except ContentDamagedError:
            part.unlink()
            raise
        file.flush()
        os.fsync(file.fileno())
        _refuse_existing(path, overwrite)
        part.replace(path)
    return info


def _fill(file: BinaryIO, open_stream: OpenStream, on_progress: OnProgress | None) -> ContentInfo:
    """Bring a file from what it holds to the whole image, or begin anew where that is not the image's beginning."""
    held = file.seek(0, os.SEEK_END)
    if held:
        try:
            return _append(file, held, open_stream, on_progress)
        except (InvalidRequestError, ContentDamagedError):
            file.truncate(0)
    return _append(file, 0, open_stream, on_progress)


def _append(file: BinaryIO, held: int, open_stream: OpenStream, on_progress: OnProgress | None) -> ContentInfo:
    with open_stream(held) as stream:
        info = stream.info
        file.seek(0)
        digest = hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
        for chunk in stream:
            file.write(chunk)
            digest.update(chunk)
            held += len(chunk)
            if on_progress is not None:
                on_progress(held, info.size_bytes)
    if digest.hexdigest() != info.sha256:
        raise ContentDamagedError("The bytes that were saved are not those that the image was stored with.")
    return info


@contextmanager
def _opened(part: Path) -> Iterator[BinaryIO]:
    """Open a file, or make it, for this process alone."""
    while True:
        # Nobody's link leads the bytes elsewhere.
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with open(descriptor, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TryLaterError("Another download of this image into this folder is under way.") from None
            # Whoever had it locked may have renamed it just now.
            if _is_still(part, file):
                yield file
                return


def _is_still(part: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(part.lstat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path} is there already.")


def _checked_guid(guid: str) -> str:
    """Return a guid as it can be part of a file's name."""
    try:
        return str(uuid.UUID(guid))
    except ValueError:
        raise InvalidRequestError("guid: must be a UUID of 36 characters.") from None
