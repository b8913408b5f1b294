"""What handlers take and return, on a real server of gRPC's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import image_service_pb2_grpc as pb_grpc

from pixyproxy.resource.interceptors.messages import MessageInterceptor
from tests.support.rpc import TIMEOUT
from tests.support.servers import image_stub

_ANSWER = pb.GetImageContentResponse(data=b"data")


class _Answering(pb_grpc.ImageServiceServicer):
    """Answers with a message and with the same message as bytes."""

    def GetImageContent(self, request: pb.GetImageContentRequest, context: grpc.ServicerContext) -> Iterator[Any]:
        yield _ANSWER
        yield _ANSWER.SerializeToString()


@pytest.fixture
def images() -> Iterator[Any]:
    server = grpc.server(ThreadPoolExecutor(1), interceptors=[MessageInterceptor()])
    pb_grpc.add_ImageServiceServicer_to_server(_Answering(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            yield image_stub(channel)
    finally:
        server.stop(None)


def test_messages_are_serialised_and_bytes_are_sent_as_they_are(images: Any) -> None:
    answers = images.GetImageContent(pb.GetImageContentRequest(), timeout=TIMEOUT)

    assert list(answers) == [_ANSWER, _ANSWER]
