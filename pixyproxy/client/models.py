"""The results of calls. Times are aware and in UTC."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Literal, TypeVar, cast, get_args

from pixyproxy_pb.v1 import image_service_pb2 as pb

Model = TypeVar("Model")
Rendition = Literal[256, 512, 1024, 2048]
"""A small WebP copy of an image, by the most pixels across and down."""
RENDITIONS = {pixels: cast(pb.Rendition, pb.Rendition.Value(f"RENDITION_{pixels}")) for pixels in get_args(Rendition)}
_PIXELS = {number: pixels for pixels, number in RENDITIONS.items()}


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
        input_text_tokens: of the input, those of texts. This one and the next three are None if the provider did
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
class Cost:
    """What the provider charges for an image.

    Attributes:
        nano_usd: in billionths of a US dollar.
        price_list: the name of the price list that the server computed it with.
    """

    nano_usd: int
    price_list: str


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
        cost: what the provider charges for it, or None if that is unknown.
        placeholder: a ThumbHash, or empty until it is computed.
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
    cost: Cost | None
    placeholder: bytes


@dataclass(frozen=True, slots=True)
class ImagePage:
    """A page of images, newest first; ``next_page_token`` is empty on the last one."""

    images: tuple[ImageDetail, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """The image or rendition whose bytes are read.

    Attributes:
        guid: the image's guid.
        filename: of the image, chosen by its author: check it before you use it as a path.
        content_type: the media type of the bytes.
        size_bytes: the size of the whole image or rendition.
        sha256: the SHA-256 of the whole image or rendition, in lower-case hexadecimal.
        not_modified: whether the caller has these bytes already; if so, none follow.
        rendition: the most pixels across and down of the rendition; None for the original.
        width: in pixels.
        height: in pixels.
    """

    guid: str
    filename: str
    content_type: str
    size_bytes: int
    sha256: str
    not_modified: bool
    rendition: int | None = None
    width: int = 0
    height: int = 0


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small WebP copy of an image.

    Attributes:
        guid: the image's guid.
        data: the bytes; empty after an error.
        content_type: their media type.
        width: in pixels.
        height: in pixels.
        error: empty, or the reason why there is no thumbnail, such as ``IMAGE_NOT_FOUND``.
    """

    guid: str
    data: bytes
    content_type: str
    width: int
    height: int
    error: str


def copied(kind: type[Model], message: Any, **others: Any) -> Model:
    """Convert a message whose fields have the names of the model's; ``others`` are those with other values."""
    return kind(**{name: getattr(message, name) for name in kind.__annotations__ if name not in others}, **others)


def to_detail(image: pb.ImageDetail) -> ImageDetail:
    """Convert a message."""
    return copied(
        ImageDetail,
        image,
        tags=tuple(image.tags),
        visibility=Visibility(image.visibility),
        created_at=image.created_at.ToDatetime(tzinfo=UTC),
        updated_at=image.updated_at.ToDatetime(tzinfo=UTC),
        usage=_to_usage(image.usage) if image.HasField("usage") else None,
        options=_to_options(image.options) if image.HasField("options") else None,
        # A server of the first release does not say it, and generates all images.
        origin=Origin(image.origin or Origin.GENERATED),
        source_guids=tuple(image.source_guids),
        cost=Cost(image.cost.nano_usd, image.cost.price_list) if image.HasField("cost") else None,
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
    return copied(ContentInfo, info, rendition=_PIXELS.get(info.rendition))
