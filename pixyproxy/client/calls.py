"""The requests and responses of all calls, for both clients."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypedDict, TypeVar, Unpack

from grpc_health.v1 import health_pb2, health_pb2_grpc
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2 as upb
from pixyproxy_pb.v1.generation_service_pb2_grpc import GenerationServiceStub
from pixyproxy_pb.v1.image_service_pb2_grpc import ImageServiceStub
from pixyproxy_pb.v1.usage_service_pb2_grpc import UsageServiceStub

from pixyproxy.client.generations import Generation, GenerationState, to_generation
from pixyproxy.client.models import (
    RENDITIONS,
    ContentInfo,
    ImageDetail,
    ImagePage,
    Rendition,
    Thumbnail,
    Visibility,
    copied,
    to_content_info,
    to_detail,
    to_page,
)
from pixyproxy.client.usage import Quota, UsageGrouping, UsageRow, to_quotas, to_rows

Answer = TypeVar("Answer")

_MAX_THUMBNAILS = 200
_GENERATION_OPTIONS = pb.GenerationOptions.DESCRIPTOR.fields_by_name
_SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ImageService"].full_name


class CreateOptions(TypedDict, total=False):
    """The options of a new image. Options that are missing or empty take the server's default.

    Attributes:
        tags: tags for searches.
        visibility: who may read it; by default only its author.
        filename: by default it is made from the prompt.
        model: the provider's model.
        size: ``auto`` or ``WIDTHxHEIGHT`` in pixels.
        quality: one of auto, low, medium, high, xhigh, max.
        output_format: one of png, webp, jpeg.
        background: one of auto, opaque, transparent.
        moderation: how strictly the provider moderates, auto or low; the server's operator may forbid low.
        output_compression: 0 to 100, with webp and jpeg; None for the provider's default.
        partial_images: the number of partial images for watchers, 0 to 3; each costs some tokens.
        input_fidelity: how closely to match input images, low or high.
        inputs: the guids of up to 16 images to edit; by default the image is made from the prompt alone.
        mask: the guid of a PNG as large as the first input, whose transparent part is to be changed.
        request_id: the idempotency key, a UUID; by default a new one.
    """

    tags: Sequence[str]
    visibility: Visibility
    filename: str
    model: str
    size: str
    quality: str
    output_format: str
    background: str
    moderation: str
    output_compression: int | None
    partial_images: int
    input_fidelity: str
    inputs: Sequence[str]
    mask: str | None
    request_id: str | None


class ImportOptions(TypedDict, total=False):
    """The options of an imported image.

    Attributes:
        tags: tags for searches.
        visibility: who may read it; by default only its author.
        filename: by default it is made from the description.
        request_id: the idempotency key, a UUID; by default a new one.
        sha256: the SHA-256 that the bytes must have, in hexadecimal; by default it is not checked.
    """

    tags: Sequence[str]
    visibility: Visibility
    filename: str
    request_id: str | None
    sha256: str


class Changes(TypedDict, total=False):
    """Changes of an image; None leaves a field unchanged.

    Attributes:
        filename: the new filename.
        tags: the new tags, which replace all old ones.
        visibility: who may read it.
    """

    filename: str | None
    tags: Sequence[str] | None
    visibility: Visibility | None


class Filters(TypedDict, total=False):
    """Conditions for images; an image must meet all that are given.

    Attributes:
        prompt: words of the prompt; the last one may be the start of a word.
        filename: a part of the filename, case-insensitive.
        guid: the image's guid.
        tags: tags that the image must all have.
        author: the username of its author.
        visibility: who may read it.
        created_after: exclusive; aware.
        created_before: exclusive; aware.
    """

    prompt: str
    filename: str
    guid: str
    tags: Sequence[str]
    author: str
    visibility: Visibility | None
    created_after: datetime | None
    created_before: datetime | None


class GenerationFilters(TypedDict, total=False):
    """Conditions for generations; a generation must meet all that are given.

    Attributes:
        states: the states; empty for any.
        author: the username of the author; empty for the caller, for an admin everybody.
        created_after: it was recorded later than this; aware.
        created_before: it was recorded earlier than this; aware.
    """

    states: Sequence[GenerationState]
    author: str
    created_after: datetime | None
    created_before: datetime | None


class Stubs:
    """The stubs of all services, for a synchronous or an asyncio channel."""

    def __init__(self, channel: Any) -> None:
        self.images: Any = ImageServiceStub(channel)  # type: ignore[no-untyped-call]
        self.generations: Any = GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        self.usage: Any = UsageServiceStub(channel)  # type: ignore[no-untyped-call]
        self.health: Any = health_pb2_grpc.HealthStub(channel)


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """A call.

    Attributes:
        method: the attribute of Stubs, such as ``images.GetImage``.
        request: the request message.
        read: converts the response, or the first response of a stream.
        is_repeatable: whether the call is idempotent.
        is_long: whether the client's ``long_timeout`` applies.
        creation_request_id: the ``request_id`` of a new image, generated or imported, otherwise empty.
    """

    method: str
    request: Any
    read: Callable[[Any], Answer]
    is_repeatable: bool = True
    is_long: bool = False
    creation_request_id: str = ""


def create_image(prompt: str, **options: Unpack[CreateOptions]) -> Call[ImageDetail]:
    """Generate an image."""
    request = _creation(prompt, options)
    return Call("images.CreateImage", request, _image_of, is_long=True, creation_request_id=request.request_id)


def import_image(description: str, **options: Unpack[ImportOptions]) -> Call[ImageDetail]:
    """Import an image; its bytes follow the request."""
    info = pb.ImportImageInfo(prompt=description, **_with_defaults(options))
    return Call("images.ImportImage", info, _image_of, is_long=True, creation_request_id=info.request_id)


def update_image(guid: str, **changes: Unpack[Changes]) -> Call[ImageDetail]:
    """Change an image."""
    check(**changes)
    fields: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    request = pb.UpdateImageRequest(guid=guid, update_mask={"paths": sorted(fields)}, **fields)
    return Call("images.UpdateImage", request, _image_of)


def delete_image(guid: str) -> Call[None]:
    """Delete an image. Not repeatable: the second call would fail with NOT_FOUND."""
    request = pb.DeleteImageRequest(guid=guid)
    return Call("images.DeleteImage", request, lambda _: None, is_repeatable=False)


def is_serving() -> Call[bool]:
    """Check the server's health."""
    return Call(
        "health.Check",
        health_pb2.HealthCheckRequest(service=_SERVICE_NAME),
        lambda answer: bool(answer.status == health_pb2.HealthCheckResponse.SERVING),
    )


