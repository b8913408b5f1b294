"""Callers who keep threads waiting, and kinds of calls that take all they may: the others are served all the same."""

from __future__ import annotations

import queue
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.fuzz.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    Headers,
    Http2Connection,
    frame,
    header_block,
    message,
)
from tests.integration.windows import SMALL_WINDOW, begin_to_read
from tests.support.image_client import ImageClient
from tests.support.image_files import encode
from tests.support.metrics import METRICS_ON, scrape
from tests.support.rpc import TIMEOUT, call_id_of, health_stub, refusal, refusal_of
from tests.support.servers import RunningServer, image_stub, running_server
from tests.support.stored_images import store_image
from tests.support.waiting import wait_until

# Longer than a reader that moves, or the whole machine, stands still for a moment.
_STALL_SECONDS = 4
_SHORT_STALL_TIMEOUT = METRICS_ON | {"PIXYPROXY_STALL_TIMEOUT": str(_STALL_SECONDS)}
_IMAGE = bytes(32 * 1024 * 1024)
_CALLS_A_CONNECTION = 250
# Many times the threads of the narrow server, and soon done.
_BURST_CONNECTIONS = 3
_CALLS_OF_A_BURST = 10
_CUT_OFF = "was cut off."
_WAITS_FOR_DATABASE = {"PIXYPROXY_DATABASE_TIMEOUT": f"{TIMEOUT:g}"}
# SETTINGS_INITIAL_WINDOW_SIZE
_NO_WINDOW = struct.pack(">HI", 4, 0)
_GET_IMAGE = "/pixyproxy.v1.ImageService/GetImage"


@pytest.fixture(scope="module")
def stall_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that waits some seconds for its callers."""
    with running_server(tmp_path_factory.mktemp("stall_server"), _SHORT_STALL_TIMEOUT) as server:
        yield server


@pytest.fixture(scope="module")
def narrow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that runs two unary calls at a time."""
    settings = METRICS_ON | _WAITS_FOR_DATABASE | {"PIXYPROXY_MAX_UNARY_CALLS": "2"}
    with running_server(tmp_path_factory.mktemp("narrow_server"), settings) as server:
        yield server


# --- Readers ---------------------------------------------------------------------------------------------------------


def test_a_reader_that_stalls_is_cut_off_and_one_that_moves_is_not(stall_server: RunningServer) -> None:
    image = store_image(stall_server, stall_server.admin, _IMAGE)
    path = stall_server.image_file(image.guid)
    with stall_server.new_channel(*SMALL_WINDOW) as one, stall_server.new_channel(*SMALL_WINDOW) as another:
        stalled = begin_to_read(image_stub(one), image.guid, stall_server.admin)
        moving = begin_to_read(image_stub(another), image.guid, stall_server.admin)
        read = 0

        def is_cut_off_while_the_other_reads() -> bool:
            nonlocal read
            read += len(next(moving).data)
            return "REQUEST END" in "".join(stall_server.lines_of(call_id_of(stalled)))

        # It reads a chunk now and then, for longer than a stalled reader may take.
        wait_until(is_cut_off_while_the_other_reads, TIMEOUT, "the stalled reader to be cut off")
        *_, why, end = stall_server.lines_of(call_id_of(stalled))
        assert why.endswith(f"The client read nothing for {_STALL_SECONDS} s and {_CUT_OFF}")
        assert "REQUEST END CANCELLED" in end
        with pytest.raises(grpc.RpcError):
            list(stalled)
        assert stalled.code() is grpc.StatusCode.CANCELLED
        assert read + sum(len(answer.data) for answer in moving) == len(_IMAGE)
    wait_until(lambda: path not in stall_server.open_images, TIMEOUT, "the file to be closed")


def test_stalled_readers_keep_nobody_else_waiting(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, ExitStack() as stack:
        image = store_image(server, server.admin, _IMAGE)
        channels = [stack.enter_context(server.new_channel(*SMALL_WINDOW)) for _ in range(4)]
        readers = [
            begin_to_read(image_stub(channel), image.guid, server.admin) for channel in channels for _ in range(50)
        ]
        wait_until(lambda: len(server.open_images) == len(readers), TIMEOUT, "all to be at it")
        client = ImageClient(server, server.admin)
        for _ in range(50):
            assert client.get(image.guid).guid == image.guid
        assert client.content(image.guid)[0].sha256 == image.sha256
        assert len(server.open_images) == len(readers)
        assert _CUT_OFF not in server.log
        for reader in readers:
            reader.cancel()


@pytest.mark.parametrize("stall_timeout", [1, 3600])
def test_a_watcher_of_the_health_that_reads_nothing_keeps_nobody_else_waiting(
    tmp_path: Path, stall_timeout: int
) -> None:
    settings = {"PIXYPROXY_STALL_TIMEOUT": str(stall_timeout), "PIXYPROXY_DRAIN_TIMEOUT": "1"}
    block = header_block(_headers("/grpc.health.v1.Health/Watch"))
    with running_server(tmp_path, settings) as server, Http2Connection(server.address, TIMEOUT) as connection:
        connection.send(PREFACE + frame(SETTINGS, 0, 0, _NO_WINDOW))
        connection.listen(0, TIMEOUT)
        connection.send(frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, message(b"")))
        wait_until(lambda: "[Watch:" in server.log, TIMEOUT, "the watch to begin")
        for _ in range(3):
            answer = health_stub(server.channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT / 4)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        if stall_timeout < TIMEOUT:
            connection.listen(1, TIMEOUT)
            assert connection.answers.resets or connection.answers.ended
        server.terminate()
        assert server.process.wait(TIMEOUT) == 0


