"""Gives each request of an HTTP client a deadline for its whole answer.

The client's own timeouts restart with every byte.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import httpx2


def _set_deadline(request: httpx2.Request) -> None:
    request.extensions.setdefault("deadline", time.monotonic() + request.extensions["timeout"]["read"])


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


DEADLINE_HOOKS: dict[str, list[Any]] = {"request": [_set_deadline], "response": [_keep_deadline]}
"""The client's event hooks. A request's deadline is its extension ``deadline``, a time of ``time.monotonic``; without
one, it is the read timeout after the request. It is checked when data arrives."""
