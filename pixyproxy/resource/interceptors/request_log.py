"""The outermost interceptor: gives each call its id, and logs its start and its end.

It stands outermost so that no call goes unlogged, refused ones included.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import grpc

from pixyproxy.core.request_context import request_id
from pixyproxy.resource.interceptors.wrapping import AroundCalls, Behavior

REQUEST_ID_KEY = "x-request-id"

# A method that there is not may have a name of any length.
_MAX_METHOD_LENGTH = 64

_logger = logging.getLogger(__name__)
_host = "".join(character if character.isalnum() or character in ".-" else "-" for character in socket.gethostname())
_numbers = itertools.count(1)


class RequestLogInterceptor(AroundCalls):
    """Logs ``REQUEST START`` and ``REQUEST END`` with code and duration, and sends the id in the initial metadata."""

    @contextmanager
    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> Iterator[None]:  # noqa: D102
        new_id = _new_request_id()
        token = request_id.set(new_id)
        place = _place_of(method, behavior)
        started = time.perf_counter()
        try:
            _logger.info("REQUEST START", extra=place)
            _send_request_id(context, new_id)
            yield
        finally:
            milliseconds = (time.perf_counter() - started) * 1000
            _logger.info("REQUEST END %s %.1f ms", code_of(context), milliseconds, extra=place)
            request_id.reset(token)


def _new_request_id() -> str:
    """Return host, time, thread and a number that tells apart what happens to share all three."""
    now = datetime.now().astimezone()
    return f"{_host}-{now:%Y%m%dT%H%M%S%f}-{threading.get_native_id()}-{next(_numbers)}"


def _place_of(method: str, behavior: Behavior) -> dict[str, object]:
    """Say which servicer method is called, and where it stands, as the log gives it."""
    code = getattr(inspect.unwrap(behavior), "__code__", None)
    return {"method": method.rpartition("/")[2][:_MAX_METHOD_LENGTH], "line": code.co_firstlineno if code else 0}


def _send_request_id(context: grpc.ServicerContext, new_id: str) -> None:
    try:
        context.send_initial_metadata(((REQUEST_ID_KEY, new_id),))
    except Exception:  # gRPC raises a bare one where the caller has gone already.
        _logger.debug("The caller has gone before the call began.")


def code_of(context: grpc.ServicerContext) -> str:
    """Return the name of the status code that a call ends with."""
    if not context.is_active():
        return grpc.StatusCode.CANCELLED.name
    code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined]  # the stubs do not know it
    return (code or grpc.StatusCode.OK).name
