"""The models of generations, and how the messages of a watch are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

import grpc
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.client.errors import (
    FieldViolation,
    GenerationCancelledError,
    NotFoundError,
    OutcomeUnknownError,
    PixyProxyClientError,
    UnavailableError,
    kind_of,
)
from pixyproxy.client.models import ImageDetail, Visibility, copied, to_detail


class GenerationState(IntEnum):
    """How far a generation has come. The numbers are those of the API."""

    QUEUED = 1
    SUBMITTED = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5
    OUTCOME_UNKNOWN = 6

    @property
    def is_final(self) -> bool:
        """Whether the generation has ended."""
        return self not in (GenerationState.QUEUED, GenerationState.SUBMITTED)


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """What a generation was asked for.

    Attributes:
        prompt: what to generate.
        tags: the tags of the image.
        visibility: who may read the image.
        filename: the image's filename; empty if it is made from the prompt.
        options: the options that were given, such as ``size``, by their names in CreateOptions.
        inputs: the guids of the images to edit.
        mask: the guid of the mask; empty without one.
    """

    prompt: str
    tags: tuple[str, ...]
    visibility: Visibility
    filename: str
    options: Mapping[str, str | int]
    inputs: tuple[str, ...] = ()
    mask: str = ""


@dataclass(frozen=True, slots=True)
class GenerationError:
    """What ended a generation: the error that ``create_image`` would have raised.

    Attributes:
        code: the name of the gRPC status code.
        reason: the server's reason, such as ``PROMPT_REFUSED`` (docs/api.md lists all).
        message: one or two sentences for people.
        metadata: details by name, such as the ``categories`` of a refusal, or the ``field`` that is refused.
        retry_after: seconds after which a new attempt makes sense, or None.
    """

    code: str
    reason: str
    message: str
    metadata: Mapping[str, str]
    retry_after: float | None


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation.

    Attributes:
        guid: its name in the API, a UUID.
        request_id: the idempotency key of its request; empty if that had none.
        author: the username of the user it was recorded for.
        state: how far it has come.
        request: the request, or None if it was removed.
        image_guid: the guid that its image has or will have.
        created_at: when it was recorded.
        submitted_at: when it was submitted last, or None.
        finished_at: when it ended, or None.
        attempts: how often it was submitted.
        image: its image, once it has succeeded; None if that was deleted.
        error: what ended it, once it has failed or its outcome is unknown.
    """

    guid: str
    request_id: str
    author: str
    state: GenerationState
    request: ImageRequest | None
    image_guid: str
    created_at: datetime
    submitted_at: datetime | None
    finished_at: datetime | None
    attempts: int
    image: ImageDetail | None
    error: GenerationError | None

    @property
    def prompt(self) -> str:
        """The prompt; empty if the request was removed."""
        return "" if self.request is None else self.request.prompt

    def result(self) -> ImageDetail:
        """Return the image.

        Raises:
            OutcomeUnknownError: it is unknown whether there is one; the reason says what happened.
            PixyProxyClientError: there is none; the class and the reason are those that ``create_image`` would raise.
            ValueError: the generation has not ended.
        """
        if self.image is not None:
            return self.image
        if self.state is GenerationState.SUCCEEDED:
            raise NotFoundError("The image was deleted.", reason="IMAGE_NOT_FOUND", code="NOT_FOUND")
        if self.state is GenerationState.CANCELLED:
            raise GenerationCancelledError(
                "The generation was cancelled before it was submitted; nothing was generated.",
                reason="GENERATION_CANCELLED",
                code="CANCELLED",
            )
        if self.error is None:
            raise ValueError("The generation has not ended.")
        raise self._exception(self.error)

    def _exception(self, error: GenerationError) -> PixyProxyClientError:
        code = grpc.StatusCode.__members__.get(error.code, grpc.StatusCode.UNKNOWN)
        # Whatever the provider did: the same request is never submitted again.
        is_unknown = self.state is GenerationState.OUTCOME_UNKNOWN
        exception = (OutcomeUnknownError if is_unknown else kind_of(code, error.reason))(
            error.message,
            reason=error.reason,
            code=error.code,
            violations=[FieldViolation(error.metadata["field"], error.message)]
            if error.reason == "INVALID_FIELD" and "field" in error.metadata
            else (),
            retry_after=error.retry_after,
            metadata=error.metadata,
        )
        exception.creation_request_id = self.request_id
        return exception


@dataclass(frozen=True, slots=True)
class PartialImage:
    """An unfinished image that shows how a generation comes along; never the result.

    Attributes:
        index: its number, from 0 on.
        content_type: the media type of its bytes.
        data: all of its bytes.
    """

    index: int
    content_type: str
    data: bytes


class Watch:
    """What the caller of a watch has seen, over any number of calls.

    Attributes:
        is_over: whether the generation has ended.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._shown: tuple[GenerationState, int] | None = None
        self._next_index = 0
        self._coming: gpb.PartialImage | None = None
        self._data = bytearray()

    def read(self, message: gpb.WatchGenerationResponse) -> Generation | PartialImage | None:
        """Read a message; return the state or partial image that it completes, or None if the caller has seen it."""
        match message.WhichOneof("event"):
            case "generation":
                return self._read_generation(to_generation(message.generation))
            case "partial_image":
                self._coming = message.partial_image
                self._data.clear()
            case "data" if self._coming is not None:
                self._data += message.data
                if len(self._data) >= self._coming.size_bytes:
                    return self._read_partial(self._coming)
        return None

    def broken_off(self) -> UnavailableError:
        """Return the error for a stream that ended in order, but before the generation."""
        return UnavailableError("The stream ended before the generation did.")

    def _read_generation(self, generation: Generation) -> Generation | None:
        self.is_over = generation.state.is_final
        progress = (generation.state, generation.attempts)
        if progress == self._shown:
            return None
        self._shown = progress
        return generation

    def _read_partial(self, announced: gpb.PartialImage) -> PartialImage | None:
        self._coming = None
        if announced.index < self._next_index:
            return None
        self._next_index = announced.index + 1
        return PartialImage(announced.index, announced.content_type, bytes(self._data))


def to_generation(generation: gpb.Generation) -> Generation:
    """Read a generation."""
    error = generation.error
    return copied(
        Generation,
        generation,
        state=GenerationState(generation.state),
        request=_to_request(generation.request) if generation.HasField("request") else None,
        created_at=generation.created_at.ToDatetime(UTC),
        submitted_at=generation.submitted_at.ToDatetime(UTC) if generation.HasField("submitted_at") else None,
        finished_at=generation.finished_at.ToDatetime(UTC) if generation.HasField("finished_at") else None,
        image=to_detail(generation.image) if generation.HasField("image") else None,
        error=copied(
            GenerationError,
            error,
            metadata=dict(error.metadata),
            retry_after=error.retry_after.ToMilliseconds() / 1000 if error.HasField("retry_after") else None,
        )
        if generation.HasField("error")
        else None,
    )


def _to_request(request: pb.CreateImageRequest) -> ImageRequest:
    return copied(
        ImageRequest,
        request,
        tags=tuple(request.tags),
        visibility=Visibility(request.visibility),
        options={field.name: value for field, value in request.options.ListFields()},
        inputs=tuple(image.guid for image in request.inputs),
        mask=request.mask.guid,
    )
