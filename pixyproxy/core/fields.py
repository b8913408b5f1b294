"""The fields of models: enumerations, and the types of texts and numbers with their rules.

Lengths are in characters (Unicode code points).

Author: djjay
Date: 2026-11-22
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable
from enum import IntEnum, StrEnum
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_core import PydanticCustomError

from pixyproxy.core.search_terms import query_terms
from pixyproxy.core.text import exact_key, has_control_characters

MAX_PROMPT_LENGTH = 32_000
MAX_FILENAME_LENGTH = 255
MAX_TAGS = 32
MAX_TAG_LENGTH = 64
MAX_USERNAME_LENGTH = 64
ADVISED_PASSWORD_LENGTH = 12
MAX_PASSWORD_LENGTH = 1024
MAX_MODEL_NAME_LENGTH = 64
MAX_THUMBNAILS = 200
MAX_PARTIAL_IMAGES = 3
MAX_COMPRESSION = 100
MAX_INPUTS = 16
MAX_SEARCH_LENGTH = 1024
# The cost of a search grows with the number of its terms.
MAX_SEARCH_TERMS = 24
RENDITION_EDGES = (256, 512, 1024, 2048)
"""The edges, in pixels, of the squares that renditions fit."""
THUMBNAIL_EDGES = (256, 512)

_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SHA256 = re.compile("[0-9a-f]{64}")
_SIZE = re.compile(r"auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")
_MODEL_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:/-]{{0,{MAX_MODEL_NAME_LENGTH - 1}}}")


class Visibility(IntEnum):
    """Who may read an image. The numbers are those of the API and of the database."""

    PRIVATE = 1
    PUBLIC = 2


class Origin(IntEnum):
    """Where an image comes from. The numbers are those of the API and of the database."""

    GENERATED = 1
    EDITED = 2
    IMPORTED = 3


class UserClass(StrEnum):
    """The rights of a user: a user changes own images, an admin all images."""

    ADMIN = "admin"
    USER = "user"


class GenerationState(StrEnum):
    """How far a generation has come. The values are those of the first release, whose servers may run beside ours.

    A generation that FAILED cost nothing and may be queued again. One whose outcome is unknown may have been billed
    and is never submitted again; if its image is found in the store later, it becomes SUCCEEDED.
    """

    QUEUED = "queued"
    SUBMITTED = "sent"
    SUCCEEDED = "stored"
    FAILED = "failed"
    CANCELLED = "cancelled"
    OUTCOME_UNKNOWN = "unknown"
    RECORDED = "recorded"
    """By a server of the first release, which is about to submit it, or died before it did."""
    IMPORTED = "imported"
    """Not a generation: its row has the request id of an import. No caller is shown it."""

    @property
    def is_final(self) -> bool:
        """Whether no worker changes it any more."""
        return self not in (GenerationState.QUEUED, GenerationState.SUBMITTED, GenerationState.RECORDED)


# --- Rules for single values -----------------------------------------------------------------------------------------


def broken_rule(rule: str) -> PydanticCustomError:
    """Return the error with which a validator refuses a value that breaks a rule."""
    return PydanticCustomError("rule", rule)


def _must(holds: Callable[[Any], object], rule: str) -> AfterValidator:
    """Return a validator that refuses values for which ``holds`` is false; ``rule`` is the message."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise broken_rule(rule)
        return value

    return AfterValidator(check)


def _at_most(limit: int, what: str) -> BeforeValidator:
    """Return a validator that refuses more than ``limit`` values, before any of them is validated."""

    def check(values: Any) -> Any:
        if isinstance(values, (list, tuple)) and len(values) > limit:
            raise broken_rule(f"must be at most {limit} {what}, not {len(values):,}")
        return values

    return BeforeValidator(check)


def check_prompt(prompt: str) -> str:
    """Return a prompt.

    Raises:
        PydanticCustomError: it breaks a rule.
    """
    return _check_text(prompt, MAX_PROMPT_LENGTH, multiline=True)


def _check_description(description: str) -> str:
    if description and not description.strip():
        raise broken_rule("must not be blank; it may be empty")
    return description and check_prompt(description)


def _check_text(text: str, max_length: int, *, multiline: bool = False) -> str:
    """Check the rules for every text; with ``multiline``, it may have tabs and line breaks."""
    if not text.strip():
        raise broken_rule(f"must not be empty or blank; it takes 1 to {max_length:,} characters")
    if len(text) > max_length:
        raise broken_rule(f"must have at most {max_length:,} characters, not {len(text):,}")
    if has_control_characters(text, multiline=multiline):
        which = "other than tab and line breaks" if multiline else "or line breaks"
        raise broken_rule(f"must not contain control characters {which}")
    return text


