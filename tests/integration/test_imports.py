"""Images that callers send: what is stored, what is refused, and that what is interrupted leaves nothing."""

from __future__ import annotations

import hashlib
import os
import queue
import re
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import People
from tests.support.generation_client import GenerationClient
from tests.support.image_client import SMALL, ImageClient, import_requests, without_placeholder
from tests.support.image_files import FORMATS, WITH_PROVENANCE, animation, encode, png_chunk, png_of_size, png_with
from tests.support.rpc import TIMEOUT, Refusal, refusal, refusal_of
from tests.support.servers import ANYBODY, RunningServer, image_stub, running_server
from tests.support.waiting import wait_until

_MEBIBYTE = 1024 * 1024
_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_INFO = pb.ImportImageRequest(info=pb.ImportImageInfo(prompt="a fox"))


def padded(size: int) -> bytes:
    """A PNG of exactly this size."""
    return png_with(png_chunk(b"prVt", os.urandom(size - len(png_with()) - 12)))


@pytest.fixture
def ann(server: RunningServer, people: People) -> ImageClient:
    return ImageClient(server, people.ann)


def _rows(server: RunningServer, sql: str) -> list[dict[str, Any]]:
    with server.database() as database, database.reading() as context:
        return context.fetch_all(sql, {})


def _stored(server: RunningServer) -> tuple[set[Path], list[dict[str, Any]]]:
    """All that is stored, for comparisons, when what other tests of the server have made is stored whole."""
    wait_until(server.is_settled, TIMEOUT, "what other tests have left to end")
    details = _rows(server, "SELECT guid FROM images ORDER BY id")
    assert not _rows(server, "SELECT * FROM pending_imports")
    return server.stored_files(), details


# --- What is stored --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_format", FORMATS)
def test_bytes_are_kept_as_they_came(ann: ImageClient, output_format: str) -> None:
    data = WITH_PROVENANCE[output_format]
    image = ann.import_image(data, prompt="A fox in the snow", tags=["a", "b", "a"], filename="fox.bin")
    assert ann.content(image.guid)[1] == data
    assert image.sha256 == hashlib.sha256(data).hexdigest()
    assert (image.content_type, image.width, image.height) == (f"image/{output_format}", 80, 48)
    assert (image.prompt, image.filename, list(image.tags)) == ("A fox in the snow", "fox.bin", ["a", "b"])
    assert (image.author, image.visibility) == (ann.login and ann.login.username, pb.VISIBILITY_PRIVATE)
    assert (image.origin, image.model, list(image.source_guids)) == (pb.ORIGIN_IMPORTED, "", [])
    assert not image.HasField("options")
    assert not image.HasField("usage")
    assert image.created_at == image.updated_at
    assert ann.get(image.guid) == image


@pytest.mark.parametrize("output_format", FORMATS)
def test_bytes_of_a_generation_are_kept_as_they_came(artist: ImageClient, prompt: str, output_format: str) -> None:
    options = pb.GenerationOptions(size="64x64", output_format=output_format)
    image = artist.create(f"{prompt} [[fault:provenance]]", options=options)
    assert artist.content(image.guid)[1] == WITH_PROVENANCE[output_format]


def test_an_import_needs_nothing_but_bytes(ann: ImageClient) -> None:
    for output_format, extension in (("png", "png"), ("webp", "webp"), ("jpeg", "jpg")):
        image = ann.import_image(encode(output_format))
        assert (image.prompt, image.filename, list(image.tags)) == ("", f"image.{extension}", [])
        assert image in ann.page(page_size=1).images
        assert ann.update(image.guid, tags=["later"]).prompt == ""
        ann.delete(image.guid)


def test_a_filename_is_made_of_the_description(ann: ImageClient) -> None:
    assert ann.import_image(encode("jpeg"), prompt="A Fox,\nin the Snow!").filename == "a-fox-in-the-snow.jpg"


def _own(client: ImageClient) -> list[str]:
    """The caller's own images: others' public ones are there, too."""
    assert client.login is not None
    return client.guids(author=client.login.username)


