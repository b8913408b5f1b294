"""Limits how long calls wait for their clients: for requests, and for streams to be read."""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc

from pixyproxy.core.exceptions import TooBusyError
from pixyproxy.resource.call_threads import refuses_call
from pixyproxy.resource.connections import ConnectionLimiter
from pixyproxy.resource.interceptors.exceptions import leave, refuse
from pixyproxy.resource.interceptors.request_log import new_call_id, send_call_id
from pixyproxy.resource.interceptors.wrapping import (
    WrappingInterceptor,
    behavior_of,
    is_callback_stream,
    with_behavior,
)
from pixyproxy.resource.tally import Tally
from pixyproxy.resource.watchdog import Wait, Watchdog
from pixyproxy.service.content import CHUNK_SIZE

_logger = logging.getLogger(__name__)


class RequestTimeoutInterceptor(WrappingInterceptor):
    """Has a watchdog watch every wait for a request, and refuses the calls that get no thread.

    gRPC itself waits for the request of a unary call without a limit. So each handler is given to gRPC as one that
    takes a stream of requests, and the wait is here. Clients do not see the difference.
    """

    def __init__(self, watchdog: Watchdog, connections: ConnectionLimiter, unread: Tally) -> None:
        """Watch all calls; ``connections`` counts those in flight, and ``unread`` those that end without a request."""
        self._watchdog = watchdog
        self._connections = connections
        self._unread = unread

    def _wrapped(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        behavior = behavior_of(handler)

        # The handler of a callback stream takes a third argument.
        def call(requests: Iterator[Any], context: grpc.ServicerContext, *send: Callable[[Any], None]) -> Any:
            if refuses_call():
                self._refuse(context)
            self._connections.begin_call(context)
            first = self._first(requests, context)
            argument = self._all(first, requests, context) if handler.request_streaming else first
            return behavior(argument, context, *send)

        as_stream = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return as_stream(
            functools.update_wrapper(call, behavior), handler.request_deserializer, handler.response_serializer
        )

    def _refuse(self, context: grpc.ServicerContext) -> NoReturn:
        """Refuse a call, with all details of an error, without waiting for anything."""
        self._unread.add("refused")
        new_id = new_call_id()
        send_call_id(context, new_id)
        refuse(context, TooBusyError("Too many calls are in progress; try again."), new_id)

    def _first(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """Return the first request, or None if the client sends none; end a call that is cancelled before."""
        with self._watchdog.pending(context) as wait:
            try:
                return _next(requests, wait)
            except grpc.RpcError as error:
                self._unread.add("cut_off" if wait.is_cut_off else "cancelled")
                # gRPC keeps this error with the call, and its traceback refers to the call: a cycle that only the
                # garbage collection of the oldest objects would free. So another error ends the call.
                error.__traceback__ = None
                leave(context)

    def _all(self, first: Any, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        request = first
        while request is not None:
            yield request
            with self._watchdog.pending(context) as wait:
                try:
                    request = _next(requests, wait)
                finally:
                    if wait.is_cut_off:
                        _logger.info("The next request did not come in time, and the client was cut off.")


class ReaderTimeoutInterceptor(WrappingInterceptor):
    """Has a watchdog watch the clients that read streams, or large answers.

    The handler of a callback stream does not wait for them: gRPC's own health service sends while it holds its lock,
    and a single client that reads nothing would keep all others from being answered.
    """

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog

    def _wrapped(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        behavior = behavior_of(handler)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            message = behavior(request, context)
            size = len(message) if isinstance(message, bytes) else message.ByteSize()
            # Clients have room for a smaller answer, unless they mean harm; it holds little memory.
            if size > CHUNK_SIZE:
                self._watchdog.answered(context, size)
            return message

        if not handler.response_streaming:
            return with_behavior(handler, answer)

        def begin(request: Any, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            self._watchdog.watching(context)
            behavior(request, context, _Sender(send, context, self._watchdog).send)

        if is_callback_stream(handler):
            return with_behavior(handler, begin)

        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._watchdog.reading(context) as wait:
                for message in behavior(request, context):
                    wait.begin()
                    yield message
                    wait.end()

        return with_behavior(handler, call)


class _Sender:
    """Sends the messages of a callback stream, one after the other, in a thread that lives until all are sent."""

    def __init__(self, send: Callable[[Any], None], context: grpc.ServicerContext, watchdog: Watchdog) -> None:
        self._send = send
        self._context = context
        self._watchdog = watchdog
        self._messages: deque[Any] = deque()  # The first one is being sent.
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        """Send a message after those before, without waiting."""
        with self._lock:
            self._messages.append(message)
            if len(self._messages) == 1:
                threading.Thread(target=self._send_all, name="sender", daemon=True).start()

    def _send_all(self) -> None:
        has_more = True
        while has_more:
            with self._watchdog.pending(self._context):
                self._send(self._messages[0])
            with self._lock:
                self._messages.popleft()
                has_more = bool(self._messages)


def _next(requests: Iterator[Any], wait: Wait) -> Any:
    """Return the next request, or None if the client has sent its last one."""
    request = next(requests, None)
    if request is None:
        # gRPC may learn that there is no request a moment before it learns why; then it raises.
        request = next(requests, None)
    while request is None and wait.is_cut_off:
        request = next(requests, None)
    return request
