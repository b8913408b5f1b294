"""What the installed package ``openai`` offers for images is passed on and kept, or left out on purpose.

A new release of the package fails here where it has a parameter, a value or a field of an answer that is neither.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from openai import types as openai_types
from openai.types import image_edit_params, image_generate_params, images_response
from pydantic import BaseModel, TypeAdapter, ValidationError

from pixyproxy.core.fields import ModelName, Size
from pixyproxy.core.models import GenerationOptions, Usage
from pixyproxy.generation.openai.client import OpenAIGenerator
from tests.support.openai_stand_in import RunningStandIn
from tests.unit.generation.openai.test_client import generate, request

LEFT_OUT_PARAMETERS = {
    "n": "always 1: a request is one image, so that nothing that was paid for has no request",
    "user": "deprecated; safety_identifier replaces it",
    "response_format": "the GPT image models refuse it; they always answer with base64",
    "style": "only the retired DALL·E models have it",
    "complexity": "not in the API of PixyProxy; the default of the model applies",
    "frame_count": "only for GIF, see there",
    "frame_duration_ms": "only for GIF, see there",
    "svg": "only for SVG, see there",
    "markup": "another way to guide an edit than a mask, for gpt-image-2.5 alone",
}
LEFT_OUT_VALUES = {
    ("output_format", "gif"): "a preview that needs access, and does not stream",
    ("output_format", "svg"): "can hold scripts and links, and is no image that can be checked by decoding it",
    ("quality", "standard"): "only the retired DALL·E models have it",
    ("quality", "hd"): "only the retired DALL·E models have it",
}
LEFT_OUT_FIELDS = {
    "created": "created_at is the time of the commit",
    "created_at": "the same in events",
    "safety_identifier": "the hash that was sent",
    "svg_usage": "only for SVG, which is not asked for",
    "revised_prompt": "the GPT image models do not return it",
}

# What the service chooses itself, and edits alone.
SENT_BY_ITSELF = {"prompt", "safety_identifier", "stream"}
EDITS_ALONE = {"image", "mask", "input_fidelity"}
READ = {"data", "b64_json", "url", "usage", "type", "partial_image_index"}
KEPT_OPTIONS = {"size", "quality", "background", "output_format"}

REQUESTS = {
    "generate": [
        image_generate_params.ImageGenerateParamsNonStreaming,
        image_generate_params.ImageGenerateParamsStreaming,
    ],
    "edit": [image_edit_params.ImageEditParamsNonStreaming, image_edit_params.ImageEditParamsStreaming],
}
ANSWERS: list[type[BaseModel]] = [
    openai_types.ImagesResponse,
    openai_types.Image,
    openai_types.ImageGenCompletedEvent,
    openai_types.ImageGenPartialImageEvent,
    openai_types.ImageEditCompletedEvent,
    openai_types.ImageEditPartialImageEvent,
]


def parameters(method: str) -> dict[str, Any]:
    """Return the parameters of a method with their types."""
    return {name: type_ for kind in REQUESTS[method] for name, type_ in get_type_hints(kind).items()}


def literals(type_: Any) -> Iterator[Any]:
    """Yield the values that a type lists."""
    if get_origin(type_) is Literal:
        yield from get_args(type_)
    elif get_origin(type_) in (Union, types.UnionType):
        for part in get_args(type_):
            yield from literals(part)


def chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in GenerationOptions.model_fields}


@pytest.fixture
def sent(generator: OpenAIGenerator, stand_in: RunningStandIn) -> set[str]:
    """The names of all parameters that are sent for an image from a prompt alone."""
    asked = request(
        size="64x64",
        quality="high",
        output_format="webp",
        background="opaque",
        moderation="low",
        output_compression=50,
        partial_images=1,
    )
    unset = {field.name for field in dataclasses.fields(asked) if getattr(asked, field.name) is None}
    assert unset <= EDITS_ALONE
    generate(generator, asked)
    [body] = stand_in.submissions(asked.prompt)["requests"]
    return set(body)


def test_every_parameter_is_passed_on_or_left_out(sent: set[str]) -> None:
    left_out = LEFT_OUT_PARAMETERS.keys() - {"n"}  # It is sent, always as 1.
    assert parameters("generate").keys() - left_out == sent
    assert parameters("edit").keys() - left_out == (sent - {"moderation"}) | EDITS_ALONE
    assert left_out <= parameters("generate").keys() | parameters("edit").keys()
    # Callers choose all that is sent but this.
    assert sent - {"n"} - SENT_BY_ITSELF | {"input_fidelity"} == GenerationOptions.model_fields.keys()


@pytest.mark.parametrize("method", REQUESTS)
def test_every_value_is_taken_or_left_out(method: str) -> None:
    for name, type_ in chosen(parameters(method)).items():
        for value in literals(type_):
            if (name, value) in LEFT_OUT_VALUES:
                with pytest.raises(ValidationError):
                    GenerationOptions.model_validate({name: value})
            else:
                assert getattr(GenerationOptions.model_validate({name: value}), name) == value


def test_no_value_is_left_out_that_the_package_does_not_offer() -> None:
    offered = {
        (name, value) for method in REQUESTS for name, type_ in parameters(method).items() for value in literals(type_)
    }
    assert LEFT_OUT_VALUES.keys() <= offered


def test_every_model_and_any_size_of_the_package_is_taken() -> None:
    for name in get_args(openai_types.ImageModel):
        assert TypeAdapter(ModelName).validate_python(name) == name
    for method in REQUESTS:
        assert str in get_args(parameters(method)["size"])
        for size in literals(parameters(method)["size"]):
            assert TypeAdapter(Size).validate_python(size) == size


def test_every_field_of_an_answer_is_read_or_left_out() -> None:
    fields = {name for answer in ANSWERS for name in answer.model_fields}
    assert fields == READ | KEPT_OPTIONS | LEFT_OUT_FIELDS.keys()


@pytest.mark.parametrize(
    "usage",
    [
        images_response.Usage,
        openai_types.image_gen_completed_event.Usage,
        openai_types.image_edit_completed_event.Usage,
    ],
)
def test_every_count_of_tokens_is_kept(usage: type[BaseModel]) -> None:
    fields = {name: field.annotation for name, field in usage.model_fields.items()}
    counts = {name for name in fields if fields[name] is int}
    for name in fields.keys() - counts:
        direction, _, rest = name.partition("_")
        assert rest == "tokens_details"
        [details] = set(get_args(fields[name]) or [fields[name]]) - {type(None)}
        counts |= {f"{direction}_{part}" for part in details.model_fields}
    assert counts <= Usage.model_fields.keys()


def test_values_that_an_answer_names_are_those_that_are_kept() -> None:
    named = {
        (name, value)
        for answer in ANSWERS
        for name, field in chosen(answer.model_fields).items()
        for value in literals(field.annotation)
    }
    for name, value in named - LEFT_OUT_VALUES.keys():
        assert getattr(GenerationOptions.model_validate({name: value}), name) == value
