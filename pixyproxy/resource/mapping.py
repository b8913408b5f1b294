"""The one place that maps protobuf messages to models and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, cast

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_download_service_pb2 as dpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2 as upb

from pixyproxy.core.error_records import from_record
from pixyproxy.core.exceptions import (
    FieldViolation,
    InvalidFieldError,
    OffsetOutOfRangeError,
    PriceUnknownError,
    ProviderRequestInvalidError,
)
from pixyproxy.core.fields import RENDITION_EDGES, GenerationState
from pixyproxy.core.models import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    ContentRequest,
    GenerationDetail,
    GenerationKey,
    GenerationOptions,
    GenerationPage,
    GenerationPageRequest,
    Image,
    ImageChanges,
    ImageCreation,
    ImageImport,
    ImagePage,
    ImagePageRequest,
    PartialImage,
    Quota,
    QuotaRequest,
    Thumbnails,
    ThumbnailsRequest,
    Usage,
    UsageGrouping,
    UsageRequest,
    UsageRow,
)
from pixyproxy.core.validation import fields_within, validated
from pixyproxy.resource import statuses
from pixyproxy.service.content import CHUNK_SIZE, ImageContent
from pixyproxy.service.renditions.requesting import RENDITION_TYPE

_HTTP_CODE = "x-http-code"
# A list may hold a million wrong values, of which the first few tell as much.
_MAX_NAMED = 8
_UPDATABLE = ("filename", "tags", "visibility")
_LAST_TIME = datetime.max.replace(tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_SECONDS = 24 * 3600

_FROM_STATE = {
    GenerationState.QUEUED: gpb.GENERATION_STATE_QUEUED,
    # By a server of the first release, which is about to submit it.
    GenerationState.RECORDED: gpb.GENERATION_STATE_SUBMITTED,
    GenerationState.SUBMITTED: gpb.GENERATION_STATE_SUBMITTED,
    GenerationState.SUCCEEDED: gpb.GENERATION_STATE_SUCCEEDED,
    GenerationState.FAILED: gpb.GENERATION_STATE_FAILED,
    GenerationState.CANCELLED: gpb.GENERATION_STATE_CANCELLED,
    GenerationState.OUTCOME_UNKNOWN: gpb.GENERATION_STATE_OUTCOME_UNKNOWN,
}
_TO_GROUPING = {upb.UsageGrouping.Value(f"USAGE_GROUPING_{one.name}"): one for one in UsageGrouping}
_STATES_OF = {
    number: tuple(state for state, its_number in _FROM_STATE.items() if its_number == number)
    for number in _FROM_STATE.values()
}

_EDGES: dict[int, int] = {pb.Rendition.Value(f"RENDITION_{edge}"): edge for edge in RENDITION_EDGES}
_UNKNOWN = 0  # no edge, which is refused
_RENDITIONS = {edge: cast(pb.Rendition, number) for number, edge in _EDGES.items()}

# --- In --------------------------------------------------------------------------------------------------------------


def to_image_creation(request: pb.CreateImageRequest) -> ImageCreation:
    """Read a request to make an image."""
    return validated(
        ImageCreation,
        {
            "detail": _to_description(request),
            "options": {field.name: value for field, value in request.options.ListFields()},
            "request_id": request.request_id or None,
            "inputs": tuple({"guid": image.guid} for image in request.inputs),
            "mask": {"guid": request.mask.guid} if request.HasField("mask") else None,
        },
    )


def to_image_import(requests: Iterator[pb.ImportImageRequest]) -> tuple[ImageImport, Iterator[bytes]]:
    """Read the first message of a request to store an image, and return with it the bytes that follow."""
    first = next(requests, pb.ImportImageRequest())
    if first.WhichOneof("part") != "info":
        raise InvalidFieldError.of("info", "is required in the first message, before the data")
    info = first.info
    with fields_within("info"):
        asked = validated(
            ImageImport,
            {
                **_to_description(info),
                "request_id": info.request_id or None,
                "sha256": info.sha256 or None,
            },
        )
    return asked, map(_to_data, requests)


def _to_description(request: pb.CreateImageRequest | pb.ImportImageInfo) -> dict[str, Any]:
    """Read the caller's description of a new image."""
    return {
        "prompt": request.prompt,
        "filename": request.filename or None,
        "tags": tuple(request.tags),
        **({"visibility": request.visibility} if request.visibility else {}),
    }