def get_image(guid: str) -> Call[ImageDetail]:
    """Get the details of an image."""
    request = pb.GetImageRequest(guid=guid)
    return Call("images.GetImage", request, _image_of)


def list_images(page_size: int, page_token: str, **filters: Unpack[Filters]) -> Call[ImagePage]:
    """Get a page."""
    check(**filters)
    fields: dict[str, Any] = {**filters}
    request = pb.ListImagesRequest(page_size=page_size, page_token=page_token, **fields)
    return Call("images.ListImages", request, to_page)


def get_content(
    guid: str, *, read_offset: int, read_limit: int, if_none_match: str, rendition: Rendition | None = None
) -> Call[ContentInfo]:
    """Read an image's bytes, or those of a rendition."""
    request = pb.GetImageContentRequest(
        guid=guid,
        read_offset=read_offset,
        read_limit=read_limit,
        if_none_match=if_none_match,
        rendition=None if rendition is None else _rendition(rendition),
    )
    return Call("images.GetImageContent", request, lambda first: to_content_info(first.info), is_long=True)


def get_thumbnails(guids: Sequence[str], rendition: Rendition) -> Call[tuple[list[Thumbnail], list[str]]]:
    """Get thumbnails of some images, and the guids of those that are still to be requested."""
    request = pb.BatchGetThumbnailsRequest(guids=guids[:_MAX_THUMBNAILS], rendition=_rendition(rendition))
    return Call(
        "images.BatchGetThumbnails",
        request,
        lambda page: (
            [copied(Thumbnail, one) for one in page.thumbnails],
            [*page.next_guids, *guids[_MAX_THUMBNAILS:]],
        ),
    )


