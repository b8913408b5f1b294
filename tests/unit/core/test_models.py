"""Every limit: what is just within it is taken, what is just beyond it refused, by name."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from pydantic import SecretStr, ValidationError

from pixyproxy.core.exceptions import FieldViolation, InvalidFieldError
from pixyproxy.core.fields import Background, OutputFormat, Quality, UserClass, Visibility, new_guid
from pixyproxy.core.models import (
    Caller,
    ContentRequest,
    GenerationOptions,
    Image,
    ImageChanges,
    ImageCreation,
    ImageDetail,
    ImageDetailCreate,
    ImageDetailUpdate,
    ImageFilter,
    ImagePageRequest,
    Model,
    Usage,
    User,
    UserCreate,
    UserUpdate,
)
from pixyproxy.core.validation import validated, validated_guid

GUID = "123e4567-e89b-42d3-a456-426614174000"
NOW = datetime(2026, 11, 20, tzinfo=UTC)
DETAIL: dict[str, Any] = {
    "guid": GUID,
    "prompt": "a fox",
    "filename": "fox.png",
    "author": "ann",
    "content_type": "image/png",
    "size_bytes": 1,
    "sha256": "0" * 64,
    "width": 1,
    "height": 1,
    "model": "gpt-image-2.5-flare",
    "created_at": NOW,
    "updated_at": NOW,
}
# What must be given besides the field in question.
NEEDED: dict[type[Model], dict[str, Any]] = {
    ImageDetailCreate: {"prompt": "a fox"},
    ImageDetail: DETAIL,
    ImageChanges: {"guid": GUID},
    ImageFilter: {},
    ImagePageRequest: {},
    GenerationOptions: {},
    ImageCreation: {"detail": {"prompt": "a fox"}},
    ContentRequest: {"guid": GUID},
    UserCreate: {"username": "ann", "password": "12345678"},
    Usage: {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
}

# Of two, three and four bytes, outside of the basic plane, of several code points, and with a mark of its own.
CHARACTERS = ["a", "é", "雪", "🍎", "𠮷", "e\u0301", "👩\u200d🚀"]


def taken(model: type[Model], field: str, value: Any) -> Any:
    return getattr(validated(model, NEEDED[model] | {field: value}), field)


def refused(model: type[Model], field: str, value: Any) -> FieldViolation:
    with pytest.raises(InvalidFieldError) as error:
        validated(model, NEEDED[model] | {field: value})
    (violation,) = error.value.violations
    return violation


def of_length(character: str, length: int) -> str:
    return (character * length)[:length]


# --- Lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "field", "limit", "named"),
    [
        (ImageDetailCreate, "prompt", 32_000, "at most 32,000 characters, not 32,001"),
        (ImageDetailCreate, "filename", 255, "at most 255 characters, not 256"),
        (ImageChanges, "filename", 255, "at most 255 characters, not 256"),
        (ImageFilter, "filename", 255, "at most 255 characters"),
        (ImageFilter, "author", 64, "at most 64 characters, not 65"),
        (UserCreate, "username", 64, "at most 64 characters, not 65"),
    ],
)
@pytest.mark.parametrize("character", CHARACTERS)
def test_texts_may_be_as_long_as_their_limit(
    model: type[Model], field: str, limit: int, named: str, character: str
) -> None:
    for length in (1, limit):
        text = of_length(character, length)
        assert taken(model, field, text) == text

    violation = refused(model, field, of_length(character, limit + 1))
    assert (violation.field, violation.description) == (field, f"must have {named}")


@pytest.mark.parametrize("model", [ImageDetailCreate, ImageChanges, ImageFilter])
@pytest.mark.parametrize("character", CHARACTERS)
def test_tags_may_be_as_long_and_as_many_as_their_limits(model: type[Model], character: str) -> None:
    tags = tuple(f"{number:02}{of_length(character, 62)}" for number in range(32))
    assert taken(model, "tags", tags) == tags

    violation = refused(model, "tags", ["fine", of_length(character, 65)])
    assert (violation.field, violation.description) == ("tags[1]", "must have at most 64 characters, not 65")

    for too_many in ([*tags, "x"], (*tags, "x")):
        violation = refused(model, "tags", too_many)
        assert (violation.field, violation.description) == ("tags", "must be at most 32 tags, not 33")


def test_passwords_have_a_least_and_a_most_length() -> None:
    for length in (1, 1024):
        password = taken(UserCreate, "password", "🍎" * length)
        assert password.get_secret_value() == "🍎" * length
    for length in (0, 1025):
        violation = refused(UserCreate, "password", "x" * length)
        assert (violation.field, violation.description) == ("password", "must have 1 to 1,024 characters")


def test_searches_may_be_as_long_and_have_as_many_terms_as_their_limits() -> None:
    words = [f"word{number}" for number in range(24)]
    for query in (" ".join(words), " ".join(words[:-1] + words), "雪" * 1024, "x" + " " * 1022 + "y"):
        assert taken(ImageFilter, "prompt", query) == query

    violation = refused(ImageFilter, "prompt", "x" * 1025)
    assert violation.description == "must have at most 1024 characters"
    violation = refused(ImageFilter, "prompt", " ".join([*words, "another"]))
    assert violation.description == "must have at most 24 search terms, not 25"


@pytest.mark.parametrize(
    ("model", "field", "least", "most"),
    [
        (ImagePageRequest, "page_size", 1, 200),
        (ContentRequest, "read_offset", 0, None),
        (ContentRequest, "read_limit", 0, None),
        (ImageDetail, "size_bytes", 1, None),
        (ImageDetail, "width", 1, None),
        (ImageDetail, "height", 1, None),
        (Usage, "input_tokens", 0, None),
        (Usage, "output_tokens", 0, None),
        (Usage, "total_tokens", 0, None),
    ],
)
def test_numbers_have_their_limits(model: type[Model], field: str, least: int, most: int | None) -> None:
    assert taken(model, field, least) == least
    assert refused(model, field, least - 1).field == field
    beyond_32_bits = 2**40
    if most is None:
        assert taken(model, field, beyond_32_bits) == beyond_32_bits
    else:
        assert taken(model, field, most) == most
        assert str(most) in refused(model, field, most + 1).description


# --- What texts may hold ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (ImageDetailCreate, "prompt"),
        (ImageDetailCreate, "filename"),
        (ImageChanges, "filename"),
        (UserCreate, "username"),
        (ImageFilter, "author"),
    ],
)
@pytest.mark.parametrize("blank", ["", " ", "\u00a0\u2003\u3000"], ids=["empty", "space", "other spaces"])
def test_nothing_is_no_text(model: type[Model], field: str, blank: str) -> None:
    description = refused(model, field, blank).description

    assert description.startswith("must not be empty or blank; it takes 1 to ")


def test_a_blank_tag_is_refused_where_it_stands() -> None:
    violation = refused(ImageDetailCreate, "tags", ["a", "b", "c", " "])

    assert violation.field == "tags[3]"
    assert "empty or blank" in violation.description


@pytest.mark.parametrize("control", ["\x00", "\x1b", "\x7f", "\x85", "\x9f", "\x0b", "\x0c"])
def test_no_text_holds_control_characters(control: str) -> None:
    text = f"a{control}b"

    assert "control characters" in refused(ImageDetailCreate, "prompt", text).description
    for model, field in ((ImageDetailCreate, "filename"), (ImageChanges, "filename"), (UserCreate, "username")):
        assert "control characters" in refused(model, field, text).description
    assert refused(ImageDetailCreate, "tags", [text]).field == "tags[0]"


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\t", "\u2028", "\u2029"])
def test_only_prompts_have_lines(line_break: str) -> None:
    text = f"a{line_break}b"

    assert taken(ImageDetailCreate, "prompt", text) == text
    for model, field in ((ImageDetailCreate, "filename"), (ImageChanges, "filename"), (UserCreate, "username")):
        assert "line breaks" in refused(model, field, text).description
    assert refused(ImageDetailCreate, "tags", [text]).field == "tags[0]"


@pytest.mark.parametrize("filename", ["a/b", "/", "a\\b", "..\\a", "../../etc/passwd"])
def test_a_filename_is_no_path(filename: str) -> None:
    for model in (ImageDetailCreate, ImageChanges, ImageDetail):
        assert "path separators" in refused(model, "filename", filename).description


@pytest.mark.parametrize("filename", [".", ".."])
def test_a_filename_is_a_name(filename: str) -> None:
    assert refused(ImageDetailCreate, "filename", filename).description == "must be a name, not . or .."


@pytest.mark.parametrize("filename", ["...", ".a", "a..b", " a ", "雪.png", "a:b?.png", "CON", "⁄∕"])
def test_a_filename_may_be_unusual(filename: str) -> None:
    assert taken(ImageDetailCreate, "filename", filename) == filename


@pytest.mark.parametrize(
    ("username", "rule"), [("a:b", "colon"), (":", "colon"), (" a", "space"), ("a ", "space"), ("\u00a0a", "space")]
)
def test_a_username_fits_into_basic_credentials(username: str, rule: str) -> None:
    assert rule in refused(UserCreate, "username", username).description


def test_a_lone_surrogate_is_no_text() -> None:
    for model, field in ((ImageDetailCreate, "prompt"), (ImageDetailCreate, "filename"), (UserCreate, "username")):
        assert refused(model, field, "a\ud800b").field == field


@pytest.mark.parametrize("query", ["", " ", "-", "...", "\ufe0f", "🏿"])
def test_a_search_must_have_something_to_search_for(query: str) -> None:
    assert refused(ImageFilter, "prompt", query).description.startswith("has no words to search for")


def test_of_equal_tags_the_first_stays() -> None:
    tags = ["b", "caf\u00e9", "a", "cafe\u0301", "b", "B", "a "]

    assert taken(ImageDetailCreate, "tags", tags) == ("b", "caf\u00e9", "a", "B", "a ")


# --- Values of a fixed form ------------------------------------------------------------------------------------------


def test_guids_are_taken_in_any_case() -> None:
    assert taken(ImageChanges, "guid", GUID.upper()) == GUID
    assert validated_guid(GUID.upper()) == GUID
    assert validated_guid(new_guid())


@pytest.mark.parametrize(
    "guid",
    ["", "x", GUID[:-1], GUID + "0", f"{{{GUID}}}", GUID.replace("-", ""), GUID[:-1] + "g", f"{GUID}\n", f" {GUID}"],
)
def test_what_is_no_guid_is_refused(guid: str) -> None:
    with pytest.raises(InvalidFieldError) as error:
        validated_guid(guid)

    expected = FieldViolation("guid", "must be a UUID of 36 characters, such as 123e4567-e89b-42d3-a456-426614174000")
    assert error.value.violations == (expected,)
    assert refused(ImageFilter, "guid", guid) == expected
    assert refused(ImageCreation, "request_id", guid) == FieldViolation("request_id", expected.description)


def test_guids_are_new() -> None:
    assert len({new_guid() for _ in range(1000)}) == 1000


@pytest.mark.parametrize("size", ["auto", "1x1", "1024x1024", "99999x99999", "3840x2160"])
def test_sizes(size: str) -> None:
    assert taken(GenerationOptions, "size", size) == size


@pytest.mark.parametrize(
    "size", ["", "AUTO", "0x1", "1x0", "01x1", "100000x1", "1024", "1024X1024", "1x1 ", "-1x1", "1x1\n"]
)
def test_what_is_no_size_is_refused(size: str) -> None:
    violation = refused(GenerationOptions, "size", size)

    assert violation == FieldViolation("size", 'must be "auto" or WIDTHxHEIGHT in pixels, such as 1024x1024')


@pytest.mark.parametrize("name", ["a", "gpt-image-2.5-flare", "org/model:v1_2", "x" * 64])
def test_model_names(name: str) -> None:
    assert taken(GenerationOptions, "model", name) == name


@pytest.mark.parametrize("name", ["", "x" * 65, "-a", ".a", "a b", "é", "a\n"])
def test_what_is_no_model_name_is_refused(name: str) -> None:
    assert "1 to 64 letters" in refused(GenerationOptions, "model", name).description


@pytest.mark.parametrize(
    ("field", "choices"),
    [("quality", get_args(Quality)), ("output_format", get_args(OutputFormat)), ("background", get_args(Background))],
)
def test_choices(field: str, choices: tuple[str, ...]) -> None:
    for choice in choices:
        assert taken(GenerationOptions, field, choice) == choice
    for wrong in ("", "other", choices[0].upper(), f"{choices[0]} "):
        assert all(repr(choice) in refused(GenerationOptions, field, wrong).description for choice in choices)


@pytest.mark.parametrize("model", [ImageDetailCreate, ImageChanges, ImageFilter])
def test_visibilities(model: type[Model]) -> None:
    for visibility in Visibility:
        assert taken(model, "visibility", int(visibility)) is visibility
    for wrong in (0, 3, -1, "public"):
        violation = refused(model, "visibility", wrong)
        assert violation == FieldViolation("visibility", "must be VISIBILITY_PRIVATE (1) or VISIBILITY_PUBLIC (2)")


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n"])
def test_a_sha256_is_lower_case_hexadecimal(sha256: str) -> None:
    assert taken(ImageDetail, "sha256", "0123456789abcdef" * 4)
    assert refused(ImageDetail, "sha256", sha256).field == "sha256"


# --- The models ------------------------------------------------------------------------------------------------------


def test_what_is_not_said() -> None:
    detail = ImageDetailCreate(prompt="a fox")
    assert (detail.filename, detail.tags, detail.visibility) == (None, (), Visibility.PRIVATE)
    assert ImagePageRequest().page_size == 50
    assert (ContentRequest(guid=GUID).read_offset, ContentRequest(guid=GUID).read_limit) == (0, 0)
    assert UserCreate(username="ann", password=SecretStr("12345678")).class_key is UserClass.USER


def test_every_model_adds_to_the_one_before_it() -> None:
    assert ImageDetailCreate in ImageDetailUpdate.__bases__
    assert ImageDetailUpdate in ImageDetail.__bases__
    assert ImageDetail in Image.__bases__
    assert UserCreate in UserUpdate.__bases__
    assert UserUpdate in User.__bases__


def test_changes_are_those_that_were_given() -> None:
    assert ImageChanges(guid=GUID).changed_fields() == {}
    changes = ImageChanges(guid=GUID, filename="a.png", tags=(), visibility=Visibility.PUBLIC)
    assert changes.changed_fields() == {"filename": "a.png", "tags": (), "visibility": Visibility.PUBLIC}


def test_models_cannot_be_changed() -> None:
    detail = ImageDetailCreate(prompt="a fox")

    with pytest.raises(ValidationError):
        detail.prompt = "another one"  # type: ignore[misc]
    assert detail.prompt == "a fox"


def test_unknown_fields_are_refused() -> None:
    assert refused(ImageDetailCreate, "colour", "red").field == "colour"


def test_passwords_are_not_shown() -> None:
    user = UserCreate(username="ann", password=SecretStr("correct horse"))

    assert "correct horse" not in repr(user) + str(user) + user.model_dump_json()
    with pytest.raises(ValidationError) as error:
        UserCreate(username="", password=SecretStr("correct horse"))
    assert "horse" not in str(error.value)


@pytest.mark.parametrize(("class_key", "is_admin"), [(UserClass.ADMIN, True), (UserClass.USER, False)])
def test_who_is_an_admin(class_key: UserClass, is_admin: bool) -> None:
    assert Caller(user_id=1, guid=GUID, username="ann", class_key=class_key).is_admin is is_admin
