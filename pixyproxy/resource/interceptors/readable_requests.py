"""Refuses methods that have no policy, and bytes that are no message, as errors like any others.

gRPC would end such calls itself: without details, without a line in the log, undecodable requests as INTERNAL.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from pixyproxy.core.exceptions import MalformedRequestError, UnknownMethodError
from pixyproxy.resource.interceptors.wrapping import Behavior, Continuation, arity_of
from pixyproxy.resource.methods import POLICIES


class ReadableRequestsInterceptor(grpc.ServerInterceptor):
    """Makes bytes that are no message, and methods that do not exist, errors like any others."""

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap the handler of a call, or stand in for it."""
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method not in POLICIES:
            return grpc.stream_stream_rpc_method_handler(_unknown_method)
        if handler.request_deserializer is None:
            return handler
        name = arity_of(handler)
        behavior = getattr(handler, name)
        refusing = _refusing_unreadable_stream if handler.request_streaming else _refusing_unreadable
        return handler._replace(  # type: ignore[attr-defined, no-any-return]  # a named tuple
            **{
                "request_deserializer": _tolerant(handler.request_deserializer),
                name: functools.update_wrapper(refusing(behavior), behavior),
            }
        )


class _Unreadable:
    """What the handler is given in place of a message that could not be read."""


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def deserialize_or_mark(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, ValueError):
            return _Unreadable()

    return deserialize_or_mark


def _refusing_unreadable(behavior: Callable[..., Any]) -> Callable[..., Any]:
    # A handler that sends its messages later is handed a third argument, which it sends them with.
    def call(request: Any, context: grpc.ServicerContext, *send: Callable[[Any], None]) -> Any:
        return behavior(_readable(request), context, *send)

    return call


def _refusing_unreadable_stream(behavior: Behavior) -> Behavior:
    def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        return behavior(map(_readable, requests), context)

    return call


def _readable(request: Any) -> Any:
    if request is None:
        raise MalformedRequestError("The call ended without a request.")
    if isinstance(request, _Unreadable):
        raise MalformedRequestError("The request is not a message of the type that this method takes.")
    return request


def _unknown_method(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    """Stand in for a method that there is not, in the shape that every client can speak to."""
    raise UnknownMethodError("There is no such method.")
