"""The results of calls. Times are aware and in UTC."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from pixyproxy_pb.v1 import image_service_pb2 as pb


class Visibility(IntEnum):
    """Who may read an image. The numbers are those of the API."""

    PRIVATE = 1
    PUBLIC = 2


class Origin(IntEnum):
    """Where an image comes from. The numbers are those of the API."""

    GENERATED = 1
    EDITED = 2
    IMPORTED = 3


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that the provider counted for one generation.

    Attributes:
        input_tokens: of the prompt and of input images.
        output_tokens: of the image.
        total_tokens: both together.
        input_text_tokens: of the input, those of texts. This one and the next three are None where the provider did
            not say.
        input_image_tokens: of the input, those of images.
        output_text_tokens: of the output, those of texts.
        output_image_tokens: of the output, those of images.
    """

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_text_tokens: int | None = None
    input_image_tokens: int | None = None
    output_text_tokens: int | None = None
    output_image_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """The options that an image was generated with, by their names in CreateOptions; empty, 0 or None if not used."""

    model: str = ""
    size: str = ""
    quality: str = ""
    output_format: str = ""
    background: str = ""
    moderation: str = ""
    output_compression: int | None = None
    partial_images: int = 0
    input_fidelity: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return those that were used, as ``create_image`` takes them."""
        return {name: value for name, value in asdict(self).items() if value != getattr(_NO_OPTIONS, name)}


_NO_OPTIONS = GenerationOptions()


@dataclass(frozen=True, slots=True)
class ImageDetail:
    """The details of an image.

    Attributes:
        guid: its id, a UUID.
        filename: chosen by its author: check it before you use it as a path.
        prompt: the prompt.
        tags: in the given order.
        author: the username of its author.
        visibility: who may read it.
        content_type: the media type of its bytes, such as ``image/png``.
        size_bytes: the number of its bytes.
        sha256: the SHA-256 of its bytes, in lower-case hexadecimal.
        width: in pixels.
        height: in pixels.
        model: the model that generated it.
        created_at: when it was generated.
        updated_at: when its filename, tags or visibility last changed.
        usage: the tokens that the provider counted, or None.
        options: the options that the provider says it used, otherwise those that it was asked for; None for imported
            images, and for images of releases that did not keep them.
        origin: where it comes from.
        source_guids: the images that it was made from, as far as they exist and you may see them.
    """

    guid: str
    filename: str
    prompt: str
    tags: tuple[str, ...]
    author: str
    visibility: Visibility
    content_type: str
    size_bytes: int
    sha256: str
    width: int
    height: int
    model: str
    created_at: datetime
    updated_at: datetime
    usage: Usage | None
    options: GenerationOptions | None
    origin: Origin
    source_guids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImagePage:
    """A page of images, newest first; ``next_page_token`` is empty on the last one."""

    images: tuple[ImageDetail, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """The image whose bytes are read.

    Attributes:
        guid: the image's guid.
        filename: chosen by its author: check it before you use it as a path.
        content_type: the media type of the bytes.
        size_bytes: the size of the whole image.
        sha256: the SHA-256 of the whole image, in lower-case hexadecimal.
        not_modified: whether the caller has these bytes already; if so, none follow.
    """

    guid: str
    filename: str
    content_type: str
    size_bytes: int
    sha256: str
    not_modified: bool


def to_detail(image: pb.ImageDetail) -> ImageDetail:
    """Convert a message."""
    return ImageDetail(
        guid=image.guid,
        filename=image.filename,
        prompt=image.prompt,
        tags=tuple(image.tags),
        author=image.author,
        visibility=Visibility(image.visibility),
        content_type=image.content_type,
        size_bytes=image.size_bytes,
        sha256=image.sha256,
        width=image.width,
        height=image.height,
        model=image.model,
        created_at=image.created_at.ToDatetime(tzinfo=UTC),
        updated_at=image.updated_at.ToDatetime(tzinfo=UTC),
        usage=_to_usage(image.usage) if image.HasField("usage") else None,
        options=_to_options(image.options) if image.HasField("options") else None,
        # A server of the first release does not say it, and generates all images.
        origin=Origin(image.origin or Origin.GENERATED),
        source_guids=tuple(image.source_guids),
    )


def _to_usage(usage: pb.Usage) -> Usage:
    parts = {field.name: value for field, value in usage.ListFields() if field.has_presence}
    return Usage(usage.input_tokens, usage.output_tokens, usage.total_tokens, **parts)


def _to_options(options: pb.GenerationOptions) -> GenerationOptions:
    return GenerationOptions(**{field.name: value for field, value in options.ListFields()})


def to_page(page: pb.ListImagesResponse) -> ImagePage:
    """Convert a message."""
    return ImagePage(tuple(to_detail(image) for image in page.images), page.next_page_token)


def to_content_info(info: pb.ContentInfo) -> ContentInfo:
    """Convert a message."""
    return ContentInfo(
        guid=info.guid,
        filename=info.filename,
        content_type=info.content_type,
        size_bytes=info.size_bytes,
        sha256=info.sha256,
        not_modified=info.not_modified,
    )
