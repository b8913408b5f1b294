"""The servicer alone, without a port and without interceptors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import grpc_testing
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.core.exceptions import ImageNotFoundError, InvalidFieldError
from pixyproxy.core.fields import UserClass, Visibility
from pixyproxy.core.models import Caller, ImageChanges, ImageCreation, ImagePageRequest
from pixyproxy.core.request_context import caller
from pixyproxy.resource.image_servicer import ImageServicer
from tests.unit.resource.fakes import DATA, GUID, OTHER_GUID, FakeImageService, make_image

SERVICE = pb.DESCRIPTOR.services_by_name["ImageService"]
ALICE = Caller(user_id=3, guid=GUID, username="alice", class_key=UserClass.USER)


@pytest.fixture
def images() -> FakeImageService:
    return FakeImageService()


@pytest.fixture
def server(images: FakeImageService) -> Any:
    clock = grpc_testing.strict_real_time()
    return grpc_testing.server_from_dictionary({SERVICE: ImageServicer(images)}, clock)


@pytest.fixture
def signed_in() -> Iterator[None]:
    token = caller.set(ALICE)
    yield
    caller.reset(token)


def call(server: Any, method: str, request: Message) -> Any:
    """Make a unary call and return its response; the servicer's own exception ends it as UNKNOWN."""
    rpc = server.invoke_unary_unary(SERVICE.methods_by_name[method], (), request, timeout=30)
    response, _, code, details = rpc.termination()
    if code is not grpc.StatusCode.OK:
        raise AssertionError(f"{code} {details}")
    return response


class _Context:
    """What the servicer asks of a call that has no deadline and is never cancelled."""

    def time_remaining(self) -> None:
        return None

    def add_callback(self, callback: object) -> bool:
        return True


def call_directly(images: FakeImageService, method: str, request: Message) -> Any:
    """Call the servicer's method itself, for the exceptions that it leaves to the interceptor."""
    return getattr(ImageServicer(images), method)(request, _Context())


def test_get_image_returns_every_field(server: Any, images: FakeImageService) -> None:
    response = call(server, "GetImage", pb.GetImageRequest(guid=GUID))

    image = images.image
    assert response.image == pb.ImageDetail(
        guid=GUID,
        filename="castle.png",
        prompt="A castle 🏰",
        tags=["a", "ü"],
        author="alice",
        visibility=pb.VISIBILITY_PUBLIC,
        content_type="image/png",
        size_bytes=len(DATA),
        sha256=image.sha256,
        width=640,
        height=480,
        model="a-model",
        created_at=Timestamp(seconds=int(image.created_at.timestamp()), nanos=678_901_000),
        updated_at=Timestamp(seconds=int(image.updated_at.timestamp())),
        usage=pb.Usage(input_tokens=1, output_tokens=2, total_tokens=3, input_text_tokens=0, input_image_tokens=1),
        options=pb.GenerationOptions(model="a-model", quality="low", output_format="webp", output_compression=0),
        origin=pb.ORIGIN_EDITED,
        source_guids=[OTHER_GUID],
        cost=pb.Cost(nano_usd=31_730_000, price_list="2026-11-21"),
        placeholder=b"hash",
    )
    assert images.asked == [(GUID, None)]


def test_an_image_without_usage_has_none(server: Any, images: FakeImageService) -> None:
    images.image = make_image(usage=None)

    response = call(server, "GetImage", pb.GetImageRequest(guid=GUID))

    assert not response.image.HasField("usage")


def test_create_image_passes_on_every_field(server: Any, images: FakeImageService) -> None:
    request = pb.CreateImageRequest(
        prompt="p",
        tags=["x", "y", "x"],
        visibility=pb.VISIBILITY_PUBLIC,
        filename="f.png",
        request_id=GUID.upper(),
        options=pb.GenerationOptions(
            model="m", size="512x512", quality="low", output_format="webp", background="transparent"
        ),
    )

    response = call(server, "CreateImage", request)

    assert response.image.guid == GUID
    ((creation, _, scope),) = images.asked
    assert isinstance(creation, ImageCreation)
    assert creation.detail.model_dump() == {
        "prompt": "p",
        "filename": "f.png",
        "tags": ("x", "y"),
        "visibility": Visibility.PUBLIC,
    }
    assert creation.request_id == GUID
    assert creation.options.model_dump() == {
        "model": "m",
        "size": "512x512",
        "quality": "low",
        "output_format": "webp",
        "background": "transparent",
    }
    assert 0 < scope.remaining() < 30


@pytest.mark.usefixtures("signed_in")
def test_the_caller_is_passed_on(images: FakeImageService) -> None:
    call_directly(images, "GetImage", pb.GetImageRequest(guid=GUID))

    assert images.asked == [(GUID, ALICE)]


def test_create_image_without_options_leaves_all_to_the_server(server: Any, images: FakeImageService) -> None:
    call(server, "CreateImage", pb.CreateImageRequest(prompt="p"))

    ((creation, _, _),) = images.asked
    assert creation.detail.visibility is Visibility.PRIVATE
    assert creation.detail.filename is None
    assert creation.request_id is None
    assert set(creation.options.model_dump().values()) == {None}


@pytest.mark.parametrize(("asked", "meant"), [(0, 50), (1, 1), (200, 200), (201, 200), (2**31 - 1, 200)])
def test_list_images_page_size(server: Any, images: FakeImageService, asked: int, meant: int) -> None:
    response = call(server, "ListImages", pb.ListImagesRequest(page_size=asked))

    ((request, _),) = images.asked
    assert isinstance(request, ImagePageRequest)
    assert request.page_size == meant
    assert response.next_page_token == "more"
    assert [image.guid for image in response.images] == [GUID]


