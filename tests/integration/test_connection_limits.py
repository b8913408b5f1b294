"""Connections that nobody uses: whoever opens many shuts nobody else out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.fuzz.http2 import PREFACE, SETTINGS, frame
from tests.integration.conftest import asking
from tests.integration.windows import SMALL_WINDOW, begin_to_read
from tests.support.certificates import Authority, secure_channel
from tests.support.connections import Connections, IdleConnections
from tests.support.image_client import SMALL, ImageClient
from tests.support.metrics import METRICS_ON, scrape
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT, health_stub
from tests.support.servers import NO_SETTINGS, RunningServer, environment, image_stub, run_command, running_server
from tests.support.stored_images import store_image
from tests.support.waiting import wait_until

_DESCRIPTORS = 256
_MAX_CONNECTIONS = 16
# With half of the descriptors kept for other things, more than a process can have; and so few that they are soon open.
_FLOOD = 300
_HELLO = PREFACE + frame(SETTINGS, 0, 0)
# A TLS client's first bytes: a record of a handshake, which never goes on.
_BEGINNING_OF_TLS = b"\x16\x03\x01\x02\x00"
_ADDRESSES = [f"127.0.0.{last}" for last in range(2, 12)]
_ONE_ADDRESS = ["127.0.0.2"]
_IMAGE = bytes(32 * 1024 * 1024)


@contextmanager
def _server_with(
    folder: Path, settings: Mapping[str, str] = NO_SETTINGS, *, ulimit: str = f"-n {_DESCRIPTORS}"
) -> Iterator[RunningServer]:
    """Run a server as a shell does after ``ulimit``."""
    command = ("/bin/sh", "-c", f'ulimit {ulimit} && exec "$0" -m pixyproxy serve', sys.executable)
    with running_server(folder, {**METRICS_ON, **settings}, command=command) as server:
        yield server


def _closed(server: RunningServer, limit: str) -> float:
    return scrape(server).total("pixyproxy_connections_closed_total", limit=limit)


def _wait_until_closed(server: RunningServer, limit: str, flood: IdleConnections) -> None:
    """Wait until connections were closed because of a limit, and an eighth of all is free, as the server aims at.

    What it has not accepted yet is among the alive ones; it counts those that it has itself, a little later.
    """

    def is_within_limits() -> bool:
        shown = scrape(server)
        most = shown.total("pixyproxy_connections_limit")
        counts = len(flood.alive), shown.total("pixyproxy_connections")
        return shown.total("pixyproxy_connections_closed_total", limit=limit) > 0 and max(counts) <= most - most // 8

    wait_until(is_within_limits, TIMEOUT, "idle connections to be closed")


def _watch_health(server: RunningServer, channel: Any) -> Any:
    call = health_stub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
    assert next(call).status == health_pb2.HealthCheckResponse.SERVING
    return call


# --- All of a process ------------------------------------------------------------------------------------------------


def test_there_are_no_more_watches_of_the_health_than_connections(tmp_path: Path) -> None:
    settings = {"PIXYPROXY_MAX_CONNECTIONS": str(_MAX_CONNECTIONS)}
    with running_server(tmp_path, settings) as server, server.new_channel() as one, server.new_channel() as another:
        watcher = _watch_health(server, one)
        crowd = [_watch_health(server, another) for _ in range(_MAX_CONNECTIONS)]
        wait_until(lambda: any(call.done() for call in crowd), TIMEOUT, "a watch to be cut off")
        assert [call.code() for call in crowd if call.done()] == [grpc.StatusCode.CANCELLED]
        assert not watcher.done()


@pytest.mark.parametrize(
    ("first_bytes", "sources", "limit"),
    [(b"", _ADDRESSES, "total"), (_HELLO, _ADDRESSES, "total"), (_HELLO, _ONE_ADDRESS, "per_address")],
    ids=["silent", "http2", "one-address"],
)
def test_idle_connections_shut_nobody_out(
    tmp_path: Path, stand_in: RunningStandIn, prompt: str, first_bytes: bytes, sources: list[str], limit: str
) -> None:
    slow = f"{prompt} [[fault:slow=3]]"
    with _server_with(tmp_path, asking(stand_in)) as server, ExitStack() as stack:
        image = store_image(server, server.admin, _IMAGE)
        reader = begin_to_read(
            image_stub(stack.enter_context(server.new_channel(*SMALL_WINDOW))), image.guid, server.admin
        )
        watcher = _watch_health(server, stack.enter_context(server.new_channel()))
        waiting = image_stub(stack.enter_context(server.new_channel())).CreateImage.future(
            pb.CreateImageRequest(prompt=slow, options=SMALL), metadata=server.admin.metadata, timeout=TIMEOUT
        )
        wait_until(lambda: stand_in.count(slow), TIMEOUT, "the submission")

        flood = stack.enter_context(IdleConnections(server, first_bytes, sources=sources))
        flood.open(_FLOOD)
        _wait_until_closed(server, limit, flood)
        with server.new_channel() as another:
            made = image_stub(another).CreateImage(
                pb.CreateImageRequest(prompt=prompt, options=SMALL), metadata=server.admin.metadata, timeout=TIMEOUT
            )
        assert made.image.prompt == prompt
        # Who has a call under way is not idle, however long nothing is sent.
        assert waiting.result().image.prompt == slow
        assert sum(len(answer.data) for answer in reader) == len(_IMAGE)
        assert watcher.is_active()

        assert "Connections closed" in server.log
        assert len(flood.alive) < _DESCRIPTORS // 2
        # The longest idle went first.
        assert flood.alive[0] > 0
        # They leave a line each now and then, not each a line.
        assert server.log.count("Connections closed") < 10


def test_handshakes_that_do_not_go_on_shut_nobody_out(tmp_path: Path) -> None:
    authority = Authority()
    with _server_with(tmp_path, authority.write(tmp_path).settings) as server:
        with IdleConnections(server, _BEGINNING_OF_TLS, sources=_ADDRESSES) as flood:
            flood.open(_FLOOD)
            _wait_until_closed(server, "total", flood)
            with secure_channel(server, authority.pem) as channel:
                answer = health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_each_worker_has_limits_of_its_own(tmp_path: Path) -> None:
    settings = {"PIXYPROXY_WORKERS": "2", "PIXYPROXY_MAX_CONNECTIONS": "50"}
    with _server_with(tmp_path, settings) as server, Connections(server) as connections:
        both = connections.one_to_each()
        with IdleConnections(server, _HELLO, sources=_ADDRESSES) as flood:
            flood.open(_FLOOD)
            _wait_until_closed(server, "total", flood)
            assert scrape(server).total("pixyproxy_connections_limit") == 100
            for stub in both.values():
                # Their connections, too, may have been the longest idle; then they make another by themselves.
                stub.ListImages(pb.ListImagesRequest(), timeout=TIMEOUT, wait_for_ready=True)


def test_an_idle_connection_is_left_alone_while_there_is_room(tmp_path: Path) -> None:
    with _server_with(tmp_path) as server, IdleConnections(server, _HELLO) as few:
        few.open(50)
        wait_until(lambda: scrape(server).total("pixyproxy_connections") == 50, TIMEOUT, "the connections to be seen")
        assert len(few.alive) == 50
        assert _closed(server, "total") == _closed(server, "per_address") == 0


# --- Of one address --------------------------------------------------------------------------------------------------


def test_an_address_with_too_many_idle_connections_loses_the_longest_idle(tmp_path: Path) -> None:
    with (
        _server_with(tmp_path, {"PIXYPROXY_MAX_CONNECTIONS_PER_ADDRESS": "10"}) as server,
        IdleConnections(server, _HELLO, sources=["127.0.0.2"]) as many,
        IdleConnections(server, _HELLO, sources=["127.0.0.3"]) as few,
    ):
        few.open(10)
        many.open(30)
        wait_until(lambda: len(many.alive) <= 10, TIMEOUT, "those of the one to be closed")
        assert many.alive == list(range(20, 30))
        assert len(few.alive) == 10
        wait_until(lambda: _closed(server, "per_address") == 20, TIMEOUT, "them to be counted")
        assert _closed(server, "total") == 0


def test_a_trusted_proxy_may_have_any_number_of_connections(tmp_path: Path) -> None:
    settings = {"PIXYPROXY_MAX_CONNECTIONS_PER_ADDRESS": "5", "PIXYPROXY_TRUSTED_PROXIES": "127.0.0.2/32"}
    with (
        _server_with(tmp_path, settings) as server,
        IdleConnections(server, _HELLO, sources=["127.0.0.2"]) as proxy,
        IdleConnections(server, _HELLO, sources=["127.0.0.3"]) as other,
    ):
        proxy.open(8)
        other.open(8)
        wait_until(lambda: len(other.alive) == 5, TIMEOUT, "the other address to lose three")
        assert len(proxy.alive) == 8


def test_an_address_with_too_many_busy_connections_loses_the_latest(tmp_path: Path) -> None:
    with _server_with(tmp_path, {"PIXYPROXY_MAX_CONNECTIONS_PER_ADDRESS": "3"}) as server, ExitStack() as stack:
        watchers = [_watch_health(server, stack.enter_context(server.new_channel())) for _ in range(3)]
        with server.new_channel() as one_more:
            latest = _watch_health(server, one_more)
            wait_until(lambda: not latest.is_active(), TIMEOUT, "the latest connection to be closed")
        assert all(watcher.is_active() for watcher in watchers)
        wait_until(lambda: _closed(server, "per_address") == 1, TIMEOUT, "it to be counted")


# --- The descriptors of a process ------------------------------------------------------------------------------------


def test_the_limit_of_descriptors_is_raised_as_far_as_the_system_lets_it(tmp_path: Path) -> None:
    with _server_with(tmp_path, ulimit="-Sn 60 && ulimit -Hn 300") as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text(encoding="ascii")
        (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
        assert line.split()[3:5] == ["300", "300"]
        with IdleConnections(server, _HELLO) as flood:
            flood.open(70)
            assert ImageClient(server, server.admin).create()
            assert len(flood.alive) == 70


@pytest.mark.parametrize("workers", ["1", "2"])
def test_more_connections_than_there_are_descriptors_are_not_promised(tmp_path: Path, workers: str) -> None:
    settings = {"PIXYPROXY_MAX_CONNECTIONS": "1000000", "PIXYPROXY_WORKERS": workers}
    done = run_command("serve", env=environment(tmp_path, settings))
    assert done.status == 1
    assert done.stderr.count("PIXYPROXY_MAX_CONNECTIONS") == 1
    assert "descriptors" in done.stderr
