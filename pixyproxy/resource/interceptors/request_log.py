"""Gives each call its id, and logs its start and its end."""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from typing import Any

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
    """Logs ``REQUEST START`` and ``REQUEST END`` with code and duration, and sends the id in the initial metadata.

    They are sent with the answer and not before: once a client has them, gRPC makes the call no second time, not even
    where the server dies before it has done anything.
    """

    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> _LoggedCall:  # noqa: D102
        return _LoggedCall(method, behavior, context)

    def _around_stream(self, behavior: Behavior, method: str) -> Behavior:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self.around(method, behavior, context) as logged, closing(behavior(request, context)) as messages:
                for first in messages:
                    logged.send_request_id()
                    yield first
                    yield from messages

        return call

    def _around_later_stream(self, behavior: Callable[..., Any], method: str) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            # Other threads send the messages, the first one perhaps at once.
            send_request_id(context, request_id.get())
            behavior(request, context, send)

        return super()._around_later_stream(functools.update_wrapper(call, behavior), method)


class _LoggedCall(AbstractContextManager["_LoggedCall"]):
    def __init__(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> None:
        self._has_sent_id = False
        self._method = method.rpartition("/")[2][:_MAX_METHOD_LENGTH]
        self._line = _line_of(behavior)
        self._context = context

    def __enter__(self) -> _LoggedCall:
        self._token = request_id.set(new_request_id())
        self._started = time.perf_counter()
        self._log("REQUEST START")
        return self

    def send_request_id(self) -> None:
        """Send the id, if that is not done yet."""
        if not self._has_sent_id:
            self._has_sent_id = True
            send_request_id(self._context, request_id.get())

    def __exit__(self, *_: object) -> None:
        self.send_request_id()
        milliseconds = (time.perf_counter() - self._started) * 1000
        self._log("REQUEST END %s %.1f ms", code_of(self._context), milliseconds)
        request_id.reset(self._token)

    def _log(self, message: str, *values: object) -> None:
        """Log a line as the servicer method's own, which spares the logger to look for where it was called from."""
        if _logger.isEnabledFor(logging.INFO):
            _logger.handle(
                logging.LogRecord(
                    _logger.name, logging.INFO, __file__, self._line, message, values, None, func=self._method
                )
            )


def new_request_id() -> str:
    """Return host, time, thread and a number that tells apart what happens to share all three."""
    seconds, fraction = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_host}-{_local_time(seconds)}{fraction:06d}-{threading.get_native_id()}-{next(_numbers)}"


@functools.lru_cache(maxsize=2)
def _local_time(seconds: int) -> str:
    return time.strftime("%Y%m%dT%H%M%S", time.localtime(seconds))


def _line_of(behavior: Behavior) -> int:
    """Return where the servicer method stands that is called."""
    code = getattr(inspect.unwrap(behavior), "__code__", None)
    return code.co_firstlineno if code else 0


def send_request_id(context: grpc.ServicerContext, new_id: str) -> None:
    """Send a call's id in the initial metadata, unless they are sent already."""
    # gRPC raises ValueError where they are sent already, and a bare exception where the caller has gone.
    with suppress(Exception):
        context.send_initial_metadata(((REQUEST_ID_KEY, new_id),))


def code_of(context: grpc.ServicerContext) -> str:
    """Return the name of the status code that a call ends with."""
    if not context.is_active():
        return grpc.StatusCode.CANCELLED.name
    code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined]  # the stubs do not know it
    return (code or grpc.StatusCode.OK).name
