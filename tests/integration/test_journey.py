"""The life of an image, from the first request to the last, on every kind of database."""

from __future__ import annotations

import hashlib
import io
import re
import time
from pathlib import Path

import grpc
import pytest
from PIL import Image
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import People
from tests.support.image_client import ImageClient
from tests.support.rpc import TIMEOUT
from tests.support.servers import RunningServer, running_server

_GUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture
def author(any_server: RunningServer) -> ImageClient:
    """Somebody new, on each kind of database."""
    return ImageClient(any_server, any_server.new_login())


def test_what_is_made_is_found_and_read(author: ImageClient, tmp_path: Path) -> None:
    started = time.time()
    prompt = "Ein Leuchtturm \N{MOON VIEWING CEREMONY} bei Sonnenaufgang, 日の出\n\tin zwei Zeilen"

    made = author.create(prompt, tags=["Meer", "日の出", "Meer"])

    assert author.login is not None
    assert _GUID.fullmatch(made.guid)
    assert (made.prompt, list(made.tags), made.author) == (prompt, ["Meer", "日の出"], author.login.username)
    assert made.filename == "ein-leuchtturm-bei-sonnenaufgang-日の出-in-zwei-zeilen.png"
    assert (made.content_type, made.width, made.height) == ("image/png", 64, 64)
    assert (made.model, made.visibility) == ("offline-drawing", pb.VISIBILITY_PRIVATE)
    assert not made.HasField("usage")
    assert made.created_at == made.updated_at
    assert abs(made.created_at.ToNanoseconds() / 1e9 - started) < TIMEOUT
    assert author.get(made.guid) == made
    assert author.get(made.guid.upper()) == made
    page = author.page(author=author.login.username)
    assert (list(page.images), page.next_page_token) == ([made], "")

    info, data = author.content(made.guid)
    path = tmp_path / info.filename
    path.write_bytes(data)
    assert (info.guid, info.filename, info.content_type) == (made.guid, made.filename, made.content_type)
    assert (info.size_bytes, info.sha256, info.not_modified) == (made.size_bytes, made.sha256, False)
    assert path.stat().st_size == made.size_bytes
    assert hashlib.sha256(data).hexdigest() == made.sha256
    with Image.open(path) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("PNG", (64, 64))


def test_changes_by_mask_and_without_one(author: ImageClient) -> None:
    made = author.create(tags=["Meer", "日の出"])

    # A field that the mask does not name stays as it is, whatever the request holds.
    changed = author.update(
        made.guid,
        ["filename"],
        filename="Ümläut 灯台.png",
        tags=["not", "looked", "at"],
        visibility=pb.VISIBILITY_PUBLIC,
    )
    assert (changed.filename, list(changed.tags)) == ("Ümläut 灯台.png", ["Meer", "日の出"])
    assert changed.visibility == pb.VISIBILITY_PRIVATE
    assert changed.created_at == made.created_at
    assert changed.updated_at.ToNanoseconds() > made.updated_at.ToNanoseconds()

    # Without a mask, what is set is changed.
    changed = author.update(made.guid, tags=["朝"], visibility=pb.VISIBILITY_PUBLIC)
    assert (changed.filename, list(changed.tags)) == ("Ümläut 灯台.png", ["朝"])
    assert changed.visibility == pb.VISIBILITY_PUBLIC
    assert author.guids(tags=["朝"], guid=made.guid) == [made.guid]
    assert author.guids(tags=["Meer"], guid=made.guid) == []

    # A mask that names tags, of which there are none, takes all of them away.
    changed = author.update(made.guid, ["tags", "tags"])
    assert (list(changed.tags), changed.visibility) == ([], pb.VISIBILITY_PUBLIC)
    assert author.guids(tags=["朝"], guid=made.guid) == []
    assert author.get(made.guid) == changed


