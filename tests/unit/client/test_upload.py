"""Importing an image with either client: the test says what the server answers."""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.client import InvalidRequestError, UnavailableError, Visibility
from pixyproxy.core.exceptions import InvalidFieldError, RequestIdReusedError, TooBusyError
from tests.support.client_kinds import MakeClient
from tests.support.scripted_server import ScriptedServer, scripted_server
from tests.support.waiting import wait_until
from tests.unit.client.test_client import DETAIL, TIMEOUT, Play, answer, cut, failure, refuse
from tests.unit.resource.fakes import GUID

DATA = os.urandom(1_000_000)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def play(server: ScriptedServer, make_client: MakeClient) -> Iterator[Play]:
    with make_client(server.address, timeout=TIMEOUT, long_timeout=TIMEOUT) as client:
        yield Play(server, client)


def path_of(folder: Path) -> Path:
    path = folder / "fox.png"
    path.write_bytes(DATA)
    return path


class Pipe(io.RawIOBase):
    """Bytes that can be read once."""

    def __init__(self) -> None:
        self._file = io.BytesIO(DATA)

    def readable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        return self._file.read(count)


def file_at_byte_3(folder: Path) -> Any:
    file = io.BytesIO(b"abc" + DATA)
    file.seek(3)
    return file


SOURCES: dict[str, Callable[[Path], Any]] = {
    "path": path_of,
    "name": lambda folder: str(path_of(folder)),
    "bytes": lambda _: DATA,
    "file": file_at_byte_3,
}


def received(requests: Iterator[pb.ImportImageRequest]) -> tuple[pb.ImportImageInfo, bytes]:
    first, *others = requests
    assert all(request.data for request in others)
    return first.info, b"".join(request.data for request in others)


@pytest.mark.parametrize("kind", [*SOURCES, "pipe"])
def test_everything_is_sent(play: Play, tmp_path: Path, kind: str) -> None:
    source: Any = Pipe() if kind == "pipe" else SOURCES[kind](tmp_path)
    progress: list[tuple[int, int]] = []
    call = play.begin(
        lambda: play.client.import_image(
            source,
            "a fox",
            tags=["a"],
            visibility=Visibility.PUBLIC,
            filename="x.png",
            sha256=hashlib.sha256(DATA).hexdigest(),
            on_progress=lambda done, whole: progress.append((done, whole)),
        )
    )
    requests, rpc = play.take("ImportImage")
    info, data = received(requests)
    answer(rpc, pb.ImportImageResponse(image=DETAIL))

    assert call.result(TIMEOUT).guid == GUID
    assert data == DATA
    assert (info.prompt, list(info.tags), info.visibility, info.filename) == ("a fox", ["a"], 2, "x.png")
    assert info.sha256 == hashlib.sha256(DATA).hexdigest()
    assert uuid.UUID(info.request_id)
    assert progress[-1] == (len(DATA), 0 if kind == "pipe" else len(DATA))
    assert len(progress) > 2


@pytest.mark.parametrize("kind", SOURCES)
def test_it_is_sent_again_under_the_same_request_id(play: Play, tmp_path: Path, kind: str) -> None:
    source = SOURCES[kind](tmp_path)
    call = play.begin(lambda: play.client.import_image(source))
    requests, rpc = play.take("ImportImage")
    first = next(requests).info
    next(requests)
    cut(rpc, was_taken=True)
    requests, rpc = play.take("ImportImage")
    refuse(rpc, TooBusyError("busy", retry_after=0.01))
    requests, rpc = play.take("ImportImage")
    info, data = received(requests)
    answer(rpc, pb.ImportImageResponse(image=DETAIL))

    assert call.result(TIMEOUT).guid == GUID
    assert (info, data) == (first, DATA)


@pytest.mark.parametrize("end", [partial(cut, was_taken=True), partial(refuse, error=TooBusyError("busy"))])
def test_what_cannot_be_read_again_is_sent_once(play: Play, end: Callable[[Any], None]) -> None:
    call = play.begin(lambda: play.client.import_image(cast(BinaryIO, Pipe())))
    requests, rpc = play.take("ImportImage")
    request_id = next(requests).info.request_id
    end(rpc)

    assert failure(call).creation_request_id == request_id
    assert not play.has_more("ImportImage")


def test_a_file_that_cannot_be_read_to_its_end(play: Play) -> None:
    class Broken(Pipe):
        def read(self, count: int = -1) -> bytes:
            if self._file.tell() > len(DATA) // 2:
                raise OSError("broken")
            return super().read(count)

    call = play.begin(lambda: play.client.import_image(cast(BinaryIO, Broken())))
    requests, rpc = play.take("ImportImage")
    *_, last = requests
    # The server must not take the part for the whole.
    assert last == pb.ImportImageRequest()
    refuse(rpc, InvalidFieldError.of("data", "must not be empty"))
    with pytest.raises(OSError, match="broken"):
        call.result(TIMEOUT)


def test_a_file_that_cannot_be_opened(play: Play, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        play.begin(lambda: play.client.import_image(tmp_path / "none.png")).result(TIMEOUT)
    assert not play.has_more("ImportImage")


@pytest.mark.parametrize("error", [InvalidFieldError.of("data", "too large"), RequestIdReusedError()])
def test_a_refusal_comes_before_all_is_sent(play: Play, error: Exception) -> None:
    call = play.begin(lambda: play.client.import_image(DATA * 50))
    for _ in range(3):
        requests, rpc = play.take("ImportImage")
        next(requests)
        refuse(rpc, error)
        # gRPC for asyncio reports a write that fails in place of the refusal, once in fifty times. It is sent again.
        wait_until(lambda: call.done() or play.has_more("ImportImage"), TIMEOUT, "the end of the call")
        if call.done():
            break

    assert isinstance(failure(call), InvalidRequestError)


def test_a_file_of_the_caller_s_stays_open(play: Play, tmp_path: Path) -> None:
    with path_of(tmp_path).open("rb") as file:
        call = play.begin(lambda: play.client.import_image(file))
        requests, rpc = play.take("ImportImage")
        assert received(requests)[1] == DATA
        answer(rpc, pb.ImportImageResponse(image=DETAIL))
        call.result(TIMEOUT)
        assert not file.closed


def test_nobody_answers(make_client: MakeClient) -> None:
    with (
        make_client("127.0.0.1:1", timeout=TIMEOUT, long_timeout=0.2) as client,
        pytest.raises(UnavailableError) as caught,
    ):
        client.import_image(DATA)
    assert uuid.UUID(caught.value.creation_request_id)
