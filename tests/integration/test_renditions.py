"""Renditions from a real server: what callers get, and what becomes of them when processes die."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from PIL import Image
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.core.fields import Visibility, new_guid
from pixyproxy.data.repositories.renditions import RenditionRepository, RenditionState
from tests.integration.conftest import People
from tests.support.client_kinds import MakeClient
from tests.support.image_client import ImageClient
from tests.support.rpc import TIMEOUT
from tests.support.servers import RunningServer, environment, run_command, running_server
from tests.support.stored_images import store_image
from tests.support.waiting import wait_until

_RENDITIONS = {
    pb.RENDITION_256: 256,
    pb.RENDITION_512: 512,
    pb.RENDITION_1024: 1024,
    pb.RENDITION_2048: 2048,
}


# Placeholders are computed when nothing else is to be done, and these servers are shared with other tests.
_BACKGROUND_TIMEOUT = 5 * TIMEOUT
_GUID = "123e4567-e89b-42d3-a456-426614174000"


def picture(size: tuple[int, int] = (1200, 800), seed: int = 0) -> bytes:
    """A PNG with some content, another one for each seed."""
    small = Image.frombytes("RGB", (30, 20), random.Random(seed).randbytes(30 * 20 * 3))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(file, "PNG", compress_level=1)
    return file.getvalue()


def rendition_files(server: RunningServer) -> set[str]:
    return {path.name for path in server.stored_files() if path.suffix == ".webp"}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with two RPC workers and two generation workers."""
    settings = {"PIXYPROXY_WORKERS": "2", "PIXYPROXY_GENERATION_WORKERS": "2"}
    with running_server(tmp_path_factory.mktemp("several"), settings) as server:
        yield server


@pytest.fixture(scope="module")
def reader(several: RunningServer) -> ImageClient:
    return ImageClient(several, several.admin)


def test_each_rendition_and_the_original(several: RunningServer, reader: ImageClient) -> None:
    original = picture()
    image = store_image(several, several.admin, original, width=1200, height=800)
    for rendition, edge in _RENDITIONS.items():
        info, data = reader.content(image.guid, rendition=rendition)
        shown = Image.open(io.BytesIO(data))
        longest = min(edge, 1200)
        assert shown.format == "WEBP"
        assert shown.size == (info.width, info.height) == (longest, round(longest * 2 / 3))
        assert info == pb.ContentInfo(
            guid=image.guid,
            filename=image.filename,
            content_type="image/webp",
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            rendition=rendition,
            width=info.width,
            height=info.height,
        )
        assert reader.content(image.guid, rendition=rendition) == (info, data)
        part = reader.content(image.guid, rendition=rendition, read_offset=7, read_limit=9)
        assert part == (info, data[7:16])
        held, nothing = reader.content(image.guid, rendition=rendition, if_none_match=info.sha256)
        assert (held.not_modified, held.rendition, nothing) == (True, rendition, b"")
    info, data = reader.content(image.guid)
    assert data == original
    assert (info.rendition, info.width, info.height) == (pb.RENDITION_UNSPECIFIED, 1200, 800)


