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
from contextlib import closing, contextmanager, suppress
from typing import Any

import grpc

from pixyproxy.core.request_context import call_id
from pixyproxy.resource.interceptors.wrapping import AroundCalls, Behavior

_METADATA_KEY = "x-request-id"

# The name of an unknown method may have any length, and any characters: others than those of names could imitate the
# fields that follow it.
_MAX_METHOD_LENGTH = 64
_UNNAMEABLE = "unknown"

_logger = logging.getLogger(__name__)
_host = "".join(character if character.isalnum() or character in ".-" else "-" for character in socket.gethostname())
_numbers = itertools.count(1)


class RequestLogInterceptor(AroundCalls):
    """Logs ``REQUEST START`` and ``REQUEST END`` with code and duration, and sends the id in the initial metadata.

    The metadata goes out with the first answer and not before: gRPC's clients retry no call whose metadata they have,
    even if the server dies before it has done anything.
    """

    @contextmanager
    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> Iterator[None]:  # noqa: D102
        name, line = method.rpartition("/")[2][:_MAX_METHOD_LENGTH], _line_of(behavior)
        if not name.isidentifier():
            name = _UNNAMEABLE
        token = call_id.set(new_call_id())
        began = time.perf_counter()
        _log(name, line, "REQUEST START")
        try:
            yield
        finally:
            send_call_id(context, call_id.get())
            _log(name, line, "REQUEST END %s %.1f ms", code_of(context), (time.perf_counter() - began) * 1000)
            call_id.reset(token)

    def _around_stream(self, behavior: Behavior, method: str) -> Behavior:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with closing(behavior(request, context)) as messages:
                for first in messages:
                    send_call_id(context, call_id.get())
                    yield first
                    yield from messages

        return super()._around_stream(functools.update_wrapper(call, behavior), method)

    def _around_callback_stream(self, behavior: Callable[..., Any], method: str) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            # Other threads send the messages, the first one perhaps at once.
            send_call_id(context, call_id.get())
            behavior(request, context, send)

        return super()._around_callback_stream(functools.update_wrapper(call, behavior), method)


def _log(method: str, line: int, message: str, *values: object) -> None:
    """Log a line as the servicer method's own, without the logger's search for its caller."""
    if _logger.isEnabledFor(logging.INFO):
        record = logging.LogRecord(_logger.name, logging.INFO, __file__, line, message, values, None, func=method)
        _logger.handle(record)


def new_call_id() -> str:
    """Return host, time, thread and a number, which make it unique."""
    seconds, fraction = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_host}-{_local_time(seconds)}{fraction:06d}-{threading.get_native_id()}-{next(_numbers)}"


@functools.lru_cache(maxsize=2)
def _local_time(seconds: int) -> str:
    return time.strftime("%Y%m%dT%H%M%S", time.localtime(seconds))


def _line_of(behavior: Behavior) -> int:
    """Return the line of the servicer method."""
    code = getattr(inspect.unwrap(behavior), "__code__", None)
    return code.co_firstlineno if code else 0


def send_call_id(context: grpc.ServicerContext, new_id: str, *others: tuple[str, str]) -> None:
    """Send a call's id, and other initial metadata, unless the id was sent already."""
    # gRPC raises ValueError if it was, and a bare Exception if the call is cancelled.
    with suppress(Exception):
        context.send_initial_metadata(((_METADATA_KEY, new_id), *others))


def code_of(context: grpc.ServicerContext) -> str:
    """Return the name of the status code that a call ends with."""
    if not context.is_active():
        return grpc.StatusCode.CANCELLED.name
    code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined]  # the stubs do not know it
    return (code or grpc.StatusCode.OK).name
