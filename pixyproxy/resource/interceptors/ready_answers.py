"""Lets handlers answer with bytes that are a message already, which spares large ones a way through protobuf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from pixyproxy.resource.interceptors.wrapping import Continuation


class ReadyAnswersInterceptor(grpc.ServerInterceptor):
    """Serialises messages, and sends bytes as they are."""

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Change the handler of a call."""
        handler = continuation(handler_call_details)
        if handler is None or handler.response_serializer is None:
            return handler
        serialize = _unless_ready(handler.response_serializer)
        return handler._replace(response_serializer=serialize)  # type: ignore[attr-defined, no-any-return]  # a named tuple


def _unless_ready(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    def serialize_unless_ready(answer: Any) -> bytes:
        return answer if isinstance(answer, bytes) else serialize(answer)

    return serialize_unless_ready