@pytest.mark.parametrize("number", [5, -1, 256, 2**31 - 1])
def test_an_unknown_rendition(reader: ImageClient, number: int) -> None:
    refused = reader.refused(pb.GetImageContentRequest(guid="x", rendition=cast(pb.Rendition, number)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(refused.violations) == ["guid", "rendition"]


def test_who_may_not_see_an_image_gets_no_rendition_of_it(several: RunningServer) -> None:
    image = store_image(several, several.admin, picture())
    for anybody in (ImageClient(several), ImageClient(several, several.new_login())):
        refused = anybody.refused(pb.GetImageContentRequest(guid=image.guid, rendition=pb.RENDITION_256))
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")
    with several.database() as database, database.reading() as context:
        assert RenditionRepository(context).get_of_image(image.guid) == []


def test_an_offset_beyond_the_rendition(several: RunningServer, reader: ImageClient) -> None:
    image = store_image(several, several.admin, picture())
    size = reader.content(image.guid, rendition=pb.RENDITION_256)[0].size_bytes
    refused = reader.refused(
        pb.GetImageContentRequest(guid=image.guid, rendition=pb.RENDITION_256, read_offset=size + 1)
    )
    assert refused.reason == "OFFSET_OUT_OF_RANGE"


def test_a_damaged_original_is_an_error_and_never_sent(several: RunningServer, reader: ImageClient) -> None:
    image = store_image(several, several.admin, picture())
    several.image_file(image.guid).write_bytes(b"x" * image.size_bytes)
    refused = reader.refused(pb.GetImageContentRequest(guid=image.guid, rendition=pb.RENDITION_512))
    assert (refused.code, refused.reason) == (grpc.StatusCode.DATA_LOSS, "CONTENT_DAMAGED")


def test_a_hundred_callers_at_once(several: RunningServer, reader: ImageClient) -> None:
    image = store_image(several, several.admin, picture((3000, 2000)))
    channels = [several.new_channel() for _ in range(10)]

    def read(number: int) -> bytes:
        call = channels[number % 10].unary_stream(
            "/pixyproxy.v1.ImageService/GetImageContent",
            request_serializer=pb.GetImageContentRequest.SerializeToString,
            response_deserializer=pb.GetImageContentResponse.FromString,
        )
        request = pb.GetImageContentRequest(guid=image.guid, rendition=pb.RENDITION_512)
        return b"".join(message.data for message in call(request, metadata=reader.metadata, timeout=TIMEOUT))

    with ThreadPoolExecutor(100) as pool:
        read_by_all = set(pool.map(read, range(100)))
    for channel in channels:
        channel.close()
    assert len(read_by_all) == 1
    with several.database() as database, database.reading() as context:
        [row] = RenditionRepository(context).get_of_image(image.guid)
    assert row.state is RenditionState.MADE
    assert f"{image.guid}.512.webp" in rendition_files(several)


def test_generation_workers_that_are_killed_while_they_make_renditions(several: RunningServer) -> None:
    reader = ImageClient(several, several.admin)

    def were_killed_at_it() -> bool:
        images = [store_image(several, several.admin, picture((2400, 1600), seed)) for seed in range(6)]
        with ThreadPoolExecutor(6) as pool:
            reads = [pool.submit(reader.content, image.guid, rendition=pb.RENDITION_1024) for image in images]

            def claimed() -> bool:
                with several.database() as database, database.reading() as context:
                    renditions = RenditionRepository(context)
                    return any(row.is_leased for image in images for row in renditions.get_of_image(image.guid))

            # All may be made before this is looked at.
            wait_until(lambda: claimed() or all(read.done() for read in reads), TIMEOUT, "a worker to make one")
            is_claimed = claimed()
            for worker in several.generation_workers:
                os.kill(worker, signal.SIGKILL)
            for image, read in zip(images, reads, strict=True):
                info, data = read.result()
                assert hashlib.sha256(data).hexdigest() == info.sha256
                assert Image.open(io.BytesIO(data)).size == (1024, 683)
                assert info.guid == image.guid
        return is_claimed

    wait_until(were_killed_at_it, TIMEOUT, "workers to be killed in the middle")


def test_they_are_deleted_with_their_image(several: RunningServer, reader: ImageClient) -> None:
    image = store_image(several, several.admin, picture())
    for rendition in _RENDITIONS:
        reader.content(image.guid, rendition=rendition)
    assert len([name for name in rendition_files(several) if image.guid in name]) == 4
    reader.delete(image.guid)
    assert not [name for name in rendition_files(several) if image.guid in name]


def test_an_image_that_is_deleted_while_callers_wait_for_a_rendition(several: RunningServer) -> None:
    reader = ImageClient(several, several.admin)
    for seed in range(3):
        image = store_image(several, several.admin, picture((2000, 1400), seed))
        with ThreadPoolExecutor(4) as pool:
            reads = [pool.submit(reader.content, image.guid, rendition=pb.RENDITION_512) for _ in range(3)]
            pool.submit(reader.delete, image.guid).result()
            for read in reads:
                error = read.exception()
                assert error is None or (isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.NOT_FOUND)

        def is_gone(guid: str = image.guid) -> bool:
            with several.database() as database, database.reading() as context:
                rows = RenditionRepository(context).get_of_image(guid)
            return not rows and not [name for name in rendition_files(several) if guid in name]

        wait_until(is_gone, TIMEOUT, "everything to be deleted")


def test_on_create_256_and_512_are_made_without_being_asked_for(tmp_path: Path) -> None:
    with running_server(tmp_path, {"PIXYPROXY_RENDITIONS": "on-create"}) as server:
        image = ImageClient(server, server.admin).create(options=pb.GenerationOptions(size="1024x1024"))
        wait_until(
            lambda: rendition_files(server) == {f"{image.guid}.256.webp", f"{image.guid}.512.webp"},
            TIMEOUT,
            "both renditions",
        )


# --- Thumbnails ------------------------------------------------------------------------------------------------------


def _thumbnails(caller: ImageClient, *guids: str, **fields: Any) -> pb.BatchGetThumbnailsResponse:
    request = pb.BatchGetThumbnailsRequest(guids=guids, **fields)
    answer: pb.BatchGetThumbnailsResponse = caller.stub.BatchGetThumbnails(
        request, metadata=caller.metadata, timeout=TIMEOUT
    )
    return answer


def test_a_page_of_thumbnails_with_errors_beside_them(several: RunningServer, reader: ImageClient) -> None:
    login = several.new_login()
    public = store_image(several, login, picture(), visibility=Visibility.PUBLIC)
    hidden = store_image(several, login, picture(seed=1))
    damaged = store_image(several, login, picture(seed=2), visibility=Visibility.PUBLIC)
    several.image_file(damaged.guid).write_bytes(b"x" * damaged.size_bytes)
    guids = [hidden.guid, public.guid, new_guid(), damaged.guid, public.guid]

    def answer_to(caller: ImageClient, *guids: str, **fields: Any) -> pb.BatchGetThumbnailsResponse | None:
        """Return the answer, unless some are still being made, which a slow machine takes longer for than it waits."""
        try:
            answer = _thumbnails(caller, *guids, **fields)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            return None
        return None if answer.next_guids else answer

    answer = wait_until(lambda: answer_to(ImageClient(several), *guids), TIMEOUT, "all thumbnails")
    assert [one.guid for one in answer.thumbnails] == guids
    assert [one.error for one in answer.thumbnails] == ["IMAGE_NOT_FOUND", "", "IMAGE_NOT_FOUND", "CONTENT_DAMAGED", ""]
    info, data = reader.content(public.guid, rendition=pb.RENDITION_256)
    shown = pb.Thumbnail(guid=public.guid, data=data, content_type="image/webp", width=info.width, height=info.height)
    assert answer.thumbnails[1] == answer.thumbnails[4] == shown
    assert answer.thumbnails[0] == pb.Thumbnail(guid=hidden.guid, error="IMAGE_NOT_FOUND")

    author = ImageClient(several, login)
    [of_author] = wait_until(
        lambda: answer_to(author, hidden.guid, rendition=pb.RENDITION_512), TIMEOUT, "the larger thumbnail"
    ).thumbnails
    assert (of_author.error, of_author.width) == ("", 512)


def test_a_gallery_page_of_fifty_that_nobody_has_seen_yet(several: RunningServer, reader: ImageClient) -> None:
    guids = [store_image(several, several.admin, picture((300, 200), seed)).guid for seed in range(50)]
    rest, calls = list(guids), 0
    shown: dict[str, bytes] = {}

    def some() -> pb.BatchGetThumbnailsResponse | None:
        """Return those that are made in time, unless a slow machine has not made one."""
        try:
            return _thumbnails(reader, *rest)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            return None

    while rest:
        answer = wait_until(some, TIMEOUT, "thumbnails")
        assert answer.thumbnails
        assert not any(one.error for one in answer.thumbnails)
        shown |= {one.guid: one.data for one in answer.thumbnails}
        rest = list(answer.next_guids)
        calls += 1
    assert set(shown) == set(guids)
    again = _thumbnails(reader, *guids)
    assert [(one.guid, one.data) for one in again.thumbnails] == [(guid, shown[guid]) for guid in guids]
    assert again.ByteSize() < 2_000_000


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.BatchGetThumbnailsRequest(guids=[_GUID] * 201), "guids"),
        (pb.BatchGetThumbnailsRequest(guids=[_GUID, "no guid", _GUID]), "guids[1]"),
        (pb.BatchGetThumbnailsRequest(guids=[_GUID, ""]), "guids[1]"),
        (pb.BatchGetThumbnailsRequest(guids=[_GUID], rendition=pb.RENDITION_1024), "rendition"),
        (pb.BatchGetThumbnailsRequest(guids=[_GUID], rendition=pb.RENDITION_2048), "rendition"),
        (pb.BatchGetThumbnailsRequest(guids=[_GUID], rendition=cast(pb.Rendition, 256)), "rendition"),
        (pb.BatchGetThumbnailsRequest(guids=[_GUID], rendition=cast(pb.Rendition, -1)), "rendition"),
    ],
)
def test_wrong_requests_for_thumbnails(reader: ImageClient, request_: pb.BatchGetThumbnailsRequest, field: str) -> None:
    refused = reader.refused(request_)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(refused.violations) == [field]


