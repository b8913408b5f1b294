"""What is refused before the provider is asked: only what it documents as impossible for that very model."""

from __future__ import annotations

import pytest

from pixyproxy.core.provider_limits import fidelity_problem, has_documented_sizes, quality_problem, size_problem

FIRST = ["gpt-image-2", "gpt-image-2-2026-04-21"]
SECOND = [
    *("gpt-image-2.5-flare", "gpt-image-2.5-flare-2026-09-08"),
    *("gpt-image-2.5-sunburst", "gpt-image-2.5-sunburst-2026-09-08"),
]
OTHERS = [
    *("gpt-image-1.5", "gpt-image-1-mini", "chatgpt-image-latest", "gpt-image-2.6-flare", "gpt-image-2.6-sunburst"),
    *("gpt-image-2-2027-01-01", "gpt-image-2.5-flare-2027-01-01", "gpt-image-2.5", "gpt-image-20", "gpt-image-3"),
    *("openai/gpt-image-2", "gpt-image-2:mine", "my-gpt-image-2", "stablediffusion", "default-model"),
]


@pytest.mark.parametrize("model", [*FIRST, *SECOND])
def test_sizes_are_documented_for_these_models(model: str) -> None:
    assert has_documented_sizes(model)


@pytest.mark.parametrize("model", OTHERS)
def test_nothing_is_refused_for_other_models(model: str) -> None:
    assert not has_documented_sizes(model)
    assert fidelity_problem(model) is None
    for quality in ("auto", "low", "high", "xhigh", "max"):
        assert quality_problem(quality, model) is None


@pytest.mark.parametrize(
    "size", ["auto", "16x16", "1024x1024", "48x16", "16x48", "3840x2160", "2160x3840", "2880x2880", "3840x1280"]
)
def test_sizes_within_the_limits(size: str) -> None:
    assert size_problem(size) is None


@pytest.mark.parametrize(
    ("size", "rule"),
    [
        ("1000x1024", "width and height must be multiples of 16"),
        ("1024x1000", "width and height must be multiples of 16"),
        ("64x16", "the ratio of width to height must be between 1:3 and 3:1"),
        ("16x64", "the ratio of width to height must be between 1:3 and 3:1"),
        ("3856x2144", "must be at most 3840 pixels wide and high, and have at most 8,294,400 pixels"),
        ("2144x3856", "must be at most 3840 pixels wide and high, and have at most 8,294,400 pixels"),
        ("3840x2176", "must be at most 3840 pixels wide and high, and have at most 8,294,400 pixels"),
        ("2896x2880", "must be at most 3840 pixels wide and high, and have at most 8,294,400 pixels"),
    ],
)
def test_sizes_beyond_the_limits(size: str, rule: str) -> None:
    assert size_problem(size) == rule


@pytest.mark.parametrize("quality", ["xhigh", "max"])
def test_later_qualities_need_a_later_model(quality: str) -> None:
    for model in FIRST:
        assert quality_problem(quality, model) == f"xhigh and max need a later model than {model}"
    for model in SECOND:
        assert quality_problem(quality, model) is None


@pytest.mark.parametrize("quality", ["auto", "low", "medium", "high"])
def test_the_first_qualities_are_for_all_models(quality: str) -> None:
    for model in [*FIRST, *SECOND]:
        assert quality_problem(quality, model) is None


def test_an_input_fidelity_is_left_out_for_the_first_model() -> None:
    for model in FIRST:
        assert fidelity_problem(model) == f"must be left out for {model}"
    for model in SECOND:
        assert fidelity_problem(model) is None
