"""The body of a provider's answer: kept outside of Python's own memory, and taken apart without copying it.

A picture comes as megabytes of base64 within JSON. Read in the usual way it keeps every other thread of the process
waiting for tens of milliseconds, and takes five times its size.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from mmap import mmap
from typing import Any, BinaryIO

import pybase64

_PICTURE_START = re.compile(rb'"b64_json"[ \t\n\r]*:[ \t\n\r]*"')
_CUT_OUT = "(cut out)"  # which no base64 is
_MAX_BODY = 256 * 1024 * 1024  # twenty times what providers send at most
_PIECE = 256 * 1024  # a multiple of 4, as each four characters are three bytes


@contextmanager
def kept_body(chunks: Iterable[bytes]) -> Iterator[mmap]:
    """Gather an answer's body, and give it back at the end.

    Raises:
        ValueError: it is empty, or larger than any answer should be.
    """
    with _anonymous_file() as file:
        size = 0
        for chunk in chunks:
            size += file.write(chunk)
            if size > _MAX_BODY:
                raise ValueError("the answer is too large")
        with mmap(file.fileno(), 0) as body:
            yield body


def take_apart(body: mmap) -> tuple[Any, bytes | mmap]:
    """Return what an answer says beside its picture, and the picture, which does not depend on ``body`` any more.

    Raises:
        ValueError: it is no JSON, or holds no picture in base64.
        RecursionError: it is nested too deeply.
    """
    try:
        return _cut_apart(body)
    except ValueError:
        # Escapes within the base64, several pictures in another order: whatever it is, the slow way knows it.
        answer = json.loads(body[:])
        return answer, pybase64.b64decode(_first_picture(answer))


def _cut_apart(body: mmap) -> tuple[Any, mmap]:
    """Cut the base64 out of the body, so that neither it nor a copy of it has to go through the JSON parser."""
    found = _PICTURE_START.search(body)
    if found is None:
        raise ValueError("the answer holds no image")
    start = found.end()
    end = body.find(b'"', start)
    answer = json.loads(body[:start] + _CUT_OUT.encode() + body[end:])
    if _first_picture(answer) != _CUT_OUT:
        raise ValueError("what was cut out is not the first image")
    return answer, _decode(body, start, end)


def _first_picture(answer: Any) -> str:
    images = answer.get("data") if isinstance(answer, dict) else None
    first = images[0] if isinstance(images, list) and images else None
    encoded = first.get("b64_json") if isinstance(first, dict) else None
    if not isinstance(encoded, str):
        raise ValueError("the answer holds no image")
    return encoded


def _decode(body: mmap, start: int, end: int) -> mmap:
    """Decode base64 piece by piece, each of which is a whole one: padding ends the last one alone."""
    with _anonymous_file() as file:
        for at in range(start, end, _PIECE):
            piece = body[at : min(at + _PIECE, end)]
            written = file.write(pybase64.b64decode(piece, validate=True))
            if at + _PIECE < end and written < _PIECE // 4 * 3:
                raise ValueError("the base64 is padded in the middle")
        return mmap(file.fileno(), 0)  # which refuses to map nothing


def _anonymous_file() -> BinaryIO:
    """Open a file that has no name, and is in memory where the system knows such files."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("answer", os.MFD_CLOEXEC), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
