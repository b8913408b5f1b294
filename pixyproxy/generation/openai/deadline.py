"""Watches the requests of an HTTP client: whether each was sent in full, and whether its answer comes in time.

The client's own timeouts restart with every byte.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import httpx2


def was_sent_in_full(request: httpx2.Request) -> bool:
    """Return whether the whole body was handed to the connection; if not, nobody can have executed the request."""
    return bool(request.extensions.get("is_complete", True))


def _watch_body(request: httpx2.Request) -> None:
    request.stream = _WatchedBody(request)


class _WatchedBody(httpx2.SyncByteStream):
    """The body of a request, which notes when all of it was sent. The time for the answer counts from then on."""

    def __init__(self, request: httpx2.Request) -> None:
        self._stream = cast(httpx2.SyncByteStream, request.stream)
        self._left = int(request.headers.get("content-length", 0))
        self._extensions = request.extensions
        self._extensions["is_complete"] = False
        self._has_own_deadline = "deadline" in self._extensions
        self._set_deadline()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._left -= len(chunk)
            if self._left <= 0:
                self._extensions["is_complete"] = True
            yield chunk
        self._set_deadline()

    def _set_deadline(self) -> None:
        if not self._has_own_deadline:
            self._extensions["deadline"] = time.monotonic() + self._extensions["timeout"]["read"]


def _keep_deadline(response: httpx2.Response) -> None:
    stream = cast(httpx2.SyncByteStream, response.stream)
    response.stream = _StreamWithDeadline(stream, response.request.extensions["deadline"])


class _StreamWithDeadline(httpx2.SyncByteStream):
    """The bytes of a response, until the deadline."""

    def __init__(self, stream: httpx2.SyncByteStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            if time.monotonic() > self._deadline:
                raise httpx2.ReadTimeout("the answer was incomplete at the deadline")
            yield chunk

    def close(self) -> None:
        self._stream.close()


DEADLINE_HOOKS: dict[str, list[Any]] = {"request": [_watch_body], "response": [_keep_deadline]}
"""The client's event hooks. A request's deadline is its extension ``deadline``, a time of ``time.monotonic``; without
one, it is the read timeout after the request. It is checked when data arrives."""
