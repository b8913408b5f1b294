"""The request log: one line at the start and one at the end of every call, with the call id on all lines between."""

from __future__ import annotations

import inspect
import re
import sqlite3
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.core.fields import UserClass
from pixyproxy.resource.image_servicer import ImageServicer
from tests.integration.conftest import People, asking
from tests.support.image_client import SMALL, ImageClient, import_requests
from tests.support.image_files import encode
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT, call_id_of, health_stub, raw_stream, raw_unary, refusal
from tests.support.servers import ANYBODY, RunningServer, basic, image_stub, running_server
from tests.support.stored_images import store_image
from tests.support.waiting import wait_until

_TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
_LINE = re.compile(rf"({_TIME}) ([A-Z]+) (\S+) \[(\d+)\] \[(\S+):(\d+)\] (.*)")
_GUID = "123e4567-e89b-42d3-a456-426614174000"


def _check_pair(server: RunningServer, call_id: str, method: str, code: str) -> list[str]:
    """Check the log lines of a request, and return what stands between its first and its last."""
    lines = server.wait_for_end_of(call_id)
    line = inspect.unwrap(getattr(ImageServicer, method)).__code__.co_firstlineno
    begin = rf"{_TIME} INFO {re.escape(call_id)} \[\d+\] \[{method}:{line}\]"
    assert re.fullmatch(rf"{begin} REQUEST START", lines[0])
    assert re.fullmatch(rf"{begin} REQUEST END {code} \d+\.\d ms", lines[-1])
    assert not any("REQUEST" in between for between in lines[1:-1])
    return lines[1:-1]


def _wait_for_first_line(server: RunningServer, call_id: str) -> str:
    """Lines are gathered for a moment before they are written."""
    return wait_until(lambda: server.lines_of(call_id), TIMEOUT, "the first log line")[0]


@pytest.fixture
def ann(server: RunningServer, people: People) -> ImageClient:
    """Somebody who is signed in."""
    return ImageClient(server, people.ann)


# --- Every kind of call, and every kind of end -----------------------------------------------------------------------


def test_the_exact_format(server: RunningServer, ann: ImageClient) -> None:
    _, call = server.images.ListImages.with_call(pb.ListImagesRequest(), metadata=ann.metadata, timeout=TIMEOUT)
    first, last = server.wait_for_end_of(call_id_of(call))
    start = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO (\S+) \[\d+\] \[ListImages:\d+\] REQUEST START$"
    assert re.search(start, first)
    assert re.search(start.replace("START", r"END OK \d+\.\d ms"), last)


def test_a_stream_of_requests(server: RunningServer, ann: ImageClient) -> None:
    requests = import_requests(encode("png"))
    _, call = server.images.ImportImage.with_call(requests, metadata=ann.metadata, timeout=TIMEOUT)
    assert _check_pair(server, call_id_of(call), "ImportImage", "OK") == []
    refused = ann.import_refused(import_requests(b"no image"))
    (why,) = _check_pair(server, refused.call_id, "ImportImage", "INVALID_ARGUMENT")
    assert "InvalidFieldError" in why


def test_a_call_that_succeeds(server: RunningServer, ann: ImageClient) -> None:
    made = ann.create()
    for method, request in (
        ("CreateImage", pb.CreateImageRequest(prompt="in the log", options=SMALL)),
        ("GetImage", pb.GetImageRequest(guid=made.guid)),
        ("ListImages", pb.ListImagesRequest()),
        ("UpdateImage", pb.UpdateImageRequest(guid=made.guid, tags=["a"])),
        ("DeleteImage", pb.DeleteImageRequest(guid=made.guid)),
    ):
        _, call = getattr(server.images, method).with_call(request, metadata=ann.metadata, timeout=TIMEOUT)
        assert _check_pair(server, call_id_of(call), method, "OK") == []