def test_an_import_is_found_by_its_description(any_server: RunningServer) -> None:
    word = f"zzw{uuid.uuid4().hex[:8]}"
    client = ImageClient(any_server, any_server.new_login())
    data = encode("webp")
    image = client.import_image(data, prompt=f"Füchse {word} 雪山日出", visibility=pb.VISIBILITY_PUBLIC, tags=[word])
    without = client.import_image(data)
    for query in (f"FUCHSE {word}", f"{word[:6]}", f"雪山 {word}"):
        assert ImageClient(any_server).guids(prompt=query) == [image.guid]
    assert _own(client) == [without.guid, image.guid]
    assert client.guids(tags=[word]) == [image.guid]
    client.delete(image.guid)
    assert client.guids(prompt=word) == []
    assert client.content(without.guid)[1] == data


def test_pieces_may_have_any_size(ann: ImageClient) -> None:
    data = padded(3 * _MEBIBYTE + 1)
    for piece in (100_000, 1024, 4 * _MEBIBYTE - 100):
        image = ann.import_image(data, piece=piece)
        assert image.size_bytes == len(data)


def test_the_sha256_is_checked(server: RunningServer, ann: ImageClient) -> None:
    data = encode("png")
    right = hashlib.sha256(data).hexdigest()
    assert ann.import_image(data, sha256=right).sha256 == right
    assert ann.import_image(data, sha256=right.upper()).sha256 == right
    before = _stored(server)
    for wrong in ("0" * 64, hashlib.sha256(data[:-1]).hexdigest()):
        refused = ann.import_refused(import_requests(data, sha256=wrong))
        assert refused.violations == {"info.sha256": "must be the SHA-256 of the data"}
    assert _stored(server) == before


# --- What is refused -------------------------------------------------------------------------------------------------


def _data(data: bytes) -> pb.ImportImageRequest:
    return pb.ImportImageRequest(data=data)


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([], "info"),
        ([_data(b"x")], "info"),
        ([pb.ImportImageRequest()], "info"),
        ([_data(encode("png")), _INFO], "info"),
        ([_INFO, _INFO, _data(encode("png"))], "info"),
        ([_INFO, _data(encode("png")), _INFO], "info"),
        ([_INFO], "data"),
        ([_INFO, _data(b"")], "data"),
        ([_INFO, _data(encode("png")), _data(b"")], "data"),
        ([_INFO, pb.ImportImageRequest(), _data(encode("png"))], "data"),
    ],
    ids=str,
)
def test_messages_in_another_order(
    server: RunningServer, ann: ImageClient, requests: Iterable[pb.ImportImageRequest], field: str
) -> None:
    before = _stored(server)
    refused = ann.import_refused(requests)
    assert (refused.code, refused.reason, list(refused.violations)) == (_INVALID, "INVALID_FIELD", [field])
    assert _stored(server) == before


@pytest.mark.parametrize(
    ("info", "field"),
    [
        ({"prompt": "   "}, "info.prompt"),
        ({"prompt": "a\0b"}, "info.prompt"),
        ({"prompt": "a" * 32_001}, "info.prompt"),
        ({"tags": ["a", " "]}, "info.tags[1]"),
        ({"tags": [str(number) for number in range(33)]}, "info.tags"),
        ({"visibility": 3}, "info.visibility"),
        ({"filename": "../x.png"}, "info.filename"),
        ({"request_id": "not a uuid"}, "info.request_id"),
        ({"sha256": "0" * 63}, "info.sha256"),
        ({"sha256": "x" * 64}, "info.sha256"),
    ],
    ids=str,
)
def test_wrong_info(server: RunningServer, ann: ImageClient, info: dict[str, Any], field: str) -> None:
    before = _stored(server)
    refused = ann.import_refused(import_requests(encode("png"), **info))
    assert (refused.code, refused.reason, list(refused.violations)) == (_INVALID, "INVALID_FIELD", [field])
    assert _stored(server) == before


@pytest.mark.parametrize(
    "data",
    [
        encode("gif"),
        encode("avif"),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<html></html>",
        encode("png")[:-1],
        encode("jpeg")[:-2],
        encode("webp")[:-9],
        png_of_size(50_000, 50_000),
        encode("png", (1, 65_536)),
        encode("png") + b"PK\x05\x06" + bytes(18),
        encode("jpeg") + b"%PDF-1.7",
        b"GIF89a" + encode("png"),
        animation("webp", 65, (500, 500)),
    ],
    ids=len,
)
def test_what_is_no_image(server: RunningServer, ann: ImageClient, data: bytes) -> None:
    before = _stored(server)
    refused = ann.import_refused(import_requests(data))
    assert (refused.code, refused.reason, list(refused.violations)) == (_INVALID, "INVALID_FIELD", ["data"])
    assert _stored(server) == before


