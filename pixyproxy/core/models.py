"""The objects of PixyProxy as pydantic models.

For each object X, ``XCreate`` has the fields to create one, ``XUpdate`` adds its guid, and ``X`` adds what the server
sets. ``Image`` adds integer ids to ``ImageDetail``; they never leave the server.

The types of single values are in ``pixyproxy.core.fields``. Times are aware and in UTC.

Author: djjay
Date: 2026-11-20
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pixyproxy.core.exceptions import PixyProxyException
from pixyproxy.core.fields import (
    THUMBNAIL_EDGES,
    Background,
    CheckedVisibility,
    Compression,
    Description,
    Edge,
    Filename,
    FilenamePart,
    GenerationState,
    Guid,
    InputCount,
    InputFidelity,
    ModelName,
    Moderation,
    Origin,
    OutputFormat,
    PartialImages,
    Password,
    Prompt,
    Quality,
    SearchText,
    Sha256,
    Size,
    Tags,
    ThumbnailEdge,
    ThumbnailGuids,
    UserClass,
    Username,
    Visibility,
    broken_rule,
    check_prompt,
)
from pixyproxy.core.provider_limits import background_problem, compression_problem

MAX_USAGE_DAYS = 400
# So many rows take less than 4 MiB, over which gRPC clients refuse messages by default.
MAX_USAGE_ROWS = 10_000
MAX_USD_PER_DAY = 1_000_000
MAX_IMAGES_PER_DAY = 1_000_000_000
MAX_GENERATIONS_AT_ONCE = 1_000_000
UNLIMITED = -1
"""Stored as the limit of a user who is exempt from the server's default."""
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 200
MAX_IMPORT_BYTES = 64 * 1024 * 1024
# By default, gRPC clients refuse messages over 4 MiB.
MAX_PAGE_BYTES = 3 * 1024 * 1024


def _is_unset(value: object) -> bool:
    return value is None or value == ()


class Model(BaseModel):
    """The base of all models: frozen, without unknown fields, and validated again by ``model_validate``."""

    model_config = ConfigDict(frozen=True, extra="forbid", revalidate_instances="always", hide_input_in_errors=True)

    @classmethod
    def of_checked(cls, values: dict[str, Any]) -> Self:
        """Make a model from values for all of its fields that are known to be valid. The dict is not copied.

        Unlike ``model_construct``, it supports no aliases and no defaults; it is four times as fast.
        """
        model = cls.__new__(cls)
        for name, value in (
            ("__dict__", values),
            ("__pydantic_fields_set__", set(values)),
            ("__pydantic_extra__", None),
            ("__pydantic_private__", None),
        ):
            object.__setattr__(model, name, value)
        return model


# --- Images ----------------------------------------------------------------------------------------------------------


class Usage(Model):
    """The tokens that the provider counted for one generation; those of texts and images are None if it did not say."""

    input_tokens: int = Field(ge=0)
    output_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    input_text_tokens: int | None = Field(default=None, ge=0)
    input_image_tokens: int | None = Field(default=None, ge=0)
    output_text_tokens: int | None = Field(default=None, ge=0)
    output_image_tokens: int | None = Field(default=None, ge=0)


class Cost(Model):
    """What the provider charges for an image.

    Attributes:
        nano_usd: in billionths of a US dollar.
        price_list: the name of the price list that it was computed with.
    """

    nano_usd: int = Field(ge=0)
    price_list: str


class GenerationOptions(Model):
    """The options of a generation; None takes the server's default, or the provider's where the server has none."""

    model: ModelName | None = None
    size: Size | None = None
    quality: Quality | None = None
    output_format: OutputFormat | None = None
    background: Background | None = None
    # Omitted from the JSON if unset, so that requests of earlier releases keep their fingerprints.
    partial_images: PartialImages | None = Field(default=None, exclude_if=_is_unset)
    moderation: Moderation | None = Field(default=None, exclude_if=_is_unset)
    output_compression: Compression | None = Field(default=None, exclude_if=_is_unset)
    input_fidelity: InputFidelity | None = Field(default=None, exclude_if=_is_unset)

    @field_validator("background")
    @classmethod
    def _check_transparent(cls, background: str | None, others: ValidationInfo) -> str | None:
        problem = background_problem(background, others.data.get("output_format"))
        if problem is not None:
            raise broken_rule(problem)
        return background

    @field_validator("output_compression")
    @classmethod
    def _check_compressible(cls, compression: int | None, others: ValidationInfo) -> int | None:
        problem = compression_problem(compression, others.data.get("output_format"))
        if problem is not None:
            raise broken_rule(problem)
        return compression


