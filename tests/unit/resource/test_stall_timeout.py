"""Calls whose requests have not come, on a real server of gRPC's."""

from __future__ import annotations

import gc
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from pixyproxy.resource.connections import ConnectionLimiter, ConnectionLimits
from pixyproxy.resource.interceptors.stall_timeout import RequestTimeoutInterceptor
from pixyproxy.resource.tally import Tally
from pixyproxy.resource.watchdog import Watchdog
from tests.support.rpc import TIMEOUT
from tests.support.waiting import wait_until

_CALLS = 20
_CHECK = "/grpc.health.v1.Health/Check"


class Counts:
    """What was counted."""

    def __init__(self) -> None:
        self.reasons: list[str] = []


@contextmanager
def serving(counts: Counts) -> Iterator[grpc.Channel]:
    unread = Tally("Calls", counts.reasons.append)
    limiter = ConnectionLimiter(ConnectionLimits(10, 10), is_exempt=lambda host: False)
    interceptor = RequestTimeoutInterceptor(Watchdog(TIMEOUT, unread), limiter, unread)
    server = grpc.server(ThreadPoolExecutor(_CALLS), interceptors=[interceptor])
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            yield channel
    finally:
        server.stop(None)


def test_nothing_stays_of_calls_that_were_cancelled_before_their_requests_came() -> None:
    def calls_held() -> int:
        return sum(type(thing) is grpc._server._RPCState for thing in gc.get_objects())

    counts = Counts()
    requests: queue.Queue[None] = queue.Queue()
    with serving(counts) as channel:
        # Those of other tests' servers may go meanwhile.
        gc.collect()
        before = calls_held()
        # Without it: what waits for the collection of the oldest objects is held for hours.
        gc.disable()
        try:
            calls: list[Any] = [channel.stream_unary(_CHECK).future(iter(requests.get, None)) for _ in range(_CALLS)]
            wait_until(lambda: calls_held() >= before + _CALLS, TIMEOUT, "the calls to arrive")
            for call in calls:
                call.cancel()
            wait_until(lambda: counts.reasons == ["cancelled"] * _CALLS, TIMEOUT, "the calls to end")
            wait_until(lambda: calls_held() <= before, TIMEOUT, "nothing to be left")
        finally:
            gc.enable()
            for _ in range(_CALLS):
                requests.put(None)