def test_credentials_are_needed(server: RunningServer) -> None:
    refused = refusal(server.images.ImportImage, import_requests(encode("png")), ANYBODY)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")


def test_the_limit_is_64_mebibytes(server: RunningServer, ann: ImageClient) -> None:
    data = padded(64 * _MEBIBYTE)
    image = ann.import_image(data, piece=_MEBIBYTE)
    assert image.size_bytes == 64 * _MEBIBYTE
    assert server.image_file(image.guid).read_bytes() == data
    ann.delete(image.guid)
    before = _stored(server)

    # It is refused as soon as it is too much: nothing comes after the first byte over the limit, not even the end.
    sender = _Sender(server)
    sender.send(_INFO, *[_data(bytes(_MEBIBYTE))] * 64, _data(b"1"))
    refused = refusal_of(sender.call.exception(TIMEOUT))
    sender.end()
    assert (refused.code, list(refused.violations)) == (_INVALID, ["data"])
    assert refused.violations["data"] == "must have at most 67,108,864 bytes"
    assert _stored(server) == before


def test_the_operator_may_set_a_lower_limit(tmp_path: Path) -> None:
    with running_server(tmp_path, {"PIXYPROXY_MAX_IMPORT_BYTES": "20000"}) as server:
        client = ImageClient(server, server.admin)
        assert client.import_image(padded(20_000)).size_bytes == 20_000
        refused = client.import_refused(import_requests(padded(20_001)))
        assert refused.violations == {"data": "must have at most 20,000 bytes"}


# --- Request ids -----------------------------------------------------------------------------------------------------


def test_the_same_request_again_gives_the_same_image(any_server: RunningServer) -> None:
    client = ImageClient(any_server, any_server.new_login())
    data, key = encode("png"), str(uuid.uuid4())
    image = client.import_image(data, prompt="a fox", request_id=key)
    assert client.import_image(data, prompt="a fox", request_id=key.upper(), piece=10) == image
    assert client.import_image(data, prompt="a fox", request_id=key, sha256=image.sha256) == image
    assert _own(client) == [image.guid]
    other = ImageClient(any_server, any_server.new_login()).import_image(data, prompt="a fox", request_id=key)
    assert other.guid != image.guid
    for changed, description in ((encode("png", (64, 64)), "a fox"), (data, "foxes"), (data, "")):
        refused = client.import_refused(import_requests(changed, request_id=key, prompt=description))
        assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    client.delete(image.guid)
    refused = client.import_refused(import_requests(data, prompt="a fox", request_id=key))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")


def _refused(client: GenerationClient, request: Any) -> Refusal:
    method = type(request).__name__.removesuffix("Request")
    return refusal(getattr(client.stub, method), request, client.metadata)


def test_a_request_id_is_for_an_import_or_for_a_generation(server: RunningServer, ann: ImageClient) -> None:
    data, imported, generated = encode("png"), str(uuid.uuid4()), str(uuid.uuid4())
    ann.import_image(data, prompt="a fox", request_id=imported)
    ann.create("a fox", request_id=generated)
    create = pb.CreateImageRequest(prompt="a fox", request_id=imported, options=SMALL)
    generations = GenerationClient(server, ann.login)
    for refused in (
        ann.import_refused(import_requests(data, prompt="a fox", request_id=generated)),
        ann.refused(create),
        _refused(generations, gpb.CreateGenerationRequest(request=create)),
    ):
        assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


def test_an_import_is_no_generation(server: RunningServer, people: People) -> None:
    client = ImageClient(server, server.new_login())
    key = str(uuid.uuid4())
    image = client.import_image(encode("png"), request_id=key)
    (row,) = _rows(server, f"SELECT guid FROM generations WHERE image_guid = '{image.guid}'")
    generations, admin = GenerationClient(server, client.login), GenerationClient(server, people.root)
    for caller, request in (
        (generations, gpb.GetGenerationRequest(request_id=key)),
        (generations, gpb.GetGenerationRequest(guid=row["guid"])),
        (generations, gpb.WatchGenerationRequest(request_id=key)),
        (generations, gpb.CancelGenerationRequest(guid=row["guid"])),
        (admin, gpb.GetGenerationRequest(guid=row["guid"])),
    ):
        refused = _refused(caller, request)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "GENERATION_NOT_FOUND")
    assert not generations.page().generations
    assert row["guid"] not in [generation.guid for generation in admin.page(page_size=200).generations]