def _rendition(pixels: int) -> pb.Rendition:
    if pixels not in RENDITIONS:
        raise ValueError(f"rendition must be one of {', '.join(map(str, RENDITIONS))}.")
    return RENDITIONS[pixels]


def create_generation(prompt: str, **options: Unpack[CreateOptions]) -> Call[Generation]:
    """Record a request for an image."""
    creation = _creation(prompt, options)
    request = gpb.CreateGenerationRequest(request=creation)
    return Call("generations.CreateGeneration", request, _generation_of, creation_request_id=creation.request_id)


def get_generation(guid: str, request_id: str) -> Call[Generation]:
    """Get a generation."""
    request = gpb.GetGenerationRequest(**_generation_key(guid, request_id))
    return Call("generations.GetGeneration", request, _generation_of)


def list_generations(
    page_size: int, page_token: str, **filters: Unpack[GenerationFilters]
) -> Call[tuple[list[Generation], str]]:
    """Get a page of generations, and the token of the next page."""
    check(**filters)
    fields: dict[str, Any] = {**filters}
    request = gpb.ListGenerationsRequest(page_size=page_size, page_token=page_token, **fields)
    return Call(
        "generations.ListGenerations",
        request,
        lambda page: (list(map(to_generation, page.generations)), page.next_page_token),
    )


def watch_generation(guid: str, request_id: str) -> Call[None]:
    """Watch a generation; its answers are read by Watch."""
    request = gpb.WatchGenerationRequest(**_generation_key(guid, request_id))
    return Call("generations.WatchGeneration", request, lambda _: None, is_long=True)


def cancel_generation(guid: str) -> Call[Generation]:
    """Cancel a generation. The second time gives the same answer."""
    request = gpb.CancelGenerationRequest(guid=guid)
    return Call("generations.CancelGeneration", request, _generation_of)


def summarize_usage(
    start: datetime | None, end: datetime | None, group_by: Sequence[UsageGrouping], author: str
) -> Call[list[UsageRow]]:
    """Sum up what was spent."""
    fields: dict[str, Any] = {"start": start, "end": end, "group_by": group_by, "author": author}
    check(**fields)
    request = upb.SummarizeUsageRequest(**fields)
    return Call("usage.SummarizeUsage", request, to_rows)


def get_quotas(author: str) -> Call[list[Quota]]:
    """Get what is limited for an author."""
    return Call("usage.GetQuota", upb.GetQuotaRequest(author=author), to_quotas)


def _image_of(answer: Any) -> ImageDetail:
    return to_detail(answer.image)


def _generation_of(answer: Any) -> Generation:
    return to_generation(answer.generation)


def _creation(prompt: str, options: CreateOptions) -> pb.CreateImageRequest:
    fields = _with_defaults(options)
    fields["inputs"] = [pb.ImageInput(guid=guid) for guid in fields.get("inputs", ())]
    fields["mask"] = pb.ImageInput(guid=fields["mask"]) if fields.get("mask") else None
    fields["options"] = {name: fields.pop(name) for name in _GENERATION_OPTIONS if name in fields}
    return pb.CreateImageRequest(prompt=prompt, **fields)


def _with_defaults(options: CreateOptions | ImportOptions) -> dict[str, Any]:
    """Return the fields of a request for a private image with a new request id, in so far as they are not given."""
    check(**options)
    fields: dict[str, Any] = {"visibility": Visibility.PRIVATE, **options}
    return fields | {"request_id": fields.get("request_id") or str(uuid.uuid4())}


def check(**fields: Any) -> None:
    """Refuse one string in place of several, because it would be taken as its characters, and times without a zone."""
    for name, value in fields.items():
        if name in ("tags", "inputs", "guids") and isinstance(value, str):
            raise TypeError(f"{name} must be a sequence of strings, not a string.")
        if isinstance(value, datetime) and value.tzinfo is None:
            raise ValueError(f"{value} has no time zone.")


def _generation_key(guid: str, request_id: str) -> dict[str, str]:
    if bool(guid) == bool(request_id):
        raise ValueError("A generation is named by its guid or by its request_id.")
    return {"guid": guid} if guid else {"request_id": request_id}
