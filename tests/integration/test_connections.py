"""How long connections live: silent ones, old ones, and those of clients that ping too often."""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.fuzz.http2 import ACK, PING, PREFACE, SETTINGS, Http2Connection, frame
from tests.integration.conftest import asking
from tests.support.image_client import SMALL, ImageClient
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT
from tests.support.servers import RunningServer, image_stub, running_server
from tests.support.waiting import wait_until

_ENHANCE_YOUR_CALM = 11
_SOONER = 30.0
"""Seconds of silence, of which gRPC by itself bears 60."""
_HELLO = PREFACE + frame(SETTINGS, 0, 0)


@pytest.fixture
def brief_connections() -> dict[str, str]:
    """The settings of a server that asks clients to connect anew after a second."""
    return {"PIXYPROXY_MAX_CONNECTION_AGE": "1"}


def _states(channel: grpc.Channel) -> Iterator[grpc.ChannelConnectivity]:
    """The states that a channel goes through."""
    seen: queue.Queue[grpc.ChannelConnectivity] = queue.Queue()
    channel.subscribe(seen.put)
    while True:
        yield seen.get(timeout=TIMEOUT)


def _begin(server: RunningServer, channel: grpc.Channel, prompt: str, stand_in: RunningStandIn) -> Any:
    request = pb.CreateImageRequest(prompt=prompt, options=SMALL)
    call = image_stub(channel).CreateImage.future(request, metadata=server.admin.metadata, timeout=TIMEOUT)
    wait_until(lambda: stand_in.count(prompt), TIMEOUT, "the submission")
    return call


def test_a_generation_outlives_the_age_of_its_connection(
    stand_in: RunningStandIn, tmp_path: Path, prompt: str, brief_connections: dict[str, str]
) -> None:
    prompt += " [[fault:hold]]"
    with running_server(tmp_path, asking(stand_in) | brief_connections) as server, server.new_channel() as channel:
        states = _states(channel)
        began = time.monotonic()
        call = _begin(server, channel, prompt, stand_in)
        assert grpc.ChannelConnectivity.READY in states
        # The connection is old now: the next call gets another one.
        assert grpc.ChannelConnectivity.IDLE in states
        wait_until(lambda: time.monotonic() - began > 2, TIMEOUT, "longer than any connection's age")
        assert not call.done()
        stand_in.release(prompt)
        assert call.result().image.prompt == prompt


def test_a_limit_to_what_old_connections_have_left(
    stand_in: RunningStandIn, tmp_path: Path, prompt: str, brief_connections: dict[str, str]
) -> None:
    prompt += " [[fault:hold]]"
    settings = asking(stand_in) | brief_connections | {"PIXYPROXY_MAX_CONNECTION_AGE_GRACE": "1"}
    with running_server(tmp_path, settings) as server:
        with server.new_channel() as channel:
            call = _begin(server, channel, prompt, stand_in)
            assert call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        stand_in.release(prompt)
        # The image is paid for, and stored nevertheless.
        artist = ImageClient(server, server.admin)
        (image,) = wait_until(lambda: artist.page().images, TIMEOUT, "the image")
        assert image.prompt == prompt
    assert stand_in.count(prompt) == 1


def test_a_connection_that_does_not_answer_is_closed(tmp_path: Path) -> None:
    settings = {"PIXYPROXY_KEEPALIVE_TIME": "1", "PIXYPROXY_KEEPALIVE_TIMEOUT": "1"}
    with running_server(tmp_path, settings) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=_SOONER) as connection:
            connection.sendall(_HELLO + frame(SETTINGS, ACK, 0))
            received = b""
            while data := connection.recv(65_536):
                received += data
    assert b"ping_timeout" in received


@pytest.mark.parametrize(("interval", "goaways"), [("30", [_ENHANCE_YOUR_CALM]), ("0", [])])
def test_pings_that_come_too_often(tmp_path: Path, interval: str, goaways: list[int]) -> None:
    with (
        running_server(tmp_path, {"PIXYPROXY_MIN_PING_INTERVAL": interval}) as server,
        Http2Connection(server.address, TIMEOUT) as connection,
    ):
        connection.send(_HELLO + frame(PING, 0, 0, b"too many") * 10)
        connection.listen(0, TIMEOUT)
        assert connection.answers.goaways == goaways
