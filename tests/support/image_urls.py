"""Images at URLs, as a stand-in serves them. What goes wrong when one is fetched is in the query of its URL:

get=NAME    what comes in place of the image: one of ``_ANSWERS`` or ``OTHER_FILES``, or a status such as 503
fails=N     only for the first N requests; by default for all
"""

from __future__ import annotations

import hashlib
import io
import socket
import struct
import sys
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

SECRET = "signature-of-a-url"
"""Is in the URL of every image."""


def _claims_many_pixels() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (8, 8)).save(buffer, "GIF")
    return buffer.getvalue()


OTHER_FILES: dict[str, bytes] = {
    "gif": _gif(),
    "avif": b"\0\0\0\x1cftypavif\0\0\0\0mif1avifmiaf" + bytes(range(64)),
    "svg": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
    "junk": bytes(range(256)) * 2,
    "html": b"<!DOCTYPE html><title>Sign in</title>",
    "many_pixels": _claims_many_pixels(),
}
"""Files that are no image, or too large an image, by what they are."""


def name_for(prompt: str) -> str:
    """Return the name of the image at the URL in the answer for a prompt."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def path_for(prompt: str, options: dict[str, str]) -> str:
    """Return the path and the query of that URL."""
    chosen = {name: options[name] for name in ("get", "fails") if name in options}
    return f"/images/{name_for(prompt)}?{urllib.parse.urlencode({'sig': SECRET} | chosen)}"


def picture_for(prompt: str) -> bytes:
    """Return the image at that URL."""
    return _picture_named(name_for(prompt))


def _picture_named(name: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), f"#{name[:6]}").save(buffer, "PNG")
    return buffer.getvalue()


class Fetches:
    """All requests for images that arrived, for tests to count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: dict[str, list[dict[str, str]]] = {}

    def add(self, name: str, headers: dict[str, str]) -> int:
        """Note a request; return how many there are with it."""
        with self._lock:
            found = self._all.setdefault(name, [])
            found.append(headers)
            return len(found)

    def describe(self, name: str) -> dict[str, Any]:
        """Return the count and the headers of the requests for an image."""
        with self._lock:
            found = self._all.get(name, [])
            return {"count": len(found), "headers": found}


def serve_image(handler: Any, fetches: Fetches) -> None:
    """Answer a GET below /images/."""
    url = urllib.parse.urlsplit(handler.path)
    options = dict(urllib.parse.parse_qsl(url.query))
    name = url.path.rpartition("/")[2]
    number = fetches.add(name, dict(handler.headers.items()))
    wrong = options.get("get", "") if number <= int(options.get("fails", sys.maxsize)) else ""
    handler.close_connection = True
    if wrong.isdigit():
        handler.send_body(int(wrong), b'{"error": "told to"}')
    elif wrong in OTHER_FILES:
        handler.send_body(200, OTHER_FILES[wrong], {"Content-Type": "image/png"})
    else:
        _ANSWERS[wrong](handler, _picture_named(name))


def _send(handler: Any, picture: bytes) -> None:
    handler.send_body(200, picture, {"Content-Type": "image/png"})


def _send_slowly(handler: Any, picture: bytes) -> None:
    handler.send_head(200, len(picture))
    for byte in picture:
        handler.wfile.write(bytes([byte]))


def _cut(handler: Any, picture: bytes) -> None:
    handler.send_head(200, len(picture))
    handler.wfile.write(picture[: len(picture) // 2])


def _drop(handler: Any, _: bytes) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def _redirect(location: str) -> Callable[[Any, bytes], None]:
    def answer(handler: Any, _: bytes) -> None:
        handler.send_head(302, 0, {"Location": location.replace("HERE", handler.headers["Host"])})

    return answer


def _never_end(handler: Any, _: bytes) -> None:
    handler.send_stream_head()
    while True:
        handler.send_chunk(b"\x89PNG")
        time.sleep(0.02)


def _flood(handler: Any, _: bytes) -> None:
    handler.send_head(200, 10 * 1024**3)
    while True:
        handler.wfile.write(bytes(1024 * 1024))


def _hang(handler: Any, _: bytes) -> None:
    handler.rfile.read(1)


def _compress(handler: Any, picture: bytes) -> None:
    handler.send_body(200, zlib.compress(picture), {"Content-Encoding": "deflate"})


_ANSWERS: dict[str, Callable[[Any, bytes], None]] = {
    "": _send,
    "bytes": _send_slowly,
    "compressed": _compress,
    "cut": _cut,
    "drop": _drop,
    "redirect": _redirect("http://169.254.169.254/latest/meta-data/"),
    "redirect_back": _redirect("http://HERE/images/0123456789abcdef"),
    "endless": _never_end,
    "10gb": _flood,
    "hang": _hang,
}