# --- Answers that are not taken --------------------------------------------------------------------------------------


def test_a_client_that_does_not_take_a_large_answer_is_cut_off(stall_server: RunningServer) -> None:
    client, lines_before = ImageClient(stall_server, stall_server.admin), len(stall_server.log_lines)
    prompt = "\N{FOX FACE}" * 32_000
    image = client.import_image(encode("png"), prompt=prompt, visibility=pb.VISIBILITY_PUBLIC)
    request = pb.GetImageRequest(guid=image.guid).SerializeToString()
    with Http2Connection(stall_server.address, TIMEOUT) as connection:
        connection.send(PREFACE + frame(SETTINGS, 0, 0, _NO_WINDOW))
        connection.send(frame(HEADERS, END_HEADERS, 1, header_block(_headers(_GET_IMAGE))))
        connection.send(frame(DATA, END_STREAM, 1, message(request)))
        connection.listen(1, TIMEOUT)
        assert connection.answers.ended[1].code is grpc.StatusCode.CANCELLED
    why = f"The client did not take the answer and {_CUT_OFF}"

    def said() -> list[str]:
        return [line for line in stall_server.log_lines[lines_before:] if line.endswith(why)]

    (line,) = wait_until(said, TIMEOUT, "the line in the log")
    assert "REQUEST END OK" in stall_server.lines_of(line.split()[3])[1]
    assert client.get(image.guid).prompt == prompt


# --- Requests that do not come ---------------------------------------------------------------------------------------


def _headers(method: str) -> Headers:
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method.encode()),
        (b":authority", b"here"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]


@contextmanager
def _calls_without_requests(server: RunningServer, method: str, number: int) -> Iterator[Http2Connection]:
    with Http2Connection(server.address, TIMEOUT) as connection:
        connection.send(PREFACE + frame(SETTINGS, 0, 0))
        connection.send(
            b"".join(
                frame(HEADERS, END_HEADERS, 2 * call + 1, header_block(_headers(method))) for call in range(number)
            )
        )
        yield connection


@pytest.mark.parametrize("method", [_GET_IMAGE, "/pixyproxy.v1.ImageService/GetImageContent"])
def test_a_call_whose_request_does_not_come_is_cut_off(stall_server: RunningServer, method: str) -> None:
    before = _cut_off(stall_server)
    with _calls_without_requests(stall_server, method, 10) as connection:
        connection.listen(10, TIMEOUT)
        assert len(connection.answers.resets) + len(connection.answers.ended) == 10
    wait_until(lambda: _cut_off(stall_server) == before + 10, TIMEOUT, "the end of the calls")


def _cut_off(server: RunningServer) -> float:
    """How many calls were cut off before their requests came."""
    return scrape(server).total("pixyproxy_calls_without_request_total", reason="cut_off")


def _ended(server: RunningServer) -> float:
    """How many calls were cut off or refused before their requests came."""
    return _cut_off(server) + scrape(server).total("pixyproxy_calls_without_request_total", reason="refused")


def test_calls_without_requests_keep_nobody_else_waiting(tmp_path: Path) -> None:
    with running_server(tmp_path, METRICS_ON) as server, ExitStack() as stack:
        client = ImageClient(server, server.admin)
        made = client.create()
        for _ in range(4):
            stack.enter_context(_calls_without_requests(server, _GET_IMAGE, _CALLS_A_CONNECTION))
            assert client.get(made.guid) == made
        # The slowest make room for others long before their time is over.
        # Those that wait for a thread meanwhile are refused.
        wait_until(lambda: _ended(server) >= 3 * _CALLS_A_CONNECTION, TIMEOUT, "room to be made")
        assert client.get(made.guid) == made