class ImageDetailCreate(Model):
    """The caller's description of a new image. By default, the filename is made from the prompt."""

    prompt: Prompt
    filename: Filename | None = None
    tags: Tags = ()
    visibility: CheckedVisibility = Visibility.PRIVATE


class ImageDetailUpdate(ImageDetailCreate):
    """An image as a caller may change it."""

    guid: Guid


class ImageDetail(ImageDetailUpdate):
    """An image as callers see it.

    Attributes:
        prompt: the prompt; of an imported image the description, which may be empty.
        filename: as given by the caller, or made from the prompt.
        author: the username of its author.
        content_type: the media type of its bytes.
        size_bytes: the number of its bytes.
        sha256: the SHA-256 of its bytes in lower-case hexadecimal.
        width: in pixels.
        height: in pixels.
        model: the model that generated it; empty for imported images.
        usage: the tokens that the provider counted, or None.
        options: the options that were used; None for imported images, and for those of earlier releases.
        origin: where it comes from.
        source_guids: the images that it was made from.
        cost: what the provider charges for it, or None if that is unknown. In a detail in which the field is not set,
            such as that of an earlier release, nobody has tried to determine it.
        placeholder: its ThumbHash; None until that is computed, shortly after it was committed.
        created_at: when it was generated or imported.
        updated_at: when its filename, tags or visibility last changed.
    """

    prompt: Description
    filename: Filename
    author: Username
    content_type: str
    size_bytes: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    model: str
    usage: Usage | None = None
    options: GenerationOptions | None = None
    origin: Origin = Origin.GENERATED
    source_guids: tuple[Guid, ...] = ()
    cost: Cost | None = None
    placeholder: bytes | None = None
    created_at: datetime
    updated_at: datetime

    @model_validator(mode="after")
    def _check_has_prompt(self) -> Self:
        if self.origin is not Origin.IMPORTED:
            check_prompt(self.prompt)
        return self


class Image(ImageDetail):
    """An image with the integer ids of itself and of its author."""

    id: int
    author_id: int


class ImageFile(Model):
    """The part of an ``Image`` that reading its bytes needs; ``visibility`` is the number of its ``Visibility``."""

    guid: Guid
    author_id: int
    visibility: int
    filename: Filename
    content_type: str
    size_bytes: int
    sha256: str
    width: int
    height: int


class ImageChanges(Model):
    """Changes of an image; None leaves a field unchanged."""

    guid: Guid
    filename: Filename | None = None
    tags: Tags | None = None
    visibility: CheckedVisibility | None = None

    def changed_fields(self) -> dict[str, Any]:
        """Return the new values by field name."""
        return {name: value for name, value in self if name != "guid" and value is not None}


class GenerationDefaults(Model):
    """The defaults for the fields of ``GenerationOptions``."""

    model: ModelName
    size: Size
    quality: Quality
    output_format: OutputFormat
    background: Background

    def under(self, options: GenerationOptions) -> dict[str, Any]:
        """Return the options of a request by name, and the defaults for those that it leaves open."""
        return dict(self) | {name: value for name, value in options if value is not None}


class ImageInput(Model):
    """A stored image that a new one is made from.

    Attributes:
        guid: the image's guid.
        sha256: the SHA-256 that its bytes had when the request was recorded; None before that.
    """

    guid: Guid
    sha256: str | None = Field(default=None, exclude_if=_is_unset)


class ImageCreation(Model):
    """A request for a generation.

    Attributes:
        detail: the caller's description of the image.
        options: the options of the generation.
        request_id: the caller's idempotency key, or None.
        inputs: the images to edit; empty for an image from the prompt alone.
        mask: the image that marks the part of the first input to change, or None.
    """

    detail: ImageDetailCreate
    options: GenerationOptions = GenerationOptions()
    request_id: Guid | None = None
    # Omitted if unset, like the later options.
    inputs: Annotated[tuple[ImageInput, ...], InputCount] = Field(default=(), exclude_if=_is_unset)
    mask: ImageInput | None = Field(default=None, exclude_if=_is_unset)

    @field_validator("mask")
    @classmethod
    def _check_mask(cls, mask: ImageInput | None, others: ValidationInfo) -> ImageInput | None:
        if mask is not None and not others.data.get("inputs", True):
            raise broken_rule("needs at least one image in inputs, to which it applies")
        return mask


class ImageImport(ImageDetailCreate):
    """A request to store an image of the caller's own, without its bytes.

    Attributes:
        prompt: the description of the image; may be empty.
        request_id: the caller's idempotency key, or None.
        sha256: the SHA-256 that the bytes must have, in lower-case hexadecimal, or None.
    """

    prompt: Description = ""
    request_id: Guid | None = None
    sha256: Sha256 | None = None


