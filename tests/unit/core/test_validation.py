from __future__ import annotations

from typing import Any

import pytest

from pixyproxy.core.exceptions import InvalidFieldError
from pixyproxy.core.fields import Visibility
from pixyproxy.core.models import ImageCreation, ImageDetailCreate, ImageFilter, ImagePageRequest, Model
from pixyproxy.core.validation import validated, validated_guid

DETAIL = {"prompt": "a fox"}
SECRET = "what must not be repeated"


@pytest.mark.parametrize(
    ("model", "values", "fields"),
    [
        (ImageCreation, {"detail": {"prompt": ""}}, ["prompt"]),
        (ImageCreation, {"detail": {}}, ["prompt"]),
        (ImageCreation, {"detail": DETAIL | {"tags": ["a", "b", "c", ""]}}, ["tags[3]"]),
        (ImageCreation, {"detail": DETAIL | {"tags": ["x"] * 33}}, ["tags"]),
        (ImageCreation, {"detail": DETAIL, "options": {"size": "big"}}, ["options.size"]),
        (ImageCreation, {"detail": DETAIL, "options": {"size": "big", "quality": "best"}}, None),
        (ImageCreation, {"detail": DETAIL, "request_id": "x"}, ["request_id"]),
        (
            ImageCreation,
            {"detail": {"prompt": "", "filename": "/", "tags": ["", "a", ""], "visibility": 7}, "request_id": "x"},
            ["filename", "prompt", "request_id", "tags[0]", "tags[2]", "visibility"],
        ),
        (ImagePageRequest, {"filter": {"prompt": "-", "guid": "x"}, "page_size": 201}, ["guid", "page_size", "prompt"]),
        (ImagePageRequest, {"filter": {"tags": ["a", ""]}}, ["tags[1]"]),
        (ImageFilter, {"author": ""}, ["author"]),
    ],
)
def test_every_wrong_field_is_named_as_callers_know_it(
    model: type[Model], values: dict[str, Any], fields: list[str] | None
) -> None:
    with pytest.raises(InvalidFieldError) as error:
        validated(model, values)

    expected = fields if fields is not None else ["options.quality", "options.size"]
    assert sorted(violation.field for violation in error.value.violations) == expected
    assert all(violation.description for violation in error.value.violations)


@pytest.mark.parametrize("field", ["prompt", "filename", "tags"])
def test_values_are_not_repeated_in_messages(field: str) -> None:
    wrong = f"{SECRET}\x00"

    with pytest.raises(InvalidFieldError) as error:
        validated(ImageDetailCreate, DETAIL | {field: [wrong] if field == "tags" else wrong})

    assert SECRET not in error.value.message
    with pytest.raises(InvalidFieldError) as error:
        validated_guid(SECRET)
    assert SECRET not in error.value.message


def test_what_is_right_becomes_a_model() -> None:
    creation = validated(ImageCreation, {"detail": DETAIL | {"tags": ["a", "a"]}})

    assert creation.detail == ImageDetailCreate(prompt="a fox", tags=("a",))


def test_a_model_is_checked_again() -> None:
    unchecked = ImageDetailCreate.model_construct(prompt="", tags=(), visibility=Visibility.PUBLIC)

    with pytest.raises(InvalidFieldError) as error:
        validated(ImageDetailCreate, unchecked)
    assert [violation.field for violation in error.value.violations] == ["prompt"]

    nested = ImageCreation.model_construct(detail=unchecked)
    with pytest.raises(InvalidFieldError):
        validated(ImageCreation, nested)
