"""Requests that break a rule: each is refused with its fields named, and leaves no trace."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.core.models import GenerationOptions
from tests.integration.conftest import People
from tests.support.image_client import SMALL, ImageClient, without_placeholder
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT, Refusal, call_id_of, raw_stream, raw_unary, refusal
from tests.support.servers import RunningServer, basic
from tests.support.waiting import wait_until

_METHODS = ("CreateImage", "GetImage", "ListImages", "GetImageContent", "UpdateImage", "DeleteImage")
_GUID = "123e4567-e89b-42d3-a456-426614174000"
_TABLES = ("images", "generations")


@pytest.fixture(scope="module")
def client(provider_server: RunningServer, artists: People) -> ImageClient:
    """Somebody who has images made by the provider."""
    return ImageClient(provider_server, artists.ann)


@pytest.fixture(scope="module")
def image(client: ImageClient) -> pb.ImageDetail:
    """An image that everybody fails to change."""
    return client.create_public("not to be changed", tags=["one"])


@pytest.fixture(autouse=True)
def unchanged(client: ImageClient, image: pb.ImageDetail, stand_in: RunningStandIn) -> Iterator[None]:
    """Check of every test here that it stores nothing, submits nothing, and changes nothing."""

    def state() -> tuple[Any, ...]:
        with client.server.database() as database, database.reading() as context:
            counts = [context.fetch_all(f"SELECT COUNT(*) AS number FROM {table}", {}) for table in _TABLES]
        return counts, client.server.stored_files(), stand_in.count("")

    def unsealed() -> set[int]:
        with client.server.database() as database, database.reading() as context:
            return {row["image_id"] for row in context.fetch_all("SELECT image_id FROM image_tail", {})}

    wait_until(client.server.is_settled, TIMEOUT, "what other tests have left to end")
    before, unsealed_before = state(), unsealed()
    yield
    assert state() == before
    # Whenever they are many, the server seals some, and so takes them out.
    assert unsealed() <= unsealed_before
    assert client.get(image.guid) == image


def _check_refused(refused: Refusal, *fields: str) -> None:
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(refused.violations) == list(fields)
    assert all(refused.violations.values())


# --- CreateImage -----------------------------------------------------------------------------------------------------

_CREATIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": " \t\r\n\N{NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}"}, "prompt"),
    ({"prompt": "x" * 32_001}, "prompt"),
    ({"prompt": "\N{GRINNING FACE}" * 32_001}, "prompt"),
    *(({"prompt": f"a{chr(code)}b"}, "prompt") for code in (0x00, 0x07, 0x0B, 0x1B, 0x7F, 0x85, 0x9F)),
    ({"tags": [f"tag {number}" for number in range(33)]}, "tags"),
    ({"tags": ["same"] * 33}, "tags"),
    ({"tags": ["fine", ""]}, "tags[1]"),
    ({"tags": [" "]}, "tags[0]"),
    ({"tags": ["x" * 65]}, "tags[0]"),
    ({"tags": ["fine", "line\nbreak"]}, "tags[1]"),
    ({"tags": ["a\x00b"]}, "tags[0]"),
    ({"visibility": 3}, "visibility"),
    ({"visibility": -1}, "visibility"),
    ({"filename": " "}, "filename"),
    ({"filename": "x" * 256}, "filename"),
    *(({"filename": name}, "filename") for name in ("a/b", "a\\b", "..", ".", "../../etc/passwd", "a\nb", "a\x00b")),
    *(({"request_id": key}, "request_id") for key in ("1", "x" * 36, _GUID[:-1], _GUID + "0", f"{{{_GUID}}}", " ")),
    *(
        ({"options": {"size": size}}, "options.size")
        for size in ("big", "64", "64x", "x64", "0x64", "64x0", "-64x64", "64X64", "64x64x64", "064x64", "1e2x64", " ")
    ),
    ({"options": {"size": "६४x६४"}}, "options.size"),
    ({"options": {"size": "100000x64"}}, "options.size"),
    *(({"options": {"quality": quality}}, "options.quality") for quality in ("hd", "HIGH", " ", "standard")),
    *(({"options": {"output_format": name}}, "options.output_format") for name in ("jpg", "gif", "PNG", "svg", "/")),
    *(({"options": {"background": name}}, "options.background") for name in ("white", "TRANSPARENT", " ")),
    *(({"options": {"model": name}}, "options.model") for name in ("x" * 65, " ", "a b", "-a", "a\nb", "modèle")),
    ({"options": {"background": "transparent", "output_format": "jpeg"}}, "options.background"),
    *(({"options": {"partial_images": count}}, "options.partial_images") for count in (-1, 4, 2**31 - 1)),
    *(({"options": {"moderation": name}}, "options.moderation") for name in ("high", "LOW", "none", " ")),
    *(
        ({"options": {"output_compression": compression, "output_format": "webp"}}, "options.output_compression")
        for compression in (-1, 101, 2**31 - 1, -(2**31))
    ),
    # PNG, asked for or as the server's default.
    *(({"options": {"output_compression": compression}}, "options.output_compression") for compression in (0, 50)),
    ({"options": {"output_compression": 50, "output_format": "png"}}, "options.output_compression"),
    *(({"options": {"input_fidelity": name}}, "options.input_fidelity") for name in ("medium", "HIGH", " ")),
    *(({"options": {"input_fidelity": name}}, "options.input_fidelity") for name in ("low", "high")),
    *(
        ({"options": {"model": model, "size": size}}, "options.size")
        for model in ("gpt-image-2", "gpt-image-2.5-sunburst-2026-09-08")
        for size in ("1000x1024", "1024x320", "3856x2160")
    ),
    *(({"options": {"model": "gpt-image-2", "quality": name}}, "options.quality") for name in ("xhigh", "max")),
]


@pytest.mark.parametrize(("fields", "field"), _CREATIONS, ids=lambda value: str(value)[:50])
def test_a_wrong_creation(client: ImageClient, fields: dict[str, Any], field: str) -> None:
    _check_refused(client.refused(pb.CreateImageRequest(**({"prompt": "fine"} | fields))), field)


def test_all_that_is_wrong_with_a_creation_is_said_at_once(client: ImageClient) -> None:
    request = pb.CreateImageRequest(
        tags=["", " "],
        visibility=7,  # type: ignore[arg-type]
        filename="a/b",
        request_id="x",
        options=pb.GenerationOptions(
            model=" ",
            size="x",
            quality="x",
            output_format="x",
            background="x",
            moderation="x",
            output_compression=-1,
            partial_images=-1,
            input_fidelity="x",
        ),
    )
    options = [f"options.{name}" for name in GenerationOptions.model_fields]
    refused = client.refused(request)
    _check_refused(refused, "prompt", "filename", "tags[0]", "tags[1]", "visibility", *options, "request_id")


def test_an_error_fits_into_the_metadata_of_an_answer(client: ImageClient) -> None:
    request = pb.CreateImageRequest(
        prompt="\x00",
        tags=["\x00" * 100] * 32,
        visibility=7,  # type: ignore[arg-type]
        filename="x" * 1000,
        request_id="x",
        options=pb.GenerationOptions(
            model=" ",
            size="x",
            quality="x",
            output_format="x",
            background="x",
            moderation="x",
            output_compression=-1,
            partial_images=-1,
            input_fidelity="x",
        ),
    )
    # Clients take 8 KiB of metadata, and refuse more than that without saying what is in it.
    for _ in range(20):
        refused = client.refused(request)
        assert refused.reason == "INVALID_FIELD"
        assert len(refused.violations) >= 20


def test_a_size_that_no_provider_takes(server: RunningServer, people: People) -> None:
    ann = ImageClient(server, people.ann)
    for size in ("65x64", "64x256", "4096x4096", "16x16x16"):
        request = pb.CreateImageRequest(prompt="fine", options=pb.GenerationOptions(size=size))
        _check_refused(ann.refused(request), "options.size")


# --- The other methods -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "guid", ["", " ", "1", "x" * 36, _GUID[:-1], f"{_GUID}\n", f"{{{_GUID}}}", "../" * 12, "é" * 36]
)
@pytest.mark.parametrize(
    "request_type", [pb.GetImageRequest, pb.GetImageContentRequest, pb.UpdateImageRequest, pb.DeleteImageRequest]
)
def test_a_wrong_guid(client: ImageClient, request_type: Any, guid: str) -> None:
    request = request_type(guid=guid)
    if request_type is pb.UpdateImageRequest:
        request.filename = "fine.png"
    _check_refused(client.refused(request), "guid")


_UPDATES: list[tuple[list[str] | None, dict[str, Any], str]] = [
    (None, {}, "update_mask"),
    ([], {}, "update_mask"),
    *(
        ([path], {"filename": "fine.png"}, "update_mask")
        for path in ("prompt", "guid", "author", "Filename", "filename.length", "*", "", "tags[0]", "update_mask")
    ),
    (["filename", "nothing"], {"filename": "fine.png"}, "update_mask"),
    (["visibility"], {}, "visibility"),
    (["visibility"], {"visibility": 3}, "visibility"),
    (None, {"visibility": -7}, "visibility"),
    (["filename"], {}, "filename"),
    (["filename"], {"filename": "a/b"}, "filename"),
    (None, {"filename": " "}, "filename"),
    (["tags"], {"tags": ["x" * 65]}, "tags[0]"),
    (None, {"tags": [str(number) for number in range(33)]}, "tags"),
    (None, {"tags": ["fine", ""]}, "tags[1]"),
]


@pytest.mark.parametrize(("mask", "fields", "field"), _UPDATES, ids=lambda value: str(value)[:50])
def test_a_wrong_update(
    client: ImageClient, image: pb.ImageDetail, mask: list[str] | None, fields: dict[str, Any], field: str
) -> None:
    request = pb.UpdateImageRequest(guid=image.guid, **fields)
    if mask is not None:
        request.update_mask.CopyFrom(FieldMask(paths=mask))
    _check_refused(client.refused(request), field)


def test_a_mask_of_a_thousand_wrong_paths(client: ImageClient, image: pb.ImageDetail) -> None:
    paths = [f"\N{GRINNING FACE}{number}" * 20 for number in range(1000)]
    _check_refused(
        client.refused(pb.UpdateImageRequest(guid=image.guid, update_mask=FieldMask(paths=paths))), "update_mask"
    )


# --- What is no request at all ---------------------------------------------------------------------------------------

_NO_MESSAGES = {
    "no field": b"\xff",
    "cut short": b"\x0a\x05abc",
    # The second field is a text, or a list of texts, in every request that has one.
    "not UTF-8": b"\x0a\x02\xc3\x28\x12\x02\xc3\x28",
    "text": b'{"guid": "x"}',
    "zero field": b"\x00\x01",
    "long": b"\xff" * 100_000,
}


def _raw(channel: grpc.Channel, method: str) -> Any:
    make = raw_stream if method.endswith("Content") else raw_unary
    return make(channel, f"/pixyproxy.v1.ImageService/{method}")


@pytest.mark.parametrize("method", _METHODS)
@pytest.mark.parametrize("data", _NO_MESSAGES.values(), ids=_NO_MESSAGES)
def test_bytes_that_are_no_message(client: ImageClient, method: str, data: bytes) -> None:
    refused = refusal(_raw(client.server.channel, method), data, client.metadata)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


def test_bytes_that_are_no_message_from_nobody(client: ImageClient) -> None:
    # Who is not let in is not told about the request.
    refused = refusal(_raw(client.server.channel, "CreateImage"), b"\xff")
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")


def test_a_field_that_is_not_known_here_is_passed_over(client: ImageClient, image: pb.ImageDetail) -> None:
    later = pb.GetImageRequest(guid=image.guid).SerializeToString() + b"\xfa\x3e\x05later"
    answer = _raw(client.server.channel, "GetImage")(later, metadata=client.metadata, timeout=TIMEOUT)
    assert without_placeholder(pb.GetImageResponse.FromString(answer).image) == image


@pytest.mark.parametrize(
    "method",
    [
        "/pixyproxy.v1.ImageService/PaintImage",
        "/pixyproxy.v1.ImageService/",
        "/pixyproxy.v1.ImageService/getimage",
        "/pixyproxy.v2.ImageService/GetImage",
        "/grpc.health.v1.Health/Set",
        "/another.Service/Method",
        "/nothing",
    ],
)
def test_a_method_that_there_is_not(client: ImageClient, method: str) -> None:
    for make in (raw_unary, raw_stream):
        refused = refusal(make(client.server.channel, method), b"\xff", client.metadata)
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNIMPLEMENTED, "METHOD_UNKNOWN")


# --- Credentials -----------------------------------------------------------------------------------------------------


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


_HEADERS = [
    "",
    " ",
    "Basic",
    "Basic ",
    "Basic !!!!",
    "Basic YW5u",  # no colon
    f"Basic {_encoded(b'ann:password')[:-2]}",
    f"Basic {_encoded(b'ann:password')} {_encoded(b'ann:password')}",
    f"Basic {_encoded(bytes([0xFF, 0xFE, 0x3A, 0x61]))}",
    f"Basic {_encoded(b':')}",
    f"Basic {_encoded(b':password')}",
    f"Basic {_encoded(b'ann:')}",
    f"Basic {_encoded(b'a' * 65 + b':password')}",
    f"Basic {_encoded(b'ann:' + b'p' * 1025)}",
    f"Basic {_encoded(bytes(3) + b':' + bytes(3))}",
    f"Basic {_encoded(chr(0x1F600).encode() + b':' + chr(0x1F600).encode())}",
    "Bearer abc",
    "Digest username=ann",
    "ann:password",
    _encoded(b"ann:password"),
]


@pytest.mark.parametrize("header", _HEADERS, ids=lambda header: header[:40] or "empty")
def test_an_authorization_that_cannot_be_right(client: ImageClient, image: pb.ImageDetail, header: str) -> None:
    metadata = (("authorization", header),)
    for method, request in (
        (client.stub.CreateImage, pb.CreateImageRequest(prompt="fine", options=SMALL)),
        (client.stub.GetImage, pb.GetImageRequest(guid=image.guid)),
        (client.stub.GetImageContent, pb.GetImageContentRequest(guid=image.guid)),
    ):
        refused = refusal(method, request, metadata)
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")


def test_several_authorizations_are_none(client: ImageClient, image: pb.ImageDetail) -> None:
    for metadata in (client.metadata * 2, (*client.metadata, *basic("ann", "password"))):
        refused = refusal(client.stub.GetImage, pb.GetImageRequest(guid=image.guid), metadata)
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")


@pytest.mark.parametrize("spell", ["basic {}", "BASIC {}", "Basic  {}", " Basic {} "])
def test_an_authorization_that_is_spelt_otherwise(client: ImageClient, image: pb.ImageDetail, spell: str) -> None:
    metadata = (("authorization", spell.format(client.metadata[0][1].removeprefix("Basic "))),)
    call = client.stub.GetImage.with_call(pb.GetImageRequest(guid=image.guid), metadata=metadata, timeout=TIMEOUT)
    assert without_placeholder(call[0].image) == image
    assert call_id_of(call[1])


def test_bad_credentials_are_no_way_to_read_what_is_public(client: ImageClient, image: pb.ImageDetail) -> None:
    assert ImageClient(client.server).get(image.guid) == image
    refused = refusal(client.stub.GetImage, pb.GetImageRequest(guid=image.guid), basic("ann", "wrong password"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")


def test_what_nobody_sends_cannot_be_sent_for_others(client: ImageClient, image: pb.ImageDetail) -> None:
    metadata = (("x-request-id", "mine"), ("grpc-trace", "x"), ("x-forwarded-user", "admin"), ("user", "admin"))
    refused = refusal(client.stub.DeleteImage, pb.DeleteImageRequest(guid=image.guid), metadata)
    assert refused.reason == "CREDENTIALS_MISSING"
    assert refused.call_id != "mine"
