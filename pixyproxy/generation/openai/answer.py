"""The body of a provider's answer: kept outside of Python's own memory, and taken apart without copying it.

A picture comes as megabytes of base64 within JSON. Read in the usual way it keeps every other thread of the process
waiting for tens of milliseconds, and takes five times its size.
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

# Some servers write a data URL; a slash may be escaped in JSON.
_PICTURE_START = re.compile(rb'"b64_json"[ \t\n\r]*:[ \t\n\r]*"(data:[^",]{0,100},)?')
_DATA_URL_START = re.compile(r"\Adata:[^,]{0,100},")
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_DATA_START = re.compile(rb"^data: ?", re.MULTILINE)
_CUT_OUT = "(cut out)"  # which no base64 is
_MAX_BODY = 128 * 1024 * 1024  # ten times what providers send
_PIECE = 256 * 1024  # a multiple of 4, as each four characters are three bytes


class NoImageError(ValueError):
    """The answer is JSON and holds no image in base64.

    Attributes:
        answer: what it says.
    """

    def __init__(self, answer: Any) -> None:
        super().__init__("the answer holds no image")
        self.answer = answer


@contextmanager
def kept_body(chunks: Iterable[bytes]) -> Iterator[tuple[mmap, int]]:
    """Gather an answer's body; give the memory that it begins and how many bytes of it are the body.

    Raises:
        ValueError: it is larger than any answer should be.
    """
    with _room(_MAX_BODY) as room:
        for chunk in chunks:
            if len(chunk) > _MAX_BODY - room.tell():
                raise ValueError("the answer is too large")
            room.write(chunk)
        yield room, room.tell()


def kept_events(chunks: Iterable[bytes]) -> Iterator[tuple[mmap, int]]:
    """Gather the data of each server-sent event; give, until the next one, the memory that it begins and its size.

    Raises:
        ValueError: one is larger than any answer should be.
    """
    with _room(_MAX_BODY) as room:
        searched = 0
        for chunk in chunks:
            if len(chunk) > _MAX_BODY - room.tell():
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
    """Return what an answer says beside its picture, and the picture, which does not depend on ``body`` any more.

    Args:
        body: begins with the answer.
        size: how many bytes of it are the answer.

    Raises:
        NoImageError: it holds no image in base64.
        ValueError: it is no JSON, or the base64 is broken.
        RecursionError: it is nested too deeply.
    """
    try:
        return _cut_apart(body, size)
    except ValueError:
        # Escapes within the base64, another alphabet, several pictures in another order: the slow way knows them all.
        answer = json.loads(body[:size])
        return answer, _decoded_slowly(_first_picture(answer))


def _cut_apart(body: mmap, size: int) -> tuple[Any, mmap]:
    """Cut the base64 out of the body, so that neither it nor a copy of it has to go through the JSON parser."""
    found = _PICTURE_START.search(body, 0, size)
    if found is None:
        raise ValueError("the answer holds no image")
    start = found.end()
    end = body.find(b'"', start, size)
    answer = json.loads(body[: found.start(1) if found[1] else start] + _CUT_OUT.encode() + body[end:size])
    if _first_picture(answer) != _CUT_OUT:
        raise ValueError("what was cut out is not the first image")
    return answer, _decoded(body, start, end)


def _first_picture(answer: Any) -> str:
    # An event of a stream holds one image itself, an answer a list of them.
    images = answer.get("data", [answer]) if isinstance(answer, dict) else None
    first = images[0] if isinstance(images, list) and images else None
    encoded, url = (first.get("b64_json"), first.get("url")) if isinstance(first, dict) else (None, None)
    if isinstance(encoded, str) and encoded:
        return encoded
    if isinstance(url, str) and url.startswith("data:"):
        return url
    raise NoImageError(answer)


def _decoded_slowly(encoded: str) -> bytes:
    """Decode base64 in either alphabet, with or without padding, line breaks, and the start of a data URL."""
    text = "".join(_DATA_URL_START.sub("", encoded).split()).replace("-", "+").replace("_", "/")
    picture = pybase64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    if not picture:
        raise ValueError("there is no base64")
    return picture


def _decoded(body: mmap, start: int, end: int) -> mmap:
    """Decode base64 piece by piece, each of which is a whole one: padding ends the last one alone."""
    padding = body[max(start, end - 2) : end].count(b"=")
    size = (end - start) // 4 * 3 - padding
    if size <= 0:
        raise ValueError("there is no base64")
    picture = _room(size)
    for at in range(start, end, _PIECE):
        # Where it is more than there is room for, this raises ValueError too.
        picture.write(pybase64.b64decode(body[at : min(at + _PIECE, end)], validate=True))
    if picture.tell() != size:
        raise ValueError("the base64 is padded in the middle")
    return picture


def _room(size: int) -> mmap:
    """Reserve memory, of which only what is written is taken, and given back to the system at once."""
    room = mmap(-1, size, flags=memory_map.MAP_PRIVATE | memory_map.MAP_ANONYMOUS)
    if hasattr(memory_map, "MADV_HUGEPAGE"):
        # In pages of 4 KiB, the system takes longer to give a picture's memory than it takes to decode the picture.
        with suppress(OSError):  # A kernel without them.
            room.madvise(memory_map.MADV_HUGEPAGE)
    return room