class PagePosition(NamedTuple):
    """A position in an order of rows: newest first, and the highest id first among equal times."""

    created_at: datetime
    id: int


class ImageFilter(Model):
    """Conditions for images; an image must meet all that are set.

    A page token is bound to their JSON: a later field needs ``exclude_if=_is_unset``, so that tokens stay valid.

    Attributes:
        prompt: words of the prompt; the last one may be the start of a word.
        filename: a part of the filename, case-insensitive.
        guid: the image's guid.
        tags: tags that the image must all have.
        author: the username of its author.
        visibility: who may read it.
        created_after: exclusive.
        created_before: exclusive.
    """

    prompt: SearchText | None = None
    filename: FilenamePart | None = None
    guid: Guid | None = None
    tags: Tags = ()
    author: Username | None = None
    visibility: CheckedVisibility | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


class ImagePageRequest(Model):
    """A request for a page of images; ``page_token`` is None for the first page."""

    filter: ImageFilter = ImageFilter()
    page_size: int = Field(default=DEFAULT_PAGE_SIZE, ge=1, le=MAX_PAGE_SIZE)
    page_token: str | None = None


class ImagePage(Model):
    """A page of images, newest first; ``next_page_token`` is None on the last page, and only there."""

    images: tuple[Image, ...]
    next_page_token: str | None = None


class ContentRequest(Model):
    """A request for the bytes of an image.

    Attributes:
        guid: the image's guid.
        read_offset: the first byte, counted from 0.
        read_limit: the most bytes; 0 for all to the end.
        if_none_match: the SHA-256 of bytes that the caller has already, or None.
        rendition: the edge of the rendition in pixels; None for the original.
    """

    guid: Guid
    read_offset: NonNegativeInt = 0
    read_limit: NonNegativeInt = 0
    if_none_match: str | None = None
    rendition: Edge | None = None


class ThumbnailsRequest(Model):
    """A request for small renditions of several images; ``rendition`` is their edge in pixels."""

    guids: ThumbnailGuids = ()
    rendition: ThumbnailEdge = THUMBNAIL_EDGES[0]


@dataclass(frozen=True)
class Thumbnail:
    """A small rendition of an image: a WebP and its size in pixels, or the error because of which there is none."""

    guid: str
    data: bytes = b""
    width: int = 0
    height: int = 0
    error: PixyProxyException | None = None


@dataclass(frozen=True)
class Thumbnails:
    """Thumbnails in the order asked for, and the guids of those that were not ready or did not fit."""

    thumbnails: list[Thumbnail]
    next_guids: list[str]


# --- Generations -----------------------------------------------------------------------------------------------------


class GenerationDetail(Model):
    """A generation as callers see it.

    Attributes:
        id: its integer id, which never leaves the server.
        guid: its name.
        author: the username of the user that it was recorded for.
        state: how far it has come.
        creation: the request; None if the first release recorded it, or if it was removed because of its age.
        request_id: the idempotency key, or None.
        image_guid: the guid that its image has or will have.
        created_at: when it was recorded.
        submitted_at: when it was submitted last, or None.
        finished_at: when it reached a final state, or None.
        attempts: how often it was submitted.
        partials: how many partial images have come.
        error: the record of the error that ended it, or None; see ``pixyproxy.core.error_records``.
        image: its image; None if it has none, or if that was deleted.
    """

    id: int
    guid: Guid
    author: Username
    state: GenerationState
    creation: ImageCreation | None
    request_id: Guid | None
    image_guid: Guid
    created_at: datetime
    submitted_at: datetime | None
    finished_at: datetime | None
    attempts: int
    partials: int
    error: str | None
    image: Image | None = None


class GenerationKey(Model):
    """Names a generation, either by its guid or by the request id of one of the caller's own requests."""

    guid: Guid | None = None
    request_id: Guid | None = None


class GenerationFilter(Model):
    """Conditions for generations; a generation must meet all that are set.

    A later field needs ``exclude_if=_is_unset``, as for ``ImageFilter``.

    Attributes:
        states: any of these; empty means any.
        author: the username of the author.
        created_after: it was recorded later than this.
        created_before: it was recorded earlier than this.
    """

    states: tuple[GenerationState, ...] = ()
    author: Username | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


class GenerationPageRequest(Model):
    """A request for one page of generations; ``page_token`` is None for the first one."""

    filter: GenerationFilter = GenerationFilter()
    page_size: int = Field(default=DEFAULT_PAGE_SIZE, ge=1, le=MAX_PAGE_SIZE)
    page_token: str | None = None


