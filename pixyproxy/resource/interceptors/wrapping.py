"""The base classes of interceptors, for calls of every arity."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from contextvars import copy_context
from typing import Any

import grpc

from pixyproxy.resource.methods import POLICIES

Behavior = Callable[[Any, grpc.ServicerContext], Any]
Continuation = Callable[[grpc.HandlerCallDetails], "grpc.RpcMethodHandler[Any, Any] | None"]


class WrappingInterceptor(grpc.ServerInterceptor):
    """An interceptor that wraps the handler of each method once, so that inner interceptors are asked only once."""

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the wrapped handler. This runs on the one serving thread, so all work belongs into the wrapper."""
        method = handler_call_details.method
        wrapped = self._wrappers.get(method)
        if wrapped is None:
            handler = continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrapped(handler, method)
            # Clients may call any number of unknown methods.
            if method in POLICIES:
                self._wrappers[method] = wrapped
        return wrapped

    @functools.cached_property
    def _wrappers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        return {}

    @abstractmethod
    def _wrapped(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap the handler of a method."""


class AroundCalls(WrappingInterceptor):
    """An interceptor that is a context manager around each call; around a stream, until its last message."""

    @abstractmethod
    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> AbstractContextManager[None]:
        """Return the context manager for a call. It sees the exception that ends the call.

        Args:
            method: the full name, such as ``/pixyproxy.v1.ImageService/GetImage``.
            behavior: what is called; ``inspect.unwrap`` gives the servicer's own method.
            context: the call's context.
        """

    def _wrapped(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        wrap = self._around_unary
        if handler.response_streaming:
            wrap = self._around_callback_stream if is_callback_stream(handler) else self._around_stream
        return with_behavior(handler, wrap(behavior_of(handler), method))

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

    def _around_callback_stream(self, behavior: Callable[..., Any], method: str) -> Callable[..., Any]:
        def call(request: Any, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            # Another thread ends the call, and needs the same context variables.
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


def behavior_of(handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[..., Any]:
    """Return the function of a handler."""
    return getattr(handler, _arity_of(handler))  # type: ignore[no-any-return]


def with_behavior(
    handler: grpc.RpcMethodHandler[Any, Any], behavior: Callable[..., Any], **others: Any
) -> grpc.RpcMethodHandler[Any, Any]:
    """Return a handler with another function, which takes on the attributes of the one before."""
    wrapped = functools.update_wrapper(behavior, behavior_of(handler))
    return handler._replace(**{_arity_of(handler): wrapped}, **others)  # type: ignore[attr-defined, no-any-return]  # a named tuple


def is_callback_stream(handler: grpc.RpcMethodHandler[Any, Any]) -> bool:
    """Tell whether a handler returns at once and sends its messages later, from other threads.

    So gRPC's own health service keeps its watchers from holding a thread each. Such a handler takes a third argument,
    the function that sends a message.
    """
    return getattr(behavior_of(handler), "experimental_non_blocking", False)


def _arity_of(handler: grpc.RpcMethodHandler[Any, Any]) -> str:
    arity = {False: "unary", True: "stream"}
    return f"{arity[handler.request_streaming]}_{arity[handler.response_streaming]}"
