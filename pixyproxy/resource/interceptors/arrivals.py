"""Waits for the request of each call, but not for ever, and lets nothing else know of a call before it has one.

gRPC itself waits for a call's one request in the call's thread, for ever, where nobody can look. So each handler is
given to it as one that takes a stream of requests, and the wait is ours; callers do not see the difference.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, Protocol

import grpc

from pixyproxy.core.exceptions import TooBusyError
from pixyproxy.resource.connections import ConnectionLimiter
from pixyproxy.resource.interceptors.exceptions import leave, refuse
from pixyproxy.resource.interceptors.request_log import new_request_id, send_request_id
from pixyproxy.resource.interceptors.wrapping import Continuation, WrappingInterceptor, arity_of
from pixyproxy.resource.tally import Tally
from pixyproxy.resource.watchdog import Arrival, Watchdog

_logger = logging.getLogger(__name__)


class Threads(Protocol):
    """The threads that calls run in."""

    @property
    def is_overloaded(self) -> bool:
        """Whether so many calls wait for a thread that further ones had better not."""


class ArrivalInterceptor(WrappingInterceptor):
    """Has a watchdog look after every wait for a request, and refuses calls while too many wait for a thread."""

    def __init__(
        self,
        watchdog: Watchdog,
        connections: ConnectionLimiter,
        unread: Tally,
        threads: Threads,
    ) -> None:
        """Let calls arrive.

        Args:
            watchdog: cuts off those who send no request.
            connections: is told of calls in flight.
            unread: counts calls that ended before their requests came.
            threads: in which calls run whose handlers name none of their own.
        """
        self._watchdog = watchdog
        self._connections = connections
        self._unread = unread
        self._threads = threads
        refuse_unread = functools.partial(_refuse_unread, unread)
        refuse_unread.experimental_thread_pool = _ServingThread()  # type: ignore[attr-defined]  # gRPC looks for it
        self._refusal: grpc.RpcMethodHandler[Any, Any] = grpc.stream_unary_rpc_method_handler(refuse_unread)

    def intercept_service(  # noqa: D102  inherited
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = super().intercept_service(continuation, handler_call_details)
        if handler is None:
            return None
        threads = getattr(getattr(handler, arity_of(handler)), "experimental_thread_pool", None) or self._threads
        return self._refusal if threads.is_overloaded else handler

    def _wrapped(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        behavior = getattr(handler, arity_of(handler))

        # A handler that sends its messages later is handed a third argument, which it sends them with.
        def call(requests: Iterator[Any], context: grpc.ServicerContext, *send: Callable[[Any], None]) -> Any:
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

    def _first(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """Return the first request or None, or end a call that is over before its request came."""
        with self._watchdog.arrival(context) as arrival:
            try:
                return _next(requests, arrival)
            except grpc.RpcError as error:
                self._unread.add("cut_off" if arrival.is_cut_off else "cancelled")
                # gRPC keeps this error with the call, which its traceback leads back to: such a circle would stay until
                # the garbage collection of the oldest objects. So the call is ended by another one.
                error.__traceback__ = None
                leave(context)

    def _all(self, first: Any, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        request = first
        while request is not None:
            yield request
            arrival = self._watchdog.arrival(context)
            try:
                with arrival:
                    request = _next(requests, arrival)
            finally:
                if arrival.is_cut_off:
                    _logger.info("The next request did not come in time, and the caller was cut off.")


def _next(requests: Iterator[Any], arrival: Arrival) -> Any:
    """Return the next request, or None where the caller has said that there is none."""
    request = next(requests, None)
    if request is None:
        # gRPC may learn that there is no request a moment before it learns why, which it then raises.
        request = next(requests, None)
    while request is None and arrival.is_cut_off:
        request = next(requests, None)
    return request


class _ServingThread(ThreadPoolExecutor):
    """Runs calls in the thread that hands them over, the one that serves."""

    def submit(self, call: Callable[..., object], /, *arguments: Any) -> None:  # type: ignore[override]
        call(*arguments)


def _refuse_unread(unread: Tally, requests: Iterator[Any], context: grpc.ServicerContext) -> NoReturn:
    """Refuse a call with all that an error must say; nothing here may wait."""
    unread.add("refused")
    new_id = new_request_id()
    send_request_id(context, new_id)
    refuse(context, TooBusyError("Too many calls wait for a thread; try again."), new_id)
