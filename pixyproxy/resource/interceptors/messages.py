"""Refuses methods without a policy and bytes that are no message, and sends messages that are serialised already.

gRPC itself would end such calls without details and without a line in the log, undecodable requests as INTERNAL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from pixyproxy.core.exceptions import MalformedRequestError, UnknownMethodError
from pixyproxy.resource.interceptors.wrapping import Continuation, behavior_of, with_behavior
from pixyproxy.resource.methods import POLICIES


class MessageInterceptor(grpc.ServerInterceptor):
    """Makes malformed requests and unknown methods errors like any others, and lets handlers answer with bytes."""

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Wrap the handler of a call, or stand in for it."""
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method not in POLICIES:
            return grpc.stream_stream_rpc_method_handler(_unknown_method)
        if handler.request_deserializer is None or handler.response_serializer is None:
            return handler
        behavior = behavior_of(handler)

        def call(request: Any, context: grpc.ServicerContext, *send: Callable[[Any], None]) -> Any:
            readable = map(_readable, request) if handler.request_streaming else _readable(request)
            return behavior(readable, context, *send)

        return with_behavior(
            handler,
            call,
            request_deserializer=_tolerant(handler.request_deserializer),
            response_serializer=_unless_serialized(handler.response_serializer),
        )


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def deserialize_or_explain(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, ValueError):
            return MalformedRequestError("The request is not a message of the type that this method takes.")

    return deserialize_or_explain


def _readable(request: Any) -> Any:
    if request is None:
        raise MalformedRequestError("The call ended without a request.")
    if isinstance(request, MalformedRequestError):
        raise request
    return request


def _unless_serialized(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    def serialize_unless_bytes(answer: Any) -> bytes:
        return answer if isinstance(answer, bytes) else serialize(answer)

    return serialize_unless_bytes


def _unknown_method(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    """Stand in for an unknown method, in the arity that every client can call."""
    raise UnknownMethodError("There is no such method.")