def test_two_hundred_and_none(reader: ImageClient) -> None:
    answer = _thumbnails(reader, *[_GUID] * 200)
    assert [(one.guid, one.error) for one in answer.thumbnails] == [(_GUID, "IMAGE_NOT_FOUND")] * 200
    assert _thumbnails(reader) == pb.BatchGetThumbnailsResponse()


# --- Placeholders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_a_new_image_soon_has_a_placeholder(reader: ImageClient, output_format: str) -> None:
    image = reader.create(options=pb.GenerationOptions(size="1024x1024", output_format=output_format))
    placeholder = wait_until(lambda: reader.placeholder(image.guid), _BACKGROUND_TIMEOUT, "the placeholder")
    assert 5 <= len(placeholder) <= 30
    request = pb.ListImagesRequest(guid=image.guid)
    [listed] = reader.stub.ListImages(request, metadata=reader.metadata, timeout=TIMEOUT).images
    assert listed.placeholder == placeholder
    assert reader.get(image.guid) == image


def test_images_that_nobody_has_planned_a_placeholder_for_get_one(several: RunningServer, reader: ImageClient) -> None:
    earlier = datetime.now(UTC) - timedelta(hours=1)
    image = store_image(several, several.admin, picture(), created_at=earlier)
    wait_until(lambda: reader.placeholder(image.guid), _BACKGROUND_TIMEOUT, "the placeholder")