class GenerationPage(Model):
    """A page of generations, newest first; ``next_page_token`` is None on the last one."""

    generations: tuple[GenerationDetail, ...]
    next_page_token: str | None = None


class PartialImage(Model):
    """An unfinished image; ``index`` counts those of a generation from 0 on."""

    index: int
    content_type: str
    data: bytes


# --- Usage -----------------------------------------------------------------------------------------------------------


class UsageGrouping(StrEnum):
    """What the rows of a summary may be grouped by; the values are the names of the fields."""

    AUTHOR = "author"
    MODEL = "model"
    DAY = "day"


class UsageRequest(Model):
    """A request for a summary of what was spent.

    Attributes:
        start: the beginning of the period; None for that of the month of its last day.
        end: its end, exclusive; None for the present.
        group_by: what to group the rows by; empty for a single row.
        author: the username of the author; None for the caller, for an admin everybody.
    """

    start: datetime | None = None
    end: datetime | None = None
    group_by: tuple[UsageGrouping, ...] = ()
    author: Username | None = None


class UsageRow(Model):
    """What was spent in a group.

    Attributes:
        author: the username of the author; empty unless the rows are grouped by author.
        model: the model; empty unless the rows are grouped by model.
        day: the day in UTC as YYYY-MM-DD; empty unless the rows are grouped by day.
        images: how many images were generated.
        unknown_outcomes: how many generations may have been billed without an image; no other number includes them.
        input_tokens: the input tokens of the images, as far as they are known.
        output_tokens: the output tokens of the images, as far as they are known.
        nano_usd: their costs, as far as they are known.
        images_without_cost: how many of the images have an unknown cost.
    """

    author: str = ""
    model: str = ""
    day: str = ""
    images: int = 0
    unknown_outcomes: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    nano_usd: int = 0
    images_without_cost: int = 0


class QuotaName(StrEnum):
    """What is limited for each author; the values are the names of the API."""

    USD_PER_DAY = "usd_per_day"
    IMAGES_PER_DAY = "images_per_day"
    GENERATIONS_AT_ONCE = "generations_at_once"


class QuotaLimits(Model):
    """The limits of an author; None means no limit. Days are those of UTC.

    In the stored limits of a user, None means the server's default, and ``UNLIMITED`` no limit.

    Attributes:
        nano_usd_per_day: the most that may be spent on a day, in billionths of a US dollar.
        images_per_day: the most images that may be generated on a day.
        generations_at_once: the most generations that may be submitted at a time.
    """

    nano_usd_per_day: int | None = Field(default=None, ge=UNLIMITED, le=MAX_USD_PER_DAY * 10**9)
    images_per_day: int | None = Field(default=None, ge=UNLIMITED, le=MAX_IMAGES_PER_DAY)
    generations_at_once: int | None = Field(default=None, ge=UNLIMITED, le=MAX_GENERATIONS_AT_ONCE)

    @property
    def has_any(self) -> bool:
        """Whether anything is limited."""
        return any(limit is not None for _, limit in self)

    def over(self, defaults: QuotaLimits) -> QuotaLimits:
        """Return the limits that hold for a user with these stored limits."""
        chosen = {name: getattr(defaults, name) if limit is None else limit for name, limit in self}
        return QuotaLimits.of_checked({name: None if limit == UNLIMITED else limit for name, limit in chosen.items()})


class QuotaRequest(Model):
    """A request for the quotas of an author; None for those of the caller."""

    author: Username | None = None


class Quota(Model):
    """A limit of an author, and what is used of it.

    Attributes:
        name: what is limited.
        limit: the limit, in billionths of a US dollar or as a count.
        used: what is used of it.
        reserved: what submitted generations may use of it.
        resets_at: when ``used`` becomes 0; None if it does not.
    """

    name: QuotaName
    limit: int
    used: int
    reserved: int = 0
    resets_at: datetime | None = None


# --- Users -----------------------------------------------------------------------------------------------------------


class UserCreate(Model):
    """A new user; ``password`` is in plain text."""

    username: Username
    password: Password
    class_key: UserClass = UserClass.USER


class UserUpdate(UserCreate):
    """A user as an operator may change it."""

    guid: Guid


class User(UserUpdate):
    """A user as it is stored; ``password`` is its Argon2id hash."""

    id: int
    created_at: datetime
    updated_at: datetime


class Caller(Model):
    """The user who makes a call, with verified credentials."""

    user_id: int
    guid: Guid
    username: Username
    class_key: UserClass

    @property
    def is_admin(self) -> bool:
        """Whether the caller may see and change all images."""
        return self.class_key is UserClass.ADMIN
