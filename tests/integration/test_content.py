"""The bytes of images on their way to readers."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.core.models import ImageDetail
from tests.integration.conftest import People
from tests.integration.windows import SMALL_WINDOW
from tests.support.image_client import ImageClient
from tests.support.rpc import TIMEOUT, refusal_of
from tests.support.servers import RunningServer, image_stub, running_server
from tests.support.stored_images import store_image
from tests.support.unusual_files import UNUSUAL, put_in_place
from tests.support.waiting import wait_until

_CHUNK = 64 * 1024
_MIB = 1024 * 1024
_DATA = os.urandom(3 * _CHUNK + 1000)
_SIZE = len(_DATA)


@pytest.fixture(scope="module")
def reader(server: RunningServer, people: People) -> ImageClient:
    """The author of the images of these tests."""
    return ImageClient(server, people.ann)


@pytest.fixture(scope="module")
def image(server: RunningServer, people: People) -> ImageDetail:
    """An image of some chunks and a bit."""
    return store_image(server, people.ann, _DATA)


# --- Chunks ----------------------------------------------------------------------------------------------------------


def test_first_comes_what_it_is_and_then_chunk_by_chunk_what_is_in_it(reader: ImageClient, image: ImageDetail) -> None:
    first, *others = reader.chunks(image.guid)
    assert first.data == b""
    assert first.info == pb.ContentInfo(
        guid=image.guid,
        filename="direct.png",
        content_type="image/png",
        size_bytes=_SIZE,
        sha256=image.sha256,
        width=image.width,
        height=image.height,
    )
    assert not any(answer.HasField("info") for answer in others)
    assert [len(answer.data) for answer in others] == [_CHUNK, _CHUNK, _CHUNK, 1000]
    assert b"".join(answer.data for answer in others) == _DATA


@pytest.mark.parametrize("size", [1, _CHUNK - 1, _CHUNK, _CHUNK + 1, 2 * _CHUNK])
def test_sizes_around_whole_chunks(server: RunningServer, people: People, reader: ImageClient, size: int) -> None:
    image = store_image(server, people.ann, _DATA[:size])
    first, *others = reader.chunks(image.guid)
    assert first.info.size_bytes == size
    assert b"".join(answer.data for answer in others) == _DATA[:size]
    assert all(0 < len(answer.data) <= _CHUNK for answer in others)


# --- Parts -----------------------------------------------------------------------------------------------------------

_PLACES = [0, 1, _CHUNK, _CHUNK + 1, _SIZE - 1, _SIZE]


@pytest.mark.parametrize("offset", _PLACES)
@pytest.mark.parametrize("limit", [*_PLACES, _SIZE + 1, 2**63 - 1])
def test_a_part(reader: ImageClient, image: ImageDetail, offset: int, limit: int) -> None:
    info, data = reader.content(image.guid, read_offset=offset, read_limit=limit)
    assert (info.size_bytes, info.sha256) == (_SIZE, image.sha256)
    assert data == (_DATA[offset : offset + limit] if limit else _DATA[offset:])


@pytest.mark.parametrize("offset", [_SIZE + 1, 2**63 - 1])
@pytest.mark.parametrize("limit", [0, 1])
def test_a_part_that_begins_past_the_end(reader: ImageClient, image: ImageDetail, offset: int, limit: int) -> None:
    refused = reader.refused(pb.GetImageContentRequest(guid=image.guid, read_offset=offset, read_limit=limit))
    assert (refused.code, refused.reason) == (grpc.StatusCode.OUT_OF_RANGE, "OFFSET_OUT_OF_RANGE")


@pytest.mark.parametrize("number", [-1, -(2**63)])
@pytest.mark.parametrize("field", ["read_offset", "read_limit"])
def test_a_negative_part(reader: ImageClient, image: ImageDetail, field: str, number: int) -> None:
    part: dict[str, Any] = {field: number}
    refused = reader.refused(pb.GetImageContentRequest(guid=image.guid, **part))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(refused.violations) == [field]


def test_everything_that_is_wrong_is_said_at_once(reader: ImageClient) -> None:
    refused = reader.refused(pb.GetImageContentRequest(guid="x", read_offset=-1, read_limit=-1))
    assert list(refused.violations) == ["guid", "read_offset", "read_limit"]


# --- What the caller holds already -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spell", [str.lower, str.upper])
def test_what_the_caller_holds_already_is_not_sent(
    reader: ImageClient, image: ImageDetail, spell: Callable[[str], str]
) -> None:
    (only,) = reader.chunks(image.guid, if_none_match=spell(image.sha256))
    assert (only.info.not_modified, only.data) == (True, b"")
    assert (only.info.guid, only.info.sha256, only.info.size_bytes) == (image.guid, image.sha256, _SIZE)


@pytest.mark.parametrize("other", ["0" * 64, "no sum at all", "*", '"etag"'])
def test_what_the_caller_holds_is_something_else(reader: ImageClient, image: ImageDetail, other: str) -> None:
    info, data = reader.content(image.guid, if_none_match=other)
    assert (info.not_modified, data) == (False, _DATA)


# --- Damage ----------------------------------------------------------------------------------------------------------


def _flip(place: int) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    return flip


_DAMAGES: dict[str, Callable[[Path], object]] = {
    "first byte flipped": _flip(0),
    "byte in the middle flipped": _flip(_SIZE // 2),
    "last byte flipped": _flip(-1),
    "last byte cut": lambda path: os.truncate(path, _SIZE - 1),
    "cut between chunks": lambda path: os.truncate(path, _CHUNK),
    "emptied": lambda path: os.truncate(path, 0),
    "lengthened": lambda path: path.write_bytes(_DATA + b"x"),
    "missing": Path.unlink,
    "folder missing": lambda path: shutil.rmtree(path.parent),
    **{kind: partial(put_in_place, kind) for kind in UNUSUAL},
}


@pytest.mark.parametrize("damage", _DAMAGES)
@pytest.mark.parametrize("limit", [0, _SIZE])
def test_a_damaged_picture_is_never_given_whole(
    server: RunningServer, people: People, reader: ImageClient, damage: str, limit: int
) -> None:
    image = store_image(server, people.ann, _DATA)
    _DAMAGES[damage](server.image_file(image.guid))
    call = reader.stub.GetImageContent(
        pb.GetImageContentRequest(guid=image.guid, read_limit=limit), metadata=reader.metadata, timeout=TIMEOUT
    )
    received: list[bytes] = []
    with pytest.raises(grpc.RpcError) as caught:
        received.extend(answer.data for answer in call)
    refused = refusal_of(caught.value)
    assert (refused.code, refused.reason) == (grpc.StatusCode.DATA_LOSS, "CONTENT_DAMAGED")
    assert sum(map(len, received)) < _SIZE
    assert str(server.folder) not in refused.message
    # Its detail is there all the same.
    assert reader.get(image.guid).sha256 == image.sha256


@pytest.mark.parametrize("damage", ["cut between chunks", "lengthened", "missing", *UNUSUAL])
def test_a_part_of_what_has_another_size_is_not_given_either(
    server: RunningServer, people: People, reader: ImageClient, damage: str
) -> None:
    image = store_image(server, people.ann, _DATA)
    _DAMAGES[damage](server.image_file(image.guid))
    refused = reader.refused(pb.GetImageContentRequest(guid=image.guid, read_offset=1, read_limit=1))
    assert (refused.code, refused.reason) == (grpc.StatusCode.DATA_LOSS, "CONTENT_DAMAGED")


def test_a_damaged_image_can_be_deleted(server: RunningServer, people: People, reader: ImageClient) -> None:
    image = store_image(server, people.ann, _DATA)
    server.image_file(image.guid).unlink()
    reader.delete(image.guid)
    assert reader.guids(guid=image.guid) == []


# --- Large images and readers that go --------------------------------------------------------------------------------


def test_a_large_image_takes_little_memory(tmp_path: Path) -> None:
    size = 64 * _MIB
    # A server of its own: a shared one may hold other tests' images meanwhile, whose placeholders it makes.
    with running_server(tmp_path) as server:
        reader = ImageClient(server, server.admin)
        image = store_image(server, server.admin, os.urandom(_MIB) * 64)
        reader.content(image.guid, read_limit=_MIB)  # Whatever the first call takes, it takes now.
        before = most = server.rss
        digest = hashlib.sha256()
        with server.new_channel(*SMALL_WINDOW) as channel:
            answers = image_stub(channel).GetImageContent(
                pb.GetImageContentRequest(guid=image.guid), metadata=reader.metadata, timeout=TIMEOUT
            )
            for number, answer in enumerate(answers):
                digest.update(answer.data)
                if number % 50 == 0:
                    most = max(most, server.rss)
        assert digest.hexdigest() == image.sha256
        assert most - before < size / 8
        server.image_file(image.guid).unlink()


@pytest.mark.parametrize("end", ["cancel", "close", "deadline"])
def test_a_reader_that_goes_leaves_no_file_open(
    server: RunningServer, people: People, reader: ImageClient, end: str
) -> None:
    image = store_image(server, people.ann, os.urandom(8 * _MIB))
    path = server.image_file(image.guid)
    with server.new_channel(*SMALL_WINDOW) as channel:
        answers = image_stub(channel).GetImageContent(
            pb.GetImageContentRequest(guid=image.guid),
            metadata=reader.metadata,
            # After which the file is open for certain.
            timeout=5 if end == "deadline" else TIMEOUT,
        )
        assert next(answers).info.guid == image.guid
        assert len(next(answers).data) == _CHUNK
        assert path in server.open_images
        if end == "cancel":
            answers.cancel()
        elif end == "close":
            channel.close()
        wait_until(lambda: path not in server.open_images, TIMEOUT, "the file to be closed")
        answers.cancel()
    assert reader.content(image.guid)[0].sha256 == image.sha256


def test_what_is_deleted_while_it_is_read_is_read_to_its_end(
    server: RunningServer, people: People, reader: ImageClient
) -> None:
    data = os.urandom(8 * _MIB)
    image = store_image(server, people.ann, data)
    with server.new_channel(*SMALL_WINDOW) as channel:
        answers = image_stub(channel).GetImageContent(
            pb.GetImageContentRequest(guid=image.guid), metadata=reader.metadata, timeout=TIMEOUT
        )
        next(answers)
        begun = next(answers).data
        reader.delete(image.guid)
        assert begun + b"".join(answer.data for answer in answers) == data