def test_imports_that_race_under_one_key_give_one_image(any_server: RunningServer) -> None:
    login = any_server.new_login()
    client = ImageClient(any_server, login)
    data, key = encode("png"), str(uuid.uuid4())
    barrier = threading.Barrier(4)
    # Other tests of the server store bytes themselves.
    before = _orphans(any_server)

    def send() -> pb.ImageDetail:
        def requests() -> Iterator[pb.ImportImageRequest]:
            first, *others = import_requests(data, request_id=key)
            yield first
            barrier.wait(TIMEOUT)
            yield from others

        image: pb.ImageDetail = client.stub.ImportImage(requests(), metadata=client.metadata, timeout=TIMEOUT).image
        return image

    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda _: send(), range(4)))
    images = [without_placeholder(image) for image in images]
    assert images == [images[0]] * 4
    assert _own(client) == [images[0].guid]
    wait_until(lambda: not _rows(any_server, "SELECT * FROM deletions"), TIMEOUT, "the losers to be deleted")
    assert not _rows(any_server, "SELECT * FROM pending_imports")
    wait_until(lambda: _orphans(any_server) <= before, TIMEOUT, "no bytes without a detail")


def _orphans(server: RunningServer) -> set[str]:
    stored = {path.name for path in server.image_files()}
    return stored - {row["guid"] for row in _rows(server, "SELECT guid FROM images")}


# --- Senders that stall or leave -------------------------------------------------------------------------------------

# Long enough for a test to look at both imports while they stall, on a machine that stands still for a while, too.
_SHORT = {"PIXYPROXY_STALL_TIMEOUT": "5", "PIXYPROXY_MAX_IMPORTS": "2"}