def test_list_images_times_are_whole_microseconds_and_lose_no_row(server: Any, images: FakeImageService) -> None:
    request = pb.ListImagesRequest(
        created_after=Timestamp(seconds=1, nanos=1_999), created_before=Timestamp(seconds=2, nanos=1_001)
    )

    call(server, "ListImages", request)

    ((asked, _),) = images.asked
    assert asked.filter.created_after.microsecond == 1
    assert asked.filter.created_before.microsecond == 2


def test_content_comes_as_info_and_then_chunks(server: Any, images: FakeImageService) -> None:
    rpc = server.invoke_unary_stream(
        SERVICE.methods_by_name["GetImageContent"], (), pb.GetImageContentRequest(guid=GUID), timeout=30
    )
    first = rpc.take_response()
    chunks = [pb.GetImageContentResponse.FromString(rpc.take_response()) for _ in range(3)]
    _, code, _ = rpc.termination()

    assert code is grpc.StatusCode.OK
    assert first.info == pb.ContentInfo(
        guid=GUID,
        filename="castle.png",
        content_type="image/png",
        size_bytes=len(DATA),
        sha256=images.image.sha256,
        not_modified=False,
        width=640,
        height=480,
    )
    assert first.data == b""
    assert not any(chunk.HasField("info") for chunk in chunks)
    assert b"".join(chunk.data for chunk in chunks) == DATA
    assert images.reader.is_closed


def test_a_reader_that_goes_away_leaves_nothing_open(images: FakeImageService) -> None:
    stream = call_directly(images, "GetImageContent", pb.GetImageContentRequest(guid=GUID))
    next(stream)
    stream.close()

    assert images.reader.is_closed


@pytest.mark.parametrize(
    ("request_", "changes"),
    [
        (
            pb.UpdateImageRequest(guid=GUID, filename="n", tags=["t"], update_mask=FieldMask(paths=["tags"])),
            {"tags": ("t",)},
        ),
        (
            pb.UpdateImageRequest(guid=GUID, filename="n", visibility=pb.VISIBILITY_PUBLIC),
            {"filename": "n", "visibility": 2},
        ),
        (pb.UpdateImageRequest(guid=GUID, update_mask=FieldMask(paths=["tags"])), {"tags": ()}),
        (
            pb.UpdateImageRequest(guid=GUID, filename="n", update_mask=FieldMask(paths=["filename", "filename"])),
            {"filename": "n"},
        ),
    ],
)
def test_the_mask_says_what_is_updated(
    server: Any, images: FakeImageService, request_: pb.UpdateImageRequest, changes: dict[str, Any]
) -> None:
    call(server, "UpdateImage", request_)

    ((asked, _),) = images.asked
    assert isinstance(asked, ImageChanges)
    assert asked.changed_fields() == changes


def test_delete_image(server: Any, images: FakeImageService) -> None:
    response = call(server, "DeleteImage", pb.DeleteImageRequest(guid=GUID))

    assert response == pb.DeleteImageResponse()
    assert images.asked == [(GUID, None)]


@pytest.mark.parametrize(
    ("method", "request_", "fields"),
    [
        ("CreateImage", pb.CreateImageRequest(), ["prompt"]),
        ("CreateImage", pb.CreateImageRequest(prompt="p", tags=["ok", ""]), ["tags[1]"]),
        ("CreateImage", pb.CreateImageRequest(prompt="\0", visibility=9), ["prompt", "visibility"]),  # type: ignore[arg-type]
        ("CreateImage", pb.CreateImageRequest(prompt="p", request_id="1"), ["request_id"]),
        ("CreateImage", pb.CreateImageRequest(prompt="p", options={"size": "-1x1"}), ["options.size"]),
        ("ListImages", pb.ListImagesRequest(page_size=-1), ["page_size"]),
        ("ListImages", pb.ListImagesRequest(prompt="!?"), ["prompt"]),
        ("ListImages", pb.ListImagesRequest(created_after=Timestamp(seconds=-(10**12))), ["created_after"]),
        ("ListImages", pb.ListImagesRequest(created_before=Timestamp(nanos=-1)), ["created_before"]),
        ("UpdateImage", pb.UpdateImageRequest(guid=GUID), ["update_mask"]),
        (
            "UpdateImage",
            pb.UpdateImageRequest(guid=GUID, update_mask=FieldMask(paths=["prompt", "*"])),
            ["update_mask", "update_mask"],
        ),
        (
            "UpdateImage",
            pb.UpdateImageRequest(guid="x", update_mask=FieldMask(paths=["filename", "visibility"])),
            ["guid", "filename", "visibility"],
        ),
    ],
)
def test_wrong_fields_are_all_named_and_nothing_is_asked(
    images: FakeImageService, method: str, request_: Message, fields: list[str]
) -> None:
    with pytest.raises(InvalidFieldError) as refused:
        call_directly(images, method, request_)

    assert [violation.field for violation in refused.value.violations] == fields
    assert images.asked == []


def test_errors_are_left_to_the_interceptor(images: FakeImageService) -> None:
    images.error = ImageNotFoundError(GUID)

    with pytest.raises(ImageNotFoundError):
        call_directly(images, "GetImage", pb.GetImageRequest(guid=GUID))