def test_made_public_it_is_everybodys_to_read(author: ImageClient) -> None:
    made = author.create("Ein Leuchtturm, 日の出", filename="灯台 Ümlaut.png")
    anybody = ImageClient(author.server)
    assert anybody.refused(pb.GetImageRequest(guid=made.guid)).code is grpc.StatusCode.NOT_FOUND

    public = author.update(made.guid, ["visibility"], visibility=pb.VISIBILITY_PUBLIC)

    assert anybody.get(made.guid) == public
    assert list(anybody.page(prompt="日の出 LEUCHTTURM", filename="台 ümlaut", guid=made.guid).images) == [public]
    _, data = anybody.content(made.guid)
    assert hashlib.sha256(data).hexdigest() == made.sha256

    author.update(made.guid, visibility=pb.VISIBILITY_PRIVATE)
    assert anybody.guids(guid=made.guid) == []


def test_what_is_deleted_is_gone_everywhere(author: ImageClient) -> None:
    made = author.create_public()
    assert author.server.image_file(made.guid).exists()

    author.delete(made.guid)

    assert not author.server.image_file(made.guid).exists()
    for request in (
        pb.GetImageRequest(guid=made.guid),
        pb.GetImageContentRequest(guid=made.guid),
        pb.UpdateImageRequest(guid=made.guid, filename="x.png"),
        pb.DeleteImageRequest(guid=made.guid),
    ):
        refused = author.refused(request)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")
        assert refused.resource is not None
        assert refused.resource.resource_name == made.guid
    assert author.guids(guid=made.guid) == []


def test_a_repeated_request_id_gives_the_same_image(author: ImageClient) -> None:
    key = "0B0D2F3C-8E57-4C0B-9F0B-2F6D1F8C6A11"
    first = author.create(request_id=key, tags=["once"])
    assert author.create(request_id=key.lower(), tags=["once"]) == first
    refused = author.refused(pb.CreateImageRequest(prompt="another", request_id=key))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert author.guids(author=first.author) == [first.guid]


@pytest.mark.parametrize(
    ("output_format", "size", "name"),
    [("png", (64, 32), "a-harbour.png"), ("webp", (32, 96), "a-harbour.webp"), ("jpeg", (480, 160), "a-harbour.jpg")],
)
def test_every_output_format_and_its_size(
    server: RunningServer, people: People, output_format: str, size: tuple[int, int], name: str
) -> None:
    ann = ImageClient(server, people.ann)
    options = pb.GenerationOptions(
        output_format=output_format, size="{}x{}".format(*size), quality="low", background="opaque"
    )
    made = ann.create("a harbour", options=options)
    assert (made.content_type, made.filename) == (f"image/{output_format}", name)
    assert (made.width, made.height) == size
    info, data = ann.content(made.guid)
    assert info.content_type == made.content_type
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        assert (picture.format, picture.size) == (output_format.upper(), size)


def test_a_transparent_picture_is_transparent(server: RunningServer, people: People) -> None:
    ann = ImageClient(server, people.ann)
    options = pb.GenerationOptions(size="64x64", background="transparent", output_format="webp")
    _, data = ann.content(ann.create("a balloon", options=options).guid)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.convert("RGBA").getchannel("A").getextrema()[0] == 0


def test_what_is_made_where_all_is_left_open(server: RunningServer, people: People) -> None:
    made = ImageClient(server, people.ann).create("the default", options=None)
    assert (made.width, made.height, made.content_type) == (1024, 1024, "image/png")


def test_an_image_outlives_its_server(tmp_path: Path) -> None:
    with running_server(tmp_path, makes_first_user=True) as server:
        author = ImageClient(server, server.admin)
        made = author.create("for keeps")
        content = author.content(made.guid)
        server.kill()
    with running_server(tmp_path) as server:
        assert "password" not in server.output, "only the first start of all makes a user"
        author = ImageClient(server, author.login)
        assert author.get(made.guid) == made
        assert author.content(made.guid) == content