def test_a_stream_ends_when_its_last_message_is_sent(server: RunningServer, people: People, ann: ImageClient) -> None:
    image = store_image(server, people.ann, bytes(8 * 1024 * 1024))
    options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 * 1024))
    with server.new_channel(*options) as channel:
        call = image_stub(channel).GetImageContent(
            pb.GetImageContentRequest(guid=image.guid), metadata=ann.metadata, timeout=TIMEOUT
        )
        next(call)
        call_id = call_id_of(call)
        assert _wait_for_first_line(server, call_id).endswith("REQUEST START")
        assert len(server.lines_of(call_id)) == 1
        assert sum(len(answer.data) for answer in call) == image.size_bytes
    assert _check_pair(server, call_id, "GetImageContent", "OK") == []


@pytest.mark.parametrize(
    ("method", "request_", "metadata", "code"),
    [
        ("GetImage", pb.GetImageRequest(guid="x"), ANYBODY, "INVALID_ARGUMENT"),
        ("GetImage", pb.GetImageRequest(guid=_GUID), ANYBODY, "NOT_FOUND"),
        ("GetImageContent", pb.GetImageContentRequest(guid=_GUID), ANYBODY, "NOT_FOUND"),
        ("ListImages", pb.ListImagesRequest(page_size=-1), ANYBODY, "INVALID_ARGUMENT"),
        ("CreateImage", pb.CreateImageRequest(prompt="x"), ANYBODY, "UNAUTHENTICATED"),
        ("GetImageContent", pb.GetImageContentRequest(guid=_GUID), basic("no", "body"), "UNAUTHENTICATED"),
        ("UpdateImage", pb.UpdateImageRequest(guid=_GUID), (("authorization", "x"),), "UNAUTHENTICATED"),
    ],
    ids=str,
)
def test_a_call_that_is_refused(server: RunningServer, method: str, request_: Any, metadata: Any, code: str) -> None:
    refused = refusal(getattr(server.images, method), request_, metadata)
    assert _check_pair(server, refused.call_id, method, code)


def test_bytes_that_are_no_request(server: RunningServer) -> None:
    refused = refusal(raw_unary(server.channel, "/pixyproxy.v1.ImageService/GetImage"), b"\xff")
    assert _check_pair(server, refused.call_id, "GetImage", "INVALID_ARGUMENT")


def test_a_method_that_there_is_not(server: RunningServer) -> None:
    refused = refusal(raw_unary(server.channel, "/pixyproxy.v1.ImageService/PaintImage"), b"")
    first, *_, last = server.wait_for_end_of(refused.call_id)
    place = rf"{_TIME} INFO {re.escape(refused.call_id)} \[\d+\] \[PaintImage:\d+\] REQUEST"
    assert re.fullmatch(f"{place} START", first)
    assert re.fullmatch(rf"{place} END UNIMPLEMENTED \d+\.\d ms", last)


@pytest.mark.parametrize(
    "path",
    [
        "/x/y:1] REQUEST END OK 0.1 ms",
        "/x/GetImage:1] REQUEST END OK 0.1 ms [y",
        "/pixyproxy.v1.ImageService/",
        "/x/y z",
    ],
)
def test_a_method_whose_name_is_made_to_deceive(server: RunningServer, path: str) -> None:
    # gRPC itself lets no line break through; what it does let through must not look like a line of ours.
    refused = refusal(raw_stream(server.channel, path), b"")
    first, *_, last = server.wait_for_end_of(refused.call_id)
    place = rf"{_TIME} INFO {re.escape(refused.call_id)} \[\d+\] \[unknown:\d+\] REQUEST"
    assert re.fullmatch(f"{place} START", first)
    assert re.fullmatch(rf"{place} END UNIMPLEMENTED \d+\.\d ms", last)