# --- Clients ---------------------------------------------------------------------------------------------------------


def test_the_clients_read_and_save_renditions(
    server: RunningServer, people: People, make_client: MakeClient, tmp_path: Path
) -> None:
    image = store_image(server, people.ann, picture(), width=1200, height=800)
    client = make_client(server.address, username=people.ann.username, password=people.ann.password)
    with client.stream_content(image.guid, rendition=512) as stream:
        data = b"".join(stream)
        assert (stream.info.rendition, stream.info.width, stream.info.height) == (512, 512, 341)
    info = client.fetch_content(image.guid, tmp_path / "small.webp", rendition=512)
    assert (tmp_path / "small.webp").read_bytes() == data
    assert (info.sha256, info.rendition) == (hashlib.sha256(data).hexdigest(), 512)
    assert client.fetch_content(image.guid, tmp_path / "whole.png").rendition is None
    with pytest.raises(ValueError, match="rendition must be one of 256, 512, 1024, 2048"):
        client.stream_content(image.guid, rendition=300)  # type: ignore[arg-type]
    client.close()


def test_the_clients_get_thumbnails(server: RunningServer, people: People, make_client: MakeClient) -> None:
    guids = [store_image(server, people.ann, picture((300, 200), seed)).guid for seed in range(3)]
    client = make_client(server.address, username=people.ann.username, password=people.ann.password)
    found = {one.guid: one for one in client.get_thumbnails([*guids, _GUID])}
    assert set(found) == {*guids, _GUID}
    assert all((found[guid].width, found[guid].error) == (256, "") for guid in guids)
    assert (found[_GUID].error, found[_GUID].data) == ("IMAGE_NOT_FOUND", b"")
    many = list(client.get_thumbnails([_GUID] * 450, rendition=512))
    assert len(many) == 450
    client.close()


def test_the_command_line_saves_a_rendition(server: RunningServer, people: People, tmp_path: Path) -> None:
    image = store_image(server, people.ann, picture())
    env = {
        **environment(tmp_path),
        "PIXYPROXY_SERVER": server.address,
        "PIXYPROXY_USER": people.ann.username,
        "PIXYPROXY_PASSWORD": people.ann.password,
        "HOME": str(tmp_path),
    }
    finished = run_command("fetch", image.guid, "--rendition", "256", env=env, cwd=tmp_path)
    assert finished.status == 0, finished.stderr
    assert Image.open(io.BytesIO((tmp_path / "direct-256.webp").read_bytes())).size == (256, 171)