def test_an_idle_reflection_stream_is_cut_off(stall_server: RunningServer) -> None:
    requests: queue.Queue[Any] = queue.Queue()
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(stall_server.channel)
    call = stub.ServerReflectionInfo(iter(requests.get, None), timeout=TIMEOUT)
    requests.put(reflection_pb2.ServerReflectionRequest(list_services=""))
    assert next(call).list_services_response.service
    with pytest.raises(grpc.RpcError):
        next(call)
    requests.put(None)
    assert call.code() is grpc.StatusCode.CANCELLED
    assert any(line.endswith(_CUT_OFF) for line in stall_server.wait_for_end_of(call_id_of(call)))


def test_a_call_that_ends_without_a_request_is_told_so(stall_server: RunningServer) -> None:
    call: Any = stall_server.channel.stream_unary(_GET_IMAGE).future(iter(()), timeout=TIMEOUT)
    refused = refusal_of(call.exception())
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


# --- Calls that wait for something else ------------------------------------------------------------------------------


@contextmanager
def _nothing_can_be_written(server: RunningServer) -> Iterator[None]:
    """Hold the lock that every change waits for, as long as the database is waited for, with a thread each."""
    with closing(sqlite3.connect(server.folder / "pixyproxy.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def _begin_to_update(client: ImageClient, guid: str) -> Any:
    request = pb.UpdateImageRequest(guid=guid, tags=["later"])
    request.update_mask.paths.append("tags")
    return client.stub.UpdateImage.future(request, metadata=client.metadata, timeout=TIMEOUT)


def _has_begun(server: RunningServer, calls: list[Any]) -> bool:
    return server.log.count("[UpdateImage:") >= len(calls)


def test_calls_that_wait_keep_no_others_waiting(tmp_path: Path) -> None:
    with running_server(tmp_path, _WAITS_FOR_DATABASE | {"PIXYPROXY_DATABASE_POOL_SIZE": "100"}) as server:
        client = ImageClient(server, server.admin)
        made = client.create()
        with _nothing_can_be_written(server):
            calls = [_begin_to_update(client, made.guid) for _ in range(50)]
            assert client.get(made.guid) == made
            wait_until(lambda: _has_begun(server, calls), TIMEOUT, "a thread for each of them")
            assert not any(call.done() for call in calls)
        assert all(list(call.result().image.tags) == ["later"] for call in calls)


def test_more_calls_than_are_allowed_wait_for_a_second(narrow_server: RunningServer) -> None:
    client = ImageClient(narrow_server, narrow_server.admin)
    made = client.create()
    before = scrape(narrow_server)
    with _nothing_can_be_written(narrow_server):
        calls = [_begin_to_update(client, made.guid) for _ in range(2)]
        wait_until(lambda: _has_begun(narrow_server, calls), TIMEOUT, "both to be under way")
        refused = refusal(client.stub.GetImage, pb.GetImageRequest(guid=made.guid), client.metadata)
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_BUSY")
        assert refused.retry_after
        # A busy server is not a broken one, and other kinds of calls have room.
        health = health_stub(narrow_server.channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert client.content(made.guid)[0].sha256 == made.sha256
        assert not any(call.done() for call in calls)
    assert all(call.result() for call in calls)
    assert client.get(made.guid).guid == made.guid
    after = scrape(narrow_server)
    number = "pixyproxy_calls_without_request_total"
    assert after.total(number, reason="refused") == before.total(number, reason="refused") + 1
    assert after.total("pixyproxy_call_wait_seconds_sum") >= before.total("pixyproxy_call_wait_seconds_sum") + 1


def test_a_burst_of_calls_waits_and_none_is_refused(narrow_server: RunningServer) -> None:
    image = store_image(narrow_server, narrow_server.admin, b"image")
    request = message(pb.GetImageRequest(guid=image.guid).SerializeToString())
    authorization = [(key.encode(), value.encode()) for key, value in narrow_server.admin.metadata]
    block = header_block([*_headers(_GET_IMAGE), *authorization])
    waited = scrape(narrow_server).total("pixyproxy_call_wait_seconds_count")
    with ExitStack() as stack:
        connections = [
            stack.enter_context(Http2Connection(narrow_server.address, TIMEOUT)) for _ in range(_BURST_CONNECTIONS)
        ]
        for connection in connections:
            connection.send(PREFACE + frame(SETTINGS, 0, 0))
            connection.listen(0, TIMEOUT)
        for connection in connections:
            connection.send(
                b"".join(
                    frame(HEADERS, END_HEADERS, call, block) + frame(DATA, END_STREAM, call, request)
                    for call in range(1, 2 * _CALLS_OF_A_BURST, 2)
                )
            )
        for connection in connections:
            connection.listen(_CALLS_OF_A_BURST, TIMEOUT)
            codes = [end.code for end in connection.answers.ended.values()]
            assert codes == [grpc.StatusCode.OK] * _CALLS_OF_A_BURST
    assert scrape(narrow_server).total("pixyproxy_call_wait_seconds_count") > waited
