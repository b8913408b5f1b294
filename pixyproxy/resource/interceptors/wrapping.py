"""One shape of interceptor for calls of every arity."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import grpc

Behavior = Callable[[Any, grpc.ServicerContext], Any]
Continuation = Callable[[grpc.HandlerCallDetails], "grpc.RpcMethodHandler[Any, Any] | None"]


class AroundCalls(grpc.ServerInterceptor):
    """An interceptor that is a context manager around each call: around a stream, until its last message."""

    @abstractmethod
    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> AbstractContextManager[None]:
        """Return what to enter before a call and to leave after it, with the exception that ends it.

        Args:
            method: the full name, such as ``/pixyproxy.v1.ImageService/GetImage``.
            behavior: what is called; ``inspect.unwrap`` gives the servicer's own method.
            context: the call's context.
        """

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call. This runs on the one serving thread, so that all work is left to the wrapper."""
        handler = continuation(handler_call_details)
        return None if handler is None else self._wrapped(handler, handler_call_details.method)

    def _wrapped(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        name = f"{_arity(handler.request_streaming)}_{_arity(handler.response_streaming)}"
        behavior = getattr(handler, name)
        wrap = self._around_stream if handler.response_streaming else self._around_unary
        wrapped = functools.update_wrapper(wrap(behavior, method), behavior)
        return handler._replace(**{name: wrapped})  # type: ignore[attr-defined, no-any-return]  # a named tuple

    def _around_unary(self, behavior: Behavior, method: str) -> Behavior:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with self.around(method, behavior, context):
                return behavior(request, context)

        return call

    def _around_stream(self, behavior: Behavior, method: str) -> Behavior:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self.around(method, behavior, context):
                yield from behavior(request, context)

        return call


def _arity(is_streaming: bool) -> str:
    return "stream" if is_streaming else "unary"
