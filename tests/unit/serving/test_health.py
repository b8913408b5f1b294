"""The health service, beyond what gRPC's own does."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pixyproxy.serving.server import _Health
from tests.support.rpc import TIMEOUT, health_stub


class LateHealth(_Health):
    """Begins a watch when its call has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = threading.Event()
        self.has_begun = threading.Event()

    def Watch(self, request: Any, context: grpc.ServicerContext, send_response_callback: Any = None) -> Any:
        has_ended = threading.Event()
        context.add_callback(has_ended.set)
        self.is_asked.set()
        assert has_ended.wait(TIMEOUT)
        super().Watch(request, context, send_response_callback)
        self.has_begun.set()


def test_a_watch_whose_call_ends_before_it_begins_is_forgotten() -> None:
    health = LateHealth()
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            call = health_stub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
            assert health.is_asked.wait(TIMEOUT)
            call.cancel()
            assert health.has_begun.wait(TIMEOUT)
    finally:
        server.stop(None).wait(TIMEOUT)
    assert health._watches == set()
    assert health._send_response_callbacks == {"": set()}  # type: ignore[attr-defined]  # not in the stubs