def _to_data(request: pb.ImportImageRequest) -> bytes:
    if request.HasField("info"):
        raise InvalidFieldError.of("info", "must be sent once, in the first message")
    if not request.data:
        raise InvalidFieldError.of("data", "must not be empty, in any message but the first")
    return request.data


def to_image_page_request(request: pb.ListImagesRequest) -> ImagePageRequest:
    """Read a request for a page of images."""
    wrong: list[FieldViolation] = []
    return validated(
        ImagePageRequest,
        {
            "filter": {
                "prompt": request.prompt or None,
                "filename": request.filename or None,
                "guid": request.guid or None,
                "tags": tuple(request.tags),
                "author": request.author or None,
                "visibility": request.visibility or None,
                "created_after": _to_time(request, "created_after", wrong),
                "created_before": _to_time(request, "created_before", wrong, round_up=True),
            },
            **_to_page(request, wrong),
        },
        wrong,
    )


def to_generation_key(request: gpb.GetGenerationRequest | gpb.WatchGenerationRequest) -> GenerationKey:
    """Read which generation is meant."""
    name = request.WhichOneof("key")
    return validated(GenerationKey, {} if name is None else {name: getattr(request, name)})


def to_generation_page_request(request: gpb.ListGenerationsRequest) -> GenerationPageRequest:
    """Read a request for a page of generations."""
    unknown = [place for place, state in enumerate(request.states) if state not in _STATES_OF][:_MAX_NAMED]
    wrong = [
        FieldViolation(f"states[{place}]", "must be a GenerationState other than unspecified") for place in unknown
    ]
    return validated(
        GenerationPageRequest,
        {
            "filter": {
                "states": tuple(
                    state for wanted in sorted(set(request.states)) for state in _STATES_OF.get(wanted, ())
                ),
                "author": request.author or None,
                "created_after": _to_time(request, "created_after", wrong),
                "created_before": _to_time(request, "created_before", wrong, round_up=True),
            },
            **_to_page(request, wrong),
        },
        wrong,
    )


def to_usage_request(request: upb.SummarizeUsageRequest) -> UsageRequest:
    """Read a request for a summary of what was spent."""
    wrong: list[FieldViolation] = []
    return validated(
        UsageRequest,
        {
            "start": _to_time(request, "start", wrong),
            "end": _to_time(request, "end", wrong, round_up=True),
            "group_by": tuple(_to_groupings(request, wrong)),
            "author": request.author or None,
        },
        wrong,
    )


def _to_groupings(request: upb.SummarizeUsageRequest, wrong: list[FieldViolation]) -> Iterator[UsageGrouping]:
    # Of more groupings than there are, one of the first few is wrong.
    for place, grouping in enumerate(request.group_by[:_MAX_NAMED]):
        if grouping not in _TO_GROUPING:
            wrong.append(FieldViolation(f"group_by[{place}]", "must be a UsageGrouping other than unspecified"))
        elif grouping in request.group_by[:place]:
            wrong.append(FieldViolation(f"group_by[{place}]", "must not be repeated"))
        else:
            yield _TO_GROUPING[grouping]


def to_quota_request(request: upb.GetQuotaRequest) -> QuotaRequest:
    """Read a request for quotas."""
    return validated(QuotaRequest, {"author": request.author or None})


