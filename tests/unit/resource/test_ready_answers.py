from __future__ import annotations

from typing import Any

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.resource.interceptors.ready_answers import ReadyAnswersInterceptor

_ANSWER = pb.GetImageContentResponse(data=b"data")


def _serializer(handler: grpc.RpcMethodHandler[Any, Any] | None) -> Any:
    found = ReadyAnswersInterceptor().intercept_service(lambda _: handler, None)  # type: ignore[arg-type]
    return found and found.response_serializer


@pytest.mark.parametrize("answer", [_ANSWER, _ANSWER.SerializeToString()])
def test_messages_are_serialised_and_bytes_are_sent_as_they_are(answer: Any) -> None:
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(
        lambda request, context: iter([answer]), response_serializer=pb.GetImageContentResponse.SerializeToString
    )
    assert _serializer(handler)(answer) == _ANSWER.SerializeToString()


def test_what_serialises_nothing_is_left_alone() -> None:
    assert _serializer(grpc.unary_unary_rpc_method_handler(lambda request, context: b"")) is None


def test_a_method_that_there_is_not_is_left_to_others() -> None:
    assert _serializer(None) is None