@pytest.fixture(scope="module")
def stall_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that waits some seconds for its callers, and has room for two imports."""
    folder = tmp_path_factory.mktemp("stall_server")
    (folder / "tmp").mkdir()
    with running_server(folder, _SHORT | {"TMPDIR": str(folder / "tmp")}) as server:
        yield server


class _Sender:
    """An import whose messages are sent one by one."""

    def __init__(self, server: RunningServer, stub: Any = None) -> None:
        self._requests: queue.Queue[pb.ImportImageRequest | None] = queue.Queue()
        self.call: Any = (stub or server.images).ImportImage.future(
            iter(self._requests.get, None), metadata=server.admin.metadata, timeout=TIMEOUT
        )

    def send(self, *requests: pb.ImportImageRequest) -> None:
        for request in requests:
            self._requests.put(request)

    def end(self) -> None:
        self._requests.put(None)


def _temporary_files(server: RunningServer) -> int:
    """The temporary files that a server has open."""
    folder = server.env["TMPDIR"]
    links = Path(f"/proc/{server.process.pid}/fd").iterdir()
    return sum(_target_of(link).startswith(folder) for link in links)


def _target_of(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""


@pytest.mark.parametrize("sent", [[_INFO], [_INFO, _data(encode("png")[:100])]], ids=["after info", "in the middle"])
def test_a_sender_that_stalls_is_cut_off(stall_server: RunningServer, sent: list[pb.ImportImageRequest]) -> None:
    def started() -> list[str]:
        return [line.split()[3] for line in stall_server.log_lines[lines_before:] if line.endswith("REQUEST START")]

    client = ImageClient(stall_server, stall_server.admin)
    # The lines of the tests before, which come a moment late, are written before those of this call.
    stall_server.wait_for_end_of(client.refused(pb.GetImageRequest(guid="x")).call_id)
    before, lines_before = _stored(stall_server), len(stall_server.log_lines)
    stalled = [_Sender(stall_server) for _ in range(2)]
    for sender in stalled:
        sender.send(*sent)
    wait_until(lambda: _temporary_files(stall_server) == 2, TIMEOUT, "both to be under way")
    wait_until(lambda: len(started()) == 2, TIMEOUT, "both to be in the log")
    call_ids = started()
    refused = client.import_refused(import_requests(encode("png")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_BUSY")
    assert "imports" in refused.message
    for sender in stalled:
        assert sender.call.exception(TIMEOUT).code() is grpc.StatusCode.CANCELLED
        sender.end()
    for call_id in call_ids:
        _, explained, *_, ended = stall_server.wait_for_end_of(call_id)
        assert explained.endswith("The next request did not come in time, and the client was cut off.")
        assert "REQUEST END CANCELLED" in ended
    assert _temporary_files(stall_server) == 0
    assert _stored(stall_server) == before
    # Their slots are free.
    assert client.import_image(encode("png")).guid


def test_a_user_whose_imports_stall_leaves_a_slot_to_others(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    settings = {"PIXYPROXY_MAX_IMPORTS": "3", "TMPDIR": str(tmp_path / "tmp")}
    with running_server(tmp_path, settings) as server:
        stalled = [_Sender(server) for _ in range(3)]
        for sender in stalled:
            sender.send(_INFO)
        wait_until(lambda: _temporary_files(server) == 3, TIMEOUT, "all to be under way")

        refused = ImageClient(server, server.admin).import_refused(import_requests(encode("png")))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_BUSY")
        assert "(limit 3)" in refused.message
        assert ImageClient(server, server.new_login()).import_image(encode("png")).guid

        for sender in stalled:
            sender.call.cancel()
            sender.end()


def test_a_sender_that_sends_nothing_is_cut_off(stall_server: RunningServer) -> None:
    senders = [_Sender(stall_server) for _ in range(5)]
    for sender in senders:
        assert sender.call.exception(TIMEOUT).code() is grpc.StatusCode.CANCELLED
        sender.end()
    assert _temporary_files(stall_server) == 0
    assert ImageClient(stall_server, stall_server.admin).import_image(encode("png")).guid


def test_a_sender_that_sends_now_and_then_is_not_cut_off(stall_server: RunningServer) -> None:
    data = encode("png")
    stalled, moving = _Sender(stall_server), _Sender(stall_server)
    stalled.send(_INFO)
    moving.send(_INFO)
    position = 0

    def is_other_cut_off() -> bool:
        nonlocal position
        moving.send(_data(data[position : position + 1]))
        position += 1
        return bool(stalled.call.done())

    wait_until(is_other_cut_off, TIMEOUT, "the stalled sender to be cut off")
    stalled.end()
    moving.send(_data(data[position:]))
    moving.end()
    assert moving.call.result(TIMEOUT).image.size_bytes == len(data)


@pytest.mark.parametrize("leave", ["cancel", "disconnect"])
def test_a_sender_that_leaves_leaves_nothing(stall_server: RunningServer, leave: str) -> None:
    before = _stored(stall_server)
    channel = stall_server.new_channel()
    sender = _Sender(stall_server, image_stub(channel))
    # Whole, but its end was not announced.
    sender.send(_INFO, _data(encode("png")))
    wait_until(lambda: _temporary_files(stall_server) == 1, TIMEOUT, "the import to be under way")
    if leave == "cancel":
        sender.call.cancel()
    channel.close()
    sender.end()
    wait_until(lambda: _temporary_files(stall_server) == 0, TIMEOUT, "the end of the import")
    assert _stored(stall_server) == before


def test_memory_is_bounded(tmp_path: Path) -> None:
    # With two RPC workers, what is made of the image afterwards is made in another process.
    with running_server(tmp_path, {"PIXYPROXY_WORKERS": "2"}) as server:
        client = ImageClient(server, server.admin)
        client.import_image(encode("png"))
        before = _anonymous_memory(server)
        peak = 0
        is_over = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not is_over.wait(0.01):
                peak = max(peak, _anonymous_memory(server))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            data = padded(64 * _MEBIBYTE)
            for _ in range(3):
                client.import_image(data, piece=_MEBIBYTE)
        finally:
            is_over.set()
            watcher.join()
        # Pillow holds the large chunk, once.
        assert peak - before < 2 * len(data)


def _anonymous_memory(server: RunningServer) -> int:
    """The memory of all RPC workers."""
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in server.rpc_workers]
    return (
        sum(int(size) for status in statuses for size in re.findall(r"^RssAnon:\s+(\d+)", status, re.MULTILINE)) * 1024
    )
