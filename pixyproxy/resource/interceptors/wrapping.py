"""One shape of interceptor for calls of every arity."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from contextvars import copy_context
from typing import Any

import grpc

Behavior = Callable[[Any, grpc.ServicerContext], Any]
Continuation = Callable[[grpc.HandlerCallDetails], "grpc.RpcMethodHandler[Any, Any] | None"]

# More methods than there are: whoever calls ones that there are not must not fill the memory.
_MAX_REMEMBERED = 64


class WrappingInterceptor(grpc.ServerInterceptor):
    """An interceptor that wraps the handler of each method once and remembers it.

    So interceptors further in are asked for it only once, not with every call.
    """

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call. This runs on the one serving thread, so that all work is left to the wrapper."""
        method = handler_call_details.method
        wrapped = self._remembered.get(method)
        if wrapped is None:
            handler = continuation(handler_call_details)
            if handler is None:
                return None
            if len(self._remembered) == _MAX_REMEMBERED:
                self._remembered.clear()
            wrapped = self._remembered[method] = self._wrapped(handler, method)
        return wrapped

    @functools.cached_property
    def _remembered(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        return {}

    @abstractmethod
    def _wrapped(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap the handler of a method."""


class AroundCalls(WrappingInterceptor):
    """An interceptor that is a context manager around each call: around a stream, until its last message."""

    @abstractmethod
    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> AbstractContextManager[object]:
        """Return what to enter before a call and to leave after it, with the exception that ends it.

        Args:
            method: the full name, such as ``/pixyproxy.v1.ImageService/GetImage``.
            behavior: what is called; ``inspect.unwrap`` gives the servicer's own method.
            context: the call's context.
        """

    def _wrapped(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        name = arity_of(handler)
        behavior = getattr(handler, name)
        wrap = self._around_unary
        if handler.response_streaming:
            # How gRPC's own health service keeps its watchers from holding a thread each.
            is_blocking = not getattr(behavior, "experimental_non_blocking", False)
            wrap = self._around_stream if is_blocking else self._around_later_stream
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

    def _around_later_stream(self, behavior: Callable[..., Any], method: str) -> Callable[..., Any]:
        """Wrap a handler that returns at once and sends its messages later, from other threads, until the call ends."""

        def call(request: Any, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            # What is entered in this thread is left in another one, which must find the same context variables.
            scope = copy_context()

            def begin() -> ExitStack:
                with ExitStack() as stack:
                    stack.enter_context(self.around(method, behavior, context))
                    behavior(request, context, send)
                    return stack.pop_all()

            ending = scope.run(begin)

            def end() -> None:
                scope.run(ending.close)

            if not context.add_callback(end):
                end()

        return call


def arity_of(handler: grpc.RpcMethodHandler[Any, Any]) -> str:
    """Return the name of the attribute that holds a handler's behavior, such as ``unary_stream``."""
    return f"{_arity(handler.request_streaming)}_{_arity(handler.response_streaming)}"


def _arity(is_streaming: bool) -> str:
    return "stream" if is_streaming else "unary"