def to_content_request(request: pb.GetImageContentRequest | dpb.DownloadImageRequest) -> ContentRequest:
    """Read a request for bytes."""
    return validated(
        ContentRequest,
        {
            "guid": request.guid,
            "read_offset": request.read_offset,
            "read_limit": request.read_limit,
            "if_none_match": request.if_none_match or None,
            "rendition": _EDGES.get(request.rendition, _UNKNOWN) if request.rendition else None,
        },
    )


def to_thumbnails_request(request: pb.BatchGetThumbnailsRequest) -> ThumbnailsRequest:
    """Read a request for thumbnails."""
    edge = {"rendition": _EDGES.get(request.rendition, _UNKNOWN)} if request.rendition else {}
    return validated(ThumbnailsRequest, {"guids": tuple(request.guids), **edge})


def to_image_changes(request: pb.UpdateImageRequest) -> ImageChanges:
    """Read a request to change an image, of which the mask says what to change."""
    values: dict[str, Any] = {"guid": request.guid}
    wrong: list[FieldViolation] = []
    for field in _masked_fields(request, wrong):
        value = getattr(request, field)
        values[field] = tuple(value) if field == "tags" else value
    return validated(ImageChanges, values, wrong)


def _masked_fields(request: pb.UpdateImageRequest, wrong: list[FieldViolation]) -> list[str]:
    """Return the fields to change: those in the mask, or, without one, those that are set (AIP-134)."""
    mask: FieldMask = request.update_mask
    # A name is its own JSON name here, but a client may send a path twice.
    paths = list(dict.fromkeys(mask.paths)) or [field for field in _UPDATABLE if getattr(request, field)]
    if not paths:
        wrong.append(FieldViolation("update_mask", f"must name at least one of {', '.join(_UPDATABLE)}"))
    wrong.extend(
        FieldViolation("update_mask", f"may name only {', '.join(_UPDATABLE)}, not {path[:64]!a}")
        for path in [path for path in paths if path not in _UPDATABLE][:_MAX_NAMED]
    )
    return [path for path in paths if path in _UPDATABLE]


def _to_page(request: pb.ListImagesRequest | gpb.ListGenerationsRequest, wrong: list[FieldViolation]) -> dict[str, Any]:
    if request.page_size < 0:
        wrong.append(
            FieldViolation("page_size", f"must not be negative; 0 means {DEFAULT_PAGE_SIZE}, at most {MAX_PAGE_SIZE}")
        )
    return {
        "page_size": min(max(0, request.page_size), MAX_PAGE_SIZE) or DEFAULT_PAGE_SIZE,
        "page_token": request.page_token or None,
    }


def _to_time(
    request: pb.ListImagesRequest | gpb.ListGenerationsRequest | upb.SummarizeUsageRequest,
    field: str,
    wrong: list[FieldViolation],
    *,
    round_up: bool = False,
) -> datetime | None:
    """Read a time in whole microseconds, which is as finely as times are stored."""
    if not request.HasField(field):
        return None
    timestamp: Timestamp = getattr(request, field)
    try:
        time = timestamp.ToDatetime(tzinfo=UTC)
        if round_up and timestamp.nanos % 1000:
            # There is no later time than the last one, and nothing is as late as that.
            time = min(time, _LAST_TIME - _MICROSECOND) + _MICROSECOND
        return time
    except (ValueError, OverflowError):
        wrong.append(
            FieldViolation(field, "must be a time from 0001-01-01T00:00:00Z to 9999-12-31T23:59:59.999999999Z")
        )
        return None


# --- Out -------------------------------------------------------------------------------------------------------------


def from_image(image: Image) -> pb.ImageDetail:
    """Write an image."""
    return pb.ImageDetail(
        guid=image.guid,
        filename=image.filename,
        prompt=image.prompt,
        tags=image.tags,
        author=image.author,
        visibility=cast(pb.Visibility, image.visibility.value),
        content_type=image.content_type,
        size_bytes=image.size_bytes,
        sha256=image.sha256,
        width=image.width,
        height=image.height,
        model=image.model,
        created_at=_from_time(image.created_at),
        updated_at=_from_time(image.updated_at),
        usage=None if image.usage is None else pb.Usage(**_set_fields(image.usage)),
        options=None if image.options is None else pb.GenerationOptions(**_set_fields(image.options)),
        origin=cast(pb.Origin, image.origin.value),
        source_guids=image.source_guids,
        cost=None if image.cost is None else pb.Cost(**dict(image.cost)),
        placeholder=image.placeholder or b"",
    )