def test_health_and_reflection_are_logged_as_well(server: RunningServer) -> None:
    stub = health_stub(server.channel)
    _, call = stub.Check.with_call(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
    lines = server.wait_for_end_of(call_id_of(call))
    assert [re.search(r"\[Check:\d+\] REQUEST (START|END OK)", line) is not None for line in lines] == [True, True]


def test_a_watch_begins_and_ends_in_the_log(server: RunningServer) -> None:
    stub = health_stub(server.channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
    assert next(call).status == health_pb2.HealthCheckResponse.SERVING
    call_id = call_id_of(call)
    _wait_for_first_line(server, call_id)
    assert len(server.lines_of(call_id)) == 1
    call.cancel()
    last = server.wait_for_end_of(call_id)[-1]
    assert re.search(r"\[Watch:\d+\] REQUEST END CANCELLED", last)


def test_a_stream_that_is_cancelled(server: RunningServer, people: People, ann: ImageClient) -> None:
    image = store_image(server, people.ann, bytes(32 * 1024 * 1024))
    call = server.images.GetImageContent(
        pb.GetImageContentRequest(guid=image.guid), metadata=ann.metadata, timeout=TIMEOUT
    )
    next(call)
    call.cancel()
    _check_pair(server, call_id_of(call), "GetImageContent", "CANCELLED")


def test_a_generation_whose_caller_has_gone(
    short_timeout_server: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    artist = ImageClient(short_timeout_server, short_timeout_server.admin)
    prompt += " [[fault:hang]]"
    # The lines of the tests before, which come a moment late, are written before those of this call.
    short_timeout_server.wait_for_end_of(artist.refused(pb.GetImageRequest(guid="x")).call_id)
    before = _started_creations(short_timeout_server)
    call = artist.stub.CreateImage.future(
        pb.CreateImageRequest(prompt=prompt), metadata=artist.metadata, timeout=TIMEOUT
    )
    wait_until(lambda: stand_in.count(prompt), TIMEOUT, "the submission")
    call.cancel()
    # Lines are gathered for a moment before they are written.
    (call_id,) = wait_until(
        lambda: _started_creations(short_timeout_server) - before, TIMEOUT, "the first log line of the call"
    )
    # The generation goes on, and its lines are still the request's; no traceback is logged for a caller that went.
    between = _check_pair(short_timeout_server, call_id, "CreateImage", "CANCELLED")
    assert any("ProviderTimeoutError" in line for line in between)


def _started_creations(server: RunningServer) -> set[str]:
    """The ids of the calls that began to create an image."""
    return {line.split()[3] for line in server.log_lines if re.search(r"\[CreateImage:\d+\] REQUEST START$", line)}


# --- Ids -------------------------------------------------------------------------------------------------------------


def test_every_line_of_a_generation_carries_the_requests_id(
    artist: ImageClient, provider_server: RunningServer, prompt: str
) -> None:
    refused = artist.refused(pb.CreateImageRequest(prompt=f"{prompt} [[fault:503:retry-after-ms=10]]"))
    between = _check_pair(provider_server, refused.call_id, "CreateImage", "UNAVAILABLE")
    lines = provider_server.lines_of(refused.call_id)
    attempts = [line for line in between if "refused or failed" in line]
    assert len(attempts) == 3
    # The generation worker writes them, not the call.
    assert len(_threads([lines[0], lines[-1]])) == 1
    assert not _threads([lines[0]]) & _threads(attempts)
    # What the provider calls its answers helps its support.
    assert all("req_stand_in_" in line for line in attempts)


def _threads(lines: list[str]) -> set[str]:
    """The thread ids in log lines."""
    return {match[4] for match in map(_LINE.fullmatch, lines) if match}


def test_ids_are_unique_and_pair_up_however_many_calls_there_are_at_once(
    server: RunningServer, ann: ImageClient
) -> None:
    barrier = threading.Barrier(16)

    def call(_: int) -> list[str]:
        barrier.wait(TIMEOUT)
        ids = []
        for _ in range(20):
            call = server.images.GetImage.with_call(
                pb.GetImageRequest(guid=made.guid), metadata=ann.metadata, timeout=TIMEOUT
            )[1]
            ids.append(call_id_of(call))
        return ids

    made = ann.create()
    with ThreadPoolExecutor(16) as executor:
        ids = [call_id for some in executor.map(call, range(16)) for call_id in some]
    assert len(set(ids)) == 320
    server.wait_for_end_of(ids[-1])
    wait_until(lambda: all(_is_paired(server.log_lines, set(ids))), TIMEOUT, "the last lines")
    # Host, time and thread are in the id.
    host, time, thread, _ = ids[0].rsplit("-", 3)
    assert host
    assert re.fullmatch(r"\d{8}T\d{12}", time)
    assert f"[{thread}]" in server.lines_of(ids[0])[0]


def _is_paired(lines: list[str], ids: set[str]) -> list[bool]:
    starts: list[str] = []
    ends: list[str] = []
    for match in filter(None, map(_LINE.fullmatch, lines)):
        if match[3] in ids:
            (starts if match[7] == "REQUEST START" else ends).append(match[3])
    return [sorted(starts) == sorted(ids), sorted(ends) == sorted(ids)]


def test_all_lines_look_alike(server: RunningServer, ann: ImageClient) -> None:
    ann.refused(pb.GetImageRequest(guid="x"))
    assert [line for line in server.log_lines if not _LINE.fullmatch(line)] == []


def test_a_log_level_leaves_out_what_matters_less(tmp_path: Path) -> None:
    with running_server(tmp_path, {"PIXYPROXY_LOG_LEVEL": "WARNING"}) as quiet:
        ImageClient(quiet, quiet.admin).create()
        # At its end the log is whole: lines are written a moment late.
        assert quiet.stop() == 0
        (line,) = quiet.log_lines
        assert "OPENAI_API_KEY" in line


# --- Secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_no_secret_reaches_the_log(stand_in: RunningStandIn, tmp_path: Path, level: str) -> None:
    word = f"secret{uuid.uuid4().hex}"
    settings = asking(stand_in) | {"PIXYPROXY_LOG_LEVEL": level}
    with running_server(tmp_path, settings, tracebacks=level == "DEBUG", makes_first_user=True) as server:
        user = server.new_login(UserClass.USER)
        client = ImageClient(server, user)
        made = client.create(f"{word} a view", tags=[word])
        client.page(prompt=word)
        client.content(made.guid)
        for fault in ("moderation_blocked", "400:param=prompt", "502", "drop", "not_an_image"):
            client.refused(pb.CreateImageRequest(prompt=f"{word} [[fault:{fault}]]"))
        client.refused(pb.CreateImageRequest(prompt=f"{word}\x00"))
        client.refused(pb.UpdateImageRequest(guid=made.guid, filename=f"{word}/"))
        wrong = f"wrong{uuid.uuid4().hex}"
        for metadata in (basic(user.username, wrong), basic(wrong, wrong), (("authorization", f"Basic {wrong}"),)):
            refusal(server.images.ListImages, pb.ListImagesRequest(), metadata)
        secrets = [word, user.password, wrong, stand_in.api_key]
        secrets += [value.removeprefix("Basic ") for _, value in client.metadata + basic(user.username, wrong)]
        found = [secret for secret in secrets if secret in server.log or secret in server.output]
        assert found == []
        assert server.admin.password not in server.log
        assert server.output.count(server.admin.password) == 1


def test_code_of_an_error_that_nobody_foresaw(tmp_path: Path) -> None:
    with running_server(tmp_path, tracebacks=True) as server:
        client = ImageClient(server, server.admin)
        made = client.create()
        # A column that is gone is something that no code of ours has a word for.
        with closing(sqlite3.connect(tmp_path / "pixyproxy.db")) as database:
            database.execute("ALTER TABLE images RENAME COLUMN prompt TO gone")
        refused = client.refused(pb.GetImageRequest(guid=made.guid))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert str(tmp_path) not in refused.message
        assert refused.message == "Something went wrong on our side. Quote the x-request-id when you report it."
        # The full cause stands in the log, under the id that the caller was given.
        assert any(" ERROR " in line for line in server.wait_for_end_of(refused.call_id))
        assert "OperationalError" in server.log
