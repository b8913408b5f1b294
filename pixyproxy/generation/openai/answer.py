"""Parses a provider's answer without copying the image.

An image arrives as megabytes of base64 within JSON. The usual parsing blocks all other threads of the process for tens
of milliseconds, and takes five times the size of the image in memory.
"""

from __future__ import annotations

import json
import mmap as memory_map
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from mmap import mmap
from typing import Any

import pybase64

# Some servers write a data URL; JSON may escape a slash.
_IMAGE_START = re.compile(rb'"b64_json"[ \t\n\r]*:[ \t\n\r]*"(data:[^",]{0,100},)?')
_DATA_URL_START = re.compile(r"\Adata:[^,]{0,100},")
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_DATA_START = re.compile(rb"^data: ?", re.MULTILINE)
_CUT_OUT = "(cut out)"  # no valid base64
MAX_BODY = 128 * 1024 * 1024
"""Bytes of an answer that are read at most: ten times what providers send."""
_PIECE = 256 * 1024  # a multiple of 4, because four characters encode three bytes


class NoImageError(ValueError):
    """The answer is JSON without an image in base64.

    Attributes:
        answer: the parsed JSON.
    """

    def __init__(self, answer: Any) -> None:
        super().__init__("the answer has no image")
        self.answer = answer


@contextmanager
def kept_body(chunks: Iterable[bytes], max_bytes: int = MAX_BODY) -> Iterator[tuple[mmap, int]]:
    """Gather an answer's body; yield the memory with the body at its start, and the size of the body in bytes.

    Raises:
        ValueError: the body has more than ``max_bytes``.
    """
    with _room(max_bytes) as room:
        for chunk in chunks:
            if len(chunk) > max_bytes - room.tell():
                raise ValueError("the answer is too large")
            room.write(chunk)
        yield room, room.tell()


def kept_events(chunks: Iterable[bytes], max_bytes: int) -> Iterator[tuple[mmap, int]]:
    """Gather the data of each server-sent event; give, until the next one, the memory that it begins and its size.

    Raises:
        ValueError: one is larger than any answer should be.
    """
    with _room(max_bytes) as room:
        searched = 0
        for chunk in chunks:
            if len(chunk) > max_bytes - room.tell():
                raise ValueError("the answer is too large")
            room.write(chunk)
            while (end := _EVENT_END.search(room, max(0, searched - 3), room.tell())) is not None:
                rest = room[end.end() : room.tell()]
                size = _move_data(room, end.start())
                if size:
                    yield room, size
                room.seek(0)
                room.write(rest)
                searched = 0
            searched = room.tell()
        # Some servers leave out the empty line after the last event.
        size = _move_data(room, room.tell())
        if size:
            yield room, size


def _move_data(room: mmap, end: int) -> int:
    """Move the data of an event, which ends at ``end``, to the beginning of the memory; return its size."""
    start = _DATA_START.search(room, 0, end)
    if start is None:
        return 0
    if room.find(b"\n", start.end(), end) < 0:
        room.move(0, start.end(), end - start.end())
        return end - start.end()
    lines = (line[5:].removeprefix(b" ") for line in room[:end].splitlines() if line.startswith(b"data:"))
    data = b"\n".join(lines)
    room[: len(data)] = data
    return len(data)


def take_apart(body: mmap, size: int) -> tuple[Any, bytes | mmap]:
    """Return the parsed JSON of the answer in the first ``size`` bytes of ``body``, and a copy of its first image.

    Raises:
        NoImageError: it has no image in base64.
        ValueError: it is not JSON, or the base64 is invalid.
        RecursionError: it is nested too deeply.
    """
    try:
        return _cut_apart(body, size)
    except ValueError:
        # The slow way handles escapes within the base64, the other alphabet, and several images in any order.
        answer = json.loads(body[:size])
        return answer, _decoded_slowly(_first_image(answer))


def _cut_apart(body: mmap, size: int) -> tuple[Any, mmap]:
    """Cut the base64 out of the body, so that the JSON parser need not read it."""
    found = _IMAGE_START.search(body, 0, size)
    if found is None:
        raise ValueError("the answer has no image")
    start = found.end()
    end = body.find(b'"', start, size)
    answer = json.loads(body[: found.start(1) if found[1] else start] + _CUT_OUT.encode() + body[end:size])
    if _first_image(answer) != _CUT_OUT:
        raise ValueError("the base64 is not that of the first image")
    return answer, _decoded(body, start, end)


def images_of(answer: Any) -> list[Any]:
    """Return the images of an answer, or of an event of a stream, which is one itself; none for any other JSON."""
    images = answer.get("data", [answer]) if isinstance(answer, dict) else None
    return images if isinstance(images, list) else []


def image_url(answer: Any) -> str:
    """Return the URL of the first image of an answer; empty if there is none."""
    url = _first_of(answer).get("url")
    return url if isinstance(url, str) else ""


def with_image(answer: Any, data: bytes) -> bytes:
    """Return an answer as JSON, with bytes in base64 as those of its first image."""
    _first_of(answer)["b64_json"] = pybase64.b64encode(data).decode()
    return json.dumps(answer).encode()


def _first_of(answer: Any) -> dict[str, Any]:
    images = images_of(answer)
    return images[0] if images and isinstance(images[0], dict) else {}


def _first_image(answer: Any) -> str:
    encoded, url = _first_of(answer).get("b64_json"), image_url(answer)
    if isinstance(encoded, str) and encoded:
        return encoded
    if url.startswith("data:"):
        return url
    raise NoImageError(answer)


def _decoded_slowly(encoded: str) -> bytes:
    """Decode base64 in either alphabet, with or without padding, line breaks, and the prefix of a data URL."""
    text = "".join(_DATA_URL_START.sub("", encoded).split()).replace("-", "+").replace("_", "/")
    image = pybase64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    if not image:
        raise ValueError("the base64 is empty")
    return image


def _decoded(body: mmap, start: int, end: int) -> mmap:
    """Decode base64 in pieces, of which only the last may have padding."""
    padding = body[max(start, end - 2) : end].count(b"=")
    size = (end - start) // 4 * 3 - padding
    if size <= 0:
        raise ValueError("the base64 is empty")
    image = _room(size)
    for at in range(start, end, _PIECE):
        # If there is no room, this raises a ValueError, too.
        image.write(pybase64.b64decode(body[at : min(at + _PIECE, end)], validate=True))
    if image.tell() != size:
        raise ValueError("the base64 has padding in the middle")
    return image


def _room(size: int) -> mmap:
    """Reserve memory. The system allocates only what is written, and gets it back at once."""
    room = mmap(-1, size, flags=memory_map.MAP_PRIVATE | memory_map.MAP_ANONYMOUS)
    if hasattr(memory_map, "MADV_HUGEPAGE"):
        # With pages of 4 KiB, allocating the memory takes longer than decoding the image.
        with suppress(OSError):  # The kernel does not support huge pages.
            room.madvise(memory_map.MADV_HUGEPAGE)
    return room