def _set_fields(model: Usage | GenerationOptions) -> dict[str, Any]:
    return {name: value for name, value in model if value is not None}


def from_image_page(page: ImagePage) -> pb.ListImagesResponse:
    """Write a page of images."""
    return pb.ListImagesResponse(
        images=[from_image(image) for image in page.images], next_page_token=page.next_page_token or ""
    )


def from_generation(generation: GenerationDetail) -> gpb.Generation:
    """Write a generation."""
    has_failed = generation.state in (GenerationState.FAILED, GenerationState.OUTCOME_UNKNOWN)
    return gpb.Generation(
        guid=generation.guid,
        request_id=generation.request_id or "",
        author=generation.author,
        state=_FROM_STATE[generation.state],
        request=None if generation.creation is None else _from_image_creation(generation.creation),
        image_guid=generation.image_guid,
        created_at=_from_time(generation.created_at),
        submitted_at=None if generation.submitted_at is None else _from_time(generation.submitted_at),
        finished_at=None if generation.finished_at is None else _from_time(generation.finished_at),
        attempts=generation.attempts,
        image=None if generation.image is None else from_image(generation.image),
        error=_from_error_record(generation.error) if has_failed and generation.error is not None else None,
    )


def from_generation_page(page: GenerationPage) -> gpb.ListGenerationsResponse:
    """Write a page of generations."""
    return gpb.ListGenerationsResponse(
        generations=[from_generation(generation) for generation in page.generations],
        next_page_token=page.next_page_token or "",
    )


def from_generation_event(event: GenerationDetail | PartialImage) -> Iterator[gpb.WatchGenerationResponse]:
    """Write what watchers of a generation are sent, partial images in pieces."""
    if isinstance(event, GenerationDetail):
        yield gpb.WatchGenerationResponse(generation=from_generation(event))
        return
    yield gpb.WatchGenerationResponse(
        partial_image=gpb.PartialImage(index=event.index, content_type=event.content_type, size_bytes=len(event.data))
    )
    for start in range(0, len(event.data), CHUNK_SIZE):
        yield gpb.WatchGenerationResponse(data=event.data[start : start + CHUNK_SIZE])


def from_usage_rows(rows: Iterable[UsageRow]) -> upb.SummarizeUsageResponse:
    """Write a summary of what was spent."""
    return upb.SummarizeUsageResponse(rows=[upb.UsageRow(**dict(row)) for row in rows])


def from_quotas(quotas: Iterable[Quota]) -> upb.GetQuotaResponse:
    """Write the quotas of an author."""
    return upb.GetQuotaResponse(quotas=[upb.Quota(**dict(quota)) for quota in quotas])


def _from_image_creation(creation: ImageCreation) -> pb.CreateImageRequest:
    options = _set_fields(creation.options)
    return pb.CreateImageRequest(
        prompt=creation.detail.prompt,
        tags=creation.detail.tags,
        visibility=cast(pb.Visibility, creation.detail.visibility.value),
        filename=creation.detail.filename or "",
        request_id=creation.request_id or "",
        options=pb.GenerationOptions(**options) if options else None,
        inputs=[pb.ImageInput(guid=image.guid) for image in creation.inputs],
        mask=None if creation.mask is None else pb.ImageInput(guid=creation.mask.guid),
    )


def _from_error_record(record: str) -> gpb.GenerationError:
    error = from_record(record)
    return gpb.GenerationError(
        code=statuses.code_of(error),
        reason=statuses.reason_of(error),
        message=statuses.message_of(error),
        metadata={"field": error.field}
        if isinstance(error, (ProviderRequestInvalidError, PriceUnknownError))
        else statuses.metadata_of(error),
        retry_after=statuses.retry_delay_of(error),
    )


