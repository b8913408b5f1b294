"""Calls whose requests have not come, on a real server of gRPC's."""

from __future__ import annotations

import gc
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from pixyproxy.resource.connections import ConnectionLimiter, ConnectionLimits
from pixyproxy.resource.interceptors.stall_timeout import RequestTimeoutInterceptor
from pixyproxy.resource.tally import Tally
from pixyproxy.resource.watchdog import Watchdog
from tests.support.rpc import TIMEOUT, health_stub, refusal_of
from tests.support.waiting import wait_until

_CALLS = 20
_CHECK = "/grpc.health.v1.Health/Check"


class Counts:
    """What was counted."""

    def __init__(self) -> None:
        self.reasons: list[str] = []


@contextmanager
def serving(counts: Counts, *, threads: int = _CALLS, max_queued: int = _CALLS) -> Iterator[grpc.Channel]:
    unread = Tally("Calls", counts.reasons.append)
    limiter = ConnectionLimiter(ConnectionLimits(10, 10), is_exempt=lambda host: False)
    interceptor = RequestTimeoutInterceptor(Watchdog(TIMEOUT, unread), limiter, unread, max_queued=max_queued)
    server = grpc.server(ThreadPoolExecutor(threads), interceptors=[interceptor])
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            yield channel
    finally:
        server.stop(None)


def test_while_too_many_calls_wait_for_a_thread_others_are_refused_with_all_details() -> None:
    counts = Counts()
    requests: queue.Queue[None] = queue.Queue()
    with serving(counts, threads=1, max_queued=1) as channel:

        def call_without_request() -> Any:
            return channel.stream_unary(_CHECK).future(iter(requests.get, None))

        waiting = [call_without_request()]
        try:
            # One of these holds the thread, and one waits for it.
            wait_until(lambda: waiting.append(call_without_request()) or counts.reasons, TIMEOUT, "a refusal")  # type: ignore[func-returns-value]
            with pytest.raises(grpc.RpcError) as caught:
                health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
            refused = refusal_of(caught.value)
            assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_BUSY")
            assert refused.retry_after
            assert set(counts.reasons) == {"refused"}
        finally:
            for call in waiting:
                call.cancel()
                requests.put(None)
        wait_until(lambda: _is_served(channel), TIMEOUT, "the thread to be free")


def _is_served(channel: grpc.Channel) -> bool:
    try:
        health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
    except grpc.RpcError:
        return False
    return True


def test_nothing_stays_of_calls_that_were_cancelled_before_their_requests_came() -> None:
    def calls_held() -> int:
        return sum(type(thing) is grpc._server._RPCState for thing in gc.get_objects())

    counts = Counts()
    requests: queue.Queue[None] = queue.Queue()
    with serving(counts) as channel:
        before = calls_held()
        # Without it: what waits for the collection of the oldest objects is held for hours.
        gc.disable()
        try:
            calls: list[Any] = [channel.stream_unary(_CHECK).future(iter(requests.get, None)) for _ in range(_CALLS)]
            wait_until(lambda: calls_held() >= before + _CALLS, TIMEOUT, "the calls to arrive")
            for call in calls:
                call.cancel()
            wait_until(lambda: counts.reasons == ["cancelled"] * _CALLS, TIMEOUT, "the calls to end")
            wait_until(lambda: calls_held() == before, TIMEOUT, "nothing to be left")
        finally:
            gc.enable()
            for _ in range(_CALLS):
                requests.put(None)
