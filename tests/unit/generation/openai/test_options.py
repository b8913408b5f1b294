"""What is asked of the provider beyond the prompt, and what its answer says about that."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from pixyproxy.core.models import GenerationOptions, ImageDetail, Usage
from pixyproxy.generation.interfaces import GenerationRequest
from pixyproxy.generation.openai.client import OpenAIGenerator
from tests.support.openai_stand_in import RunningStandIn
from tests.unit.core.test_models import DETAIL
from tests.unit.generation.openai.conftest import open_generator
from tests.unit.generation.openai.test_client import generate, request

MODEL = "gpt-image-2.5-flare"


@pytest.fixture(params=[False, True], ids=["one answer", "stream"])
def any_generator(request: pytest.FixtureRequest, stand_in: RunningStandIn) -> Iterator[OpenAIGenerator]:
    """A generator that asks for one answer, and one that asks for a stream of events."""
    yield from open_generator(stand_in.base_url, always_streams=request.param)


def says(**fields: Any) -> str:
    """Return the fault that replaces these fields of the answer."""
    return f"says={base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()}"


def asking(fault: str = "", **changes: Any) -> GenerationRequest:
    return request(fault, **({"size": "64x64", "quality": "high", "background": "opaque"} | changes))


def options_used(generator: OpenAIGenerator, asked: GenerationRequest) -> dict[str, Any]:
    options = generate(generator, asked).options
    # The worker validates them again: an image that was paid for must not fail there.
    assert ImageDetail(**DETAIL, options=options).options == options
    return options.model_dump(exclude_none=True)


# --- The request -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [0, 1, 100])
@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_compression_is_sent(
    generator: OpenAIGenerator, stand_in: RunningStandIn, output_format: str, compression: int
) -> None:
    asked = asking(output_format=output_format, output_compression=compression)
    assert options_used(generator, asked)["output_compression"] == compression
    [sent] = stand_in.submissions(asked.prompt)["requests"]
    assert sent["output_compression"] == compression


@pytest.mark.parametrize(("moderation", "sent"), [("low", "low"), ("auto", None), (None, None)])
def test_moderation_is_sent_unless_it_is_the_provider_s_default(
    generator: OpenAIGenerator, stand_in: RunningStandIn, moderation: str | None, sent: str | None
) -> None:
    asked = asking(moderation=moderation)
    assert options_used(generator, asked).get("moderation") == moderation
    assert [sent] == [body.get("moderation") for body in stand_in.submissions(asked.prompt)["requests"]]


def test_what_is_not_chosen_is_not_sent(generator: OpenAIGenerator, stand_in: RunningStandIn) -> None:
    asked = asking()
    generate(generator, asked)
    [sent] = stand_in.submissions(asked.prompt)["requests"]
    assert not {"moderation", "output_compression", "input_fidelity", "partial_images", "stream"} & sent.keys()


# --- The options that were used --------------------------------------------------------------------------------------


def test_options_used_are_those_asked_for_as_long_as_the_provider_says_nothing_else(
    any_generator: OpenAIGenerator,
) -> None:
    silent = says(size=None, quality=None, background=None, output_format=None)
    chosen: dict[str, Any] = {"output_format": "webp", "output_compression": 0, "moderation": "low"}
    asked = asking(silent, **chosen)
    expected = {"model": MODEL, "size": "64x64", "quality": "high", "background": "opaque", **chosen}
    assert options_used(any_generator, asked) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", "1536x1024"), ("quality", "xhigh"), ("background", "transparent"), ("output_format", "webp")],
)
def test_an_option_that_the_provider_names_is_the_one_used(
    any_generator: OpenAIGenerator, name: str, value: str
) -> None:
    expected = {"model": MODEL, "size": "64x64", "quality": "high", "background": "opaque", "output_format": "png"}
    assert options_used(any_generator, asking(says(**{name: value}))) == expected | {name: value}


@pytest.mark.parametrize("name", ["size", "quality", "background", "output_format"])
@pytest.mark.parametrize("value", ["", "auto", "hd", "gif", "1x", "x" * 5000, 7, 1.5, True, [], ["png"], {"a": 1}])
def test_what_is_no_value_of_an_option_is_ignored(any_generator: OpenAIGenerator, name: str, value: object) -> None:
    asked = asking(says(**{name: value}))
    expected = {"model": MODEL, "size": "64x64", "quality": "high", "background": "opaque", "output_format": "png"}
    assert options_used(any_generator, asked) == expected


def test_what_was_left_to_the_provider_is_what_it_chose(any_generator: OpenAIGenerator) -> None:
    asked = asking(says(size="1024x1024", quality="medium", background="opaque"), size="auto", quality="auto")
    used = options_used(any_generator, asked)
    assert (used["size"], used["quality"], used["background"]) == ("1024x1024", "medium", "opaque")


def test_a_compression_that_the_named_format_does_not_have_was_not_used(any_generator: OpenAIGenerator) -> None:
    asked = asking(says(output_format="png"), output_format="webp", output_compression=50)
    used = options_used(any_generator, asked)
    assert used["output_format"] == "png"
    assert "output_compression" not in used


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ({"background": "transparent"}, {"output_format": "jpeg"}),
        ({"output_format": "jpeg"}, {"background": "transparent", "output_format": "webp"}),
        ({"output_format": "jpeg", "background": "transparent"}, {}),
    ],
)
def test_a_background_that_the_named_format_does_not_have_was_not_used(
    any_generator: OpenAIGenerator, said: dict[str, str], changes: dict[str, str]
) -> None:
    used = options_used(any_generator, asking(says(**said), **changes))
    assert used["output_format"] == "jpeg"
    assert "background" not in used


def test_partial_images_are_an_option_that_was_used(generator: OpenAIGenerator) -> None:
    assert options_used(generator, asking(partial_images=2))["partial_images"] == 2


# --- Token counts ----------------------------------------------------------------------------------------------------

TOTALS = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}


def details(text: object, image: object) -> dict[str, object]:
    return {"text_tokens": text, "image_tokens": image}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"input_tokens_details": details(3, 4), "output_tokens_details": details(0, 5)}, (3, 4, 0, 5)),
        ({"input_tokens_details": details(3, 4)}, (3, 4, None, None)),
        ({"output_tokens_details": details(0, 5)}, (None, None, 0, 5)),
        (
            {"input_tokens_details": {"text_tokens": 7}, "output_tokens_details": {"image_tokens": 5}},
            (7, None, None, 5),
        ),
        ({"input_tokens_details": details(3.0, 4.0), "output_tokens_details": details(0.0, 5.0)}, (3, 4, 0, 5)),
        ({"input_tokens_details": details(3.5, -4), "output_tokens_details": details("0", None)}, (None,) * 4),
        ({"input_tokens_details": details(True, False), "output_tokens_details": details([], {})}, (None,) * 4),
        ({"input_tokens_details": details(2**31, 2**31 - 1)}, (None, 2**31 - 1, None, None)),
        ({"input_tokens_details": "many", "output_tokens_details": [1, 2]}, (None,) * 4),
        ({"input_tokens_details": None, "output_tokens_details": 7}, (None,) * 4),
        ({}, (None,) * 4),
    ],
    ids=str,
)
def test_totals_are_kept_whatever_the_details_are(
    any_generator: OpenAIGenerator, said: dict[str, object], expected: tuple[int | None, ...]
) -> None:
    usage = generate(any_generator, asking(says(usage=TOTALS | said))).usage
    names = ("input_text_tokens", "input_image_tokens", "output_text_tokens", "output_image_tokens")
    assert usage == Usage(**TOTALS, **dict(zip(names, expected, strict=True)))


@pytest.mark.parametrize("total", [True, "12", None, -1, 1.5, float("inf"), float("nan")])
def test_usage_with_a_total_that_is_no_count_is_left_out(any_generator: OpenAIGenerator, total: object) -> None:
    assert generate(any_generator, asking(says(usage=TOTALS | {"total_tokens": total}))).usage is None


def test_a_streamed_answer_has_no_details_of_its_output(stand_in: RunningStandIn) -> None:
    for generator in open_generator(stand_in.base_url, always_streams=True):
        usage = generate(generator, asking()).usage
        assert usage is not None
        assert usage.input_text_tokens == usage.input_tokens
        assert (usage.output_text_tokens, usage.output_image_tokens) == (None, None)
        assert usage.output_tokens == 1056


def test_options_of_a_request_are_those_that_are_asked_for() -> None:
    assert asking(partial_images=0).options == GenerationOptions(
        model=MODEL, size="64x64", quality="high", output_format="png", background="opaque"
    )