def from_content(content: ImageContent) -> Iterable[pb.GetImageContentResponse | bytes]:
    """Write the bytes of an image: first what they are, then they themselves, as messages that are serialised already.

    In a protobuf message they would be copied twice more; see docs/decisions/api.md.
    """
    image = content.image
    yield pb.GetImageContentResponse(
        info=pb.ContentInfo(
            guid=image.guid,
            filename=image.filename,
            content_type=image.content_type,
            size_bytes=image.size_bytes,
            sha256=image.sha256,
            not_modified=not content.is_modified,
            rendition=pb.RENDITION_UNSPECIFIED if content.rendition is None else _RENDITIONS[content.rendition],
            width=image.width,
            height=image.height,
        )
    )
    yield from (_data_message(data, pb.GetImageContentResponse) for data in content.chunks())


def from_download(content: ImageContent) -> Iterator[HttpBody | bytes]:
    """Write the bytes of an image as HTTP bodies.

    Raises:
        OffsetOutOfRangeError: there are no bytes in the range, for which HTTP has no answer but an error.
    """
    if content.is_modified and not content.count:
        raise OffsetOutOfRangeError(content.offset, content.image.size_bytes)
    chunks = content.chunks()
    yield HttpBody(content_type=content.image.content_type, data=next(chunks, b""))
    yield from (_data_message(data, HttpBody) for data in chunks)


def from_content_to_headers(content: ImageContent, request: ContentRequest) -> Iterator[tuple[str, str]]:
    """Write the headers of the HTTP response, as the proto file describes them."""
    image = content.image
    yield "etag", f'"{image.sha256}"'
    # The bytes never change, but the image may be deleted, or hidden from the caller.
    yield "cache-control", "private, no-cache"
    if not content.is_modified:
        yield _HTTP_CODE, "304"
        return
    yield "x-http-content-length", str(content.count)
    if request.read_offset or request.read_limit:
        yield _HTTP_CODE, "206"
        yield "content-range", f"bytes {content.offset}-{content.offset + content.count - 1}/{image.size_bytes}"


def from_offset_error_to_headers(error: OffsetOutOfRangeError) -> Iterator[tuple[str, str]]:
    """Write the headers of the HTTP response for a range that the image does not have."""
    yield _HTTP_CODE, "416"
    yield "content-range", f"bytes */{error.size}"


def from_thumbnails(thumbnails: Thumbnails) -> pb.BatchGetThumbnailsResponse:
    """Write thumbnails."""
    return pb.BatchGetThumbnailsResponse(
        thumbnails=[
            pb.Thumbnail(guid=thumbnail.guid, error=statuses.reason_of(thumbnail.error))
            if thumbnail.error is not None
            else pb.Thumbnail(
                guid=thumbnail.guid,
                data=thumbnail.data,
                content_type=RENDITION_TYPE,
                width=thumbnail.width,
                height=thumbnail.height,
            )
            for thumbnail in thumbnails.thumbnails
        ],
        next_guids=thumbnails.next_guids,
    )


def _data_message(data: bytes, kind: Callable[..., Any]) -> bytes:
    """Serialise a message that holds nothing but data."""
    return b"".join((_before_data(len(data), kind), data))


@lru_cache
def _before_data(length: int, kind: Callable[..., Any]) -> bytes:
    """Return what comes before so many bytes of data in a serialised message."""
    message: bytes = kind(data=bytes(length)).SerializeToString()
    return message[: len(message) - length]


def _from_time(time: datetime) -> Timestamp:
    # Timestamp.FromDatetime takes five times as long, and there are two of these in every image.
    since = time - _EPOCH
    return Timestamp(seconds=since.days * _DAY_SECONDS + since.seconds, nanos=since.microseconds * 1000)
