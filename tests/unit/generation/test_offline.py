from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from PIL import Image

from pixyproxy.core.exceptions import ProviderRequestInvalidError
from pixyproxy.generation.image_format import ImageFormat, inspect_image
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest
from pixyproxy.generation.offline import OfflineGenerator

REQUEST = GenerationRequest(
    prompt="A lighthouse on a cliff, in the style of a linocut",
    model="gpt-image-2.5-flare",
    size="auto",
    quality="auto",
    output_format="png",
    background="auto",
    author_guid="123e4567-e89b-42d3-a456-426614174000",
)


def draw(**changes: Any) -> GeneratedImage:
    return OfflineGenerator().generate(dataclasses.replace(REQUEST, **changes))


@pytest.mark.parametrize(
    ("output_format", "background"),
    [
        ("png", "auto"),
        ("png", "opaque"),
        ("png", "transparent"),
        ("webp", "auto"),
        ("webp", "transparent"),
        ("jpeg", "auto"),
        ("jpeg", "opaque"),
    ],
)
def test_picture_is_what_was_asked_for(output_format: str, background: str) -> None:
    image = draw(size="256x160", output_format=output_format, background=background)
    assert inspect_image(bytes(image.data)) == ImageFormat(f"image/{output_format}", 256, 160)
    assert (image.content_type, image.width, image.height) == (f"image/{output_format}", 256, 160)
    assert (image.model, image.usage) == ("offline-drawing", None)


def test_automatic_size_is_a_small_square_file() -> None:
    image = draw()
    assert (image.width, image.height) == (1024, 1024)
    assert len(image.data) < 1_000_000


def test_same_prompt_same_picture() -> None:
    assert draw(size="256x256").data == draw(size="256x256").data
    assert draw(size="256x256").data != draw(size="256x256", prompt="A lighthouse").data


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_transparent_background_shows_through(output_format: str) -> None:
    data = draw(size="256x256", output_format=output_format, background="transparent").data
    with Image.open(io.BytesIO(data)) as picture:
        lowest, highest = picture.getchannel("A").getextrema()
    assert (lowest, highest) == (0, 255)


@pytest.mark.parametrize("prompt", ["雪山日出", "🦊", "مرحبا", "a\nb\tc", "\ud800", "x" * 32_000])
def test_any_prompt_can_be_drawn(prompt: str) -> None:
    assert inspect_image(bytes(draw(prompt=prompt, size="256x256").data)).width == 256


@pytest.mark.parametrize("size", ["16x16", "48x16", "3840x2160", "2160x3840"])
def test_sizes_at_the_limits_are_drawn(size: str) -> None:
    image = draw(size=size, output_format="jpeg")
    assert f"{image.width}x{image.height}" == size


@pytest.mark.parametrize("size", ["1000x1024", "1024x1000", "1024x320", "320x1024", "3856x2160", "2896x2880"])
def test_sizes_beyond_the_limits_are_refused(size: str) -> None:
    with pytest.raises(ProviderRequestInvalidError) as caught:
        draw(size=size)
    assert caught.value.field == "options.size"
    assert not caught.value.may_have_billed


def test_transparent_jpeg_is_refused() -> None:
    with pytest.raises(ProviderRequestInvalidError) as caught:
        draw(output_format="jpeg", background="transparent")
    assert caught.value.field == "options.background"
