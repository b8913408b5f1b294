"""Calls by the thousand whose requests never come: they leave neither the log nor the memory full."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.fuzz.http2 import (
    END_HEADERS,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Http2Connection,
    frame,
    header_block,
)
from tests.support.image_client import ImageClient
from tests.support.metrics import METRICS_ON, scrape
from tests.support.rpc import TIMEOUT
from tests.support.servers import RunningServer, running_server
from tests.support.waiting import wait_until

_CONNECTIONS = 40
_CALLS_A_CONNECTION = 250
_CALLS_AT_A_TIME = 10
_CALLS_OF_OTHERS = 200
_CANCEL = struct.pack(">I", 8)
_MOST_LOG = 64 * 1024
_MOST_MEMORY_MEANWHILE = 160 * 1024 * 1024
# The threads that a flood makes the server start stay, with 31 KiB each.
_MOST_MEMORY_LEFT = 64 * 1024 * 1024
_SERVICE = "/pixyproxy.v1.ImageService/"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server of a test's own: what it logs and holds is the test's doing."""
    with running_server(tmp_path, METRICS_ON) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "is_reset"),
    [(f"{_SERVICE}CreateImage", False), (f"{_SERVICE}GetImage", True)],
    ids=["left", "reset"],
)
def test_calls_without_requests_fill_neither_log_nor_memory(server: RunningServer, method: str, is_reset: bool) -> None:
    headers = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method.encode()),
        (b":authority", b"here"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    block = header_block(headers)
    client = ImageClient(server, server.admin)
    made = client.create()
    logged, rss = len(server.log), server.rss
    with ExitStack() as stack:
        connections = [stack.enter_context(Http2Connection(server.address, TIMEOUT)) for _ in range(_CONNECTIONS)]
        for connection in connections:
            connection.send(PREFACE + frame(SETTINGS, 0, 0))
            connection.listen(0, TIMEOUT)
        for first in range(1, 2 * _CALLS_A_CONNECTION, 2 * _CALLS_AT_A_TIME):
            for connection in connections:
                calls = range(first, first + 2 * _CALLS_AT_A_TIME, 2)
                connection.send(
                    b"".join(
                        frame(HEADERS, END_HEADERS, call, block)
                        + (frame(RST_STREAM, 0, call, _CANCEL) if is_reset else b"")
                        for call in calls
                    )
                )
                connection.read()
            # Who tries again is served meanwhile; this also keeps the flood as fast as the server.
            wait_until(lambda: _is_served(client, made), TIMEOUT, "another caller to be served")
        assert server.rss - rss < _MOST_MEMORY_MEANWHILE
    wait_until(lambda: server.rss - rss < _MOST_MEMORY_LEFT, TIMEOUT, "memory to be given back")
    assert client.get(made.guid) == made
    wait_until(lambda: "Calls that ended before their requests came: " in server.log, TIMEOUT, "them to be logged")
    assert len(server.log) - logged < _MOST_LOG
    shown = scrape(server)
    # Not all: gRPC itself refuses or drops many without reporting them.
    assert shown.total("pixyproxy_calls_without_request_total") > 0
    # They are no calls of the method yet.
    assert shown.total("grpc_server_started_total", grpc_method=method.rpartition("/")[2]) < _CALLS_OF_OTHERS


def _is_served(client: ImageClient, image: pb.ImageDetail) -> bool:
    try:
        return client.get(image.guid) == image
    except grpc.RpcError:
        return False
