"""Waits until callers take what they are sent, but not for ever."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import grpc

from pixyproxy.resource.interceptors.wrapping import Behavior, Continuation, arity_of
from pixyproxy.resource.watchdog import Watchdog


class PatienceInterceptor(grpc.ServerInterceptor):
    """Has a watchdog look after the callers of streams."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call that is answered with a stream."""
        handler = continuation(handler_call_details)
        if handler is None or not handler.response_streaming:
            return handler
        name = arity_of(handler)
        behavior = getattr(handler, name)
        # Whoever sends messages later, from other threads, keeps none waiting.
        if getattr(behavior, "experimental_non_blocking", False):
            return handler
        wrapped = functools.update_wrapper(self._read_by(behavior), behavior)
        return handler._replace(**{name: wrapped})  # type: ignore[attr-defined, no-any-return]  # a named tuple

    def _read_by(self, behavior: Behavior) -> Behavior:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._watchdog.reading(context) as reader:
                for message in behavior(request, context):
                    reader.is_handed_a_message()
                    yield message
                    reader.has_taken_it()

        return call
