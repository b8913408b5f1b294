"""Waits for callers, but not for ever: for their requests, and until they take what they are sent.

gRPC itself waits for a call's one request in the call's thread, for ever, where nobody can look. So each handler is
given to it as one that takes a stream of requests, and the wait is ours; callers do not see the difference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from pixyproxy.core.exceptions import MalformedRequestError
from pixyproxy.resource.interceptors.wrapping import Behavior, Continuation, arity_of
from pixyproxy.resource.watchdog import Watchdog


class PatienceInterceptor(grpc.ServerInterceptor):
    """Has a watchdog look after every wait for a caller."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        behavior = getattr(handler, arity_of(handler))
        wrapped = self._taking_stream(behavior) if handler.request_streaming else self._taking_one(behavior)
        # Whoever sends messages later, from other threads, keeps none waiting.
        if handler.response_streaming and not getattr(behavior, "experimental_non_blocking", False):
            wrapped = self._read_by(wrapped)
        as_stream = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return as_stream(
            functools.update_wrapper(wrapped, behavior), handler.request_deserializer, handler.response_serializer
        )

    def _taking_one(self, behavior: Callable[..., Any]) -> Callable[..., Any]:
        # A handler that sends its messages later is handed a third argument, which it sends them with.
        def call(requests: Iterator[Any], context: grpc.ServicerContext, *send: Callable[[Any], None]) -> Any:
            request = self._next(requests, context)
            if request is None:
                raise MalformedRequestError("The call ended without a request.")
            return behavior(request, context, *send)

        return call

    def _taking_stream(self, behavior: Behavior) -> Behavior:
        def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return behavior(self._arriving(requests, context), context)

        return call

    def _arriving(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        while (request := self._next(requests, context)) is not None:
            yield request

    def _next(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """Return the next request, or None where the caller has said that there is none."""
        with self._watchdog.arrival(context) as arrival:
            request = next(requests, None)
            while request is None and arrival.is_cut_off:
                # gRPC may learn that there is no request a moment before it learns why, which it then raises.
                request = next(requests, None)
        return request

    def _read_by(self, behavior: Behavior) -> Behavior:
        def call(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._watchdog.reading(context) as reader:
                for message in behavior(requests, context):
                    reader.is_handed_a_message()
                    yield message
                    reader.has_taken_it()

        return call