def _check_filename(filename: str) -> str:
    _check_text(filename, MAX_FILENAME_LENGTH)
    if "/" in filename or "\\" in filename:
        raise broken_rule("must not contain the path separators / and \\")
    if filename in (".", ".."):
        raise broken_rule("must be a name, not . or ..")
    return filename


def _without_repeats(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the tags without repetitions. Composed and decomposed forms of a text (é) are equal."""
    first_of_key: dict[str, str] = {}
    for tag in tags:
        first_of_key.setdefault(exact_key(tag), tag)
    return tuple(first_of_key.values())


def _check_username(username: str) -> str:
    _check_text(username, MAX_USERNAME_LENGTH)
    if ":" in username:
        raise broken_rule("must not contain a colon, which ends the username in HTTP Basic credentials")
    if username != username.strip():
        raise broken_rule("must not begin or end with a space")
    return username


def _check_search_text(query: str) -> str:
    terms = query_terms(query)
    if not terms:
        raise broken_rule("has no words to search for; leave it empty to find all")
    if len(terms) > MAX_SEARCH_TERMS:
        raise broken_rule(f"must have at most {MAX_SEARCH_TERMS} search terms, not {len(terms):,}")
    return query


def _check_visibility(visibility: Any) -> Any:
    if visibility is not None and visibility not in tuple(Visibility):
        raise broken_rule("must be VISIBILITY_PRIVATE (1) or VISIBILITY_PUBLIC (2)")
    return visibility


Guid = Annotated[
    str,
    AfterValidator(str.lower),
    _must(_GUID.fullmatch, "must be a UUID of 36 characters, such as 123e4567-e89b-42d3-a456-426614174000"),
]
Prompt = Annotated[str, AfterValidator(check_prompt)]
Description = Annotated[str, AfterValidator(_check_description)]
SearchText = Annotated[str, Field(max_length=MAX_SEARCH_LENGTH), AfterValidator(_check_search_text)]
FilenamePart = Annotated[str, Field(max_length=MAX_FILENAME_LENGTH)]
Filename = Annotated[str, AfterValidator(_check_filename)]
Tag = Annotated[str, AfterValidator(partial(_check_text, max_length=MAX_TAG_LENGTH))]
Tags = Annotated[tuple[Tag, ...], _at_most(MAX_TAGS, "tags"), AfterValidator(_without_repeats)]
Username = Annotated[str, AfterValidator(_check_username)]
Password = Annotated[
    SecretStr,
    _must(
        lambda password: 1 <= len(password.get_secret_value()) <= MAX_PASSWORD_LENGTH,
        f"must have 1 to {MAX_PASSWORD_LENGTH:,} characters",
    ),
]
ModelName = Annotated[
    str,
    _must(
        _MODEL_NAME.fullmatch,
        f"must be a model name of 1 to {MAX_MODEL_NAME_LENGTH} letters, digits and . _ : / -, "
        "beginning with a letter or digit",
    ),
]
Size = Annotated[str, _must(_SIZE.fullmatch, 'must be "auto" or WIDTHxHEIGHT in pixels, such as 1024x1024')]
PartialImages = Annotated[
    int, _must(range(MAX_PARTIAL_IMAGES + 1).__contains__, f"must be from 0 to {MAX_PARTIAL_IMAGES}")
]
Compression = Annotated[int, _must(range(MAX_COMPRESSION + 1).__contains__, f"must be from 0 to {MAX_COMPRESSION}")]
Edge = Annotated[
    int,
    _must(
        RENDITION_EDGES.__contains__,
        "must be a Rendition: RENDITION_256, RENDITION_512, RENDITION_1024 or RENDITION_2048",
    ),
]
ThumbnailEdge = Annotated[int, _must(THUMBNAIL_EDGES.__contains__, "must be RENDITION_256 or RENDITION_512")]
ThumbnailGuids = Annotated[tuple[Guid, ...], _at_most(MAX_THUMBNAILS, "guids")]
InputCount = _at_most(MAX_INPUTS, "images")
Sha256 = Annotated[
    str, AfterValidator(str.lower), _must(_SHA256.fullmatch, "must be a SHA-256 of 64 hexadecimal digits")
]
CheckedVisibility = Annotated[Visibility, BeforeValidator(_check_visibility)]
Quality = Literal["auto", "low", "medium", "high", "xhigh", "max"]
OutputFormat = Literal["png", "webp", "jpeg"]
Background = Literal["auto", "opaque", "transparent"]
Moderation = Literal["auto", "low"]
InputFidelity = Literal["low", "high"]


def new_guid() -> str:
    """Return a new random guid."""
    return str(uuid.uuid4())
