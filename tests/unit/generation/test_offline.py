from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from PIL import Image, ImageChops

from pixyproxy.core.exceptions import ProviderRequestInvalidError
from pixyproxy.core.provider_limits import size_problem
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


# --- Edits -----------------------------------------------------------------------------------------------------------

GREEN = (0, 200, 0, 255)


class MemoryFile:
    """An input in memory."""

    def __init__(self, picture: Image.Image, kind: str = "png") -> None:
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        self.name = f"input.{kind}"
        self.content_type = f"image/{kind}"
        self.size = buffer.tell()
        buffer.seek(0)
        self.read = buffer.read


def green(width: int = 256, height: int = 256) -> Image.Image:
    return Image.new("RGBA", (width, height), GREEN)


def shown(image: GeneratedImage) -> Image.Image:
    return Image.open(io.BytesIO(bytes(image.data))).convert("RGBA")


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_an_edit_shows_the_first_input_and_the_drawing(kind: str) -> None:
    first = MemoryFile(green().convert("RGB"), kind)
    edited = shown(draw(inputs=(first, MemoryFile(Image.new("RGBA", (64, 64), "red")))))
    drawing = shown(draw(size="256x256"))
    expected = Image.blend(green(), drawing, 0.5)
    difference = ImageChops.difference(edited.convert("RGB"), expected.convert("RGB"))
    assert max(high for _, high in difference.getextrema()) <= 4  # type: ignore[misc]


def test_the_same_edit_is_the_same_picture() -> None:
    assert draw(inputs=(MemoryFile(green()),)).data == draw(inputs=(MemoryFile(green()),)).data
    blue = Image.new("RGBA", (256, 256), "blue")
    assert draw(inputs=(MemoryFile(green()),)).data != draw(inputs=(MemoryFile(blue),)).data


def test_a_mask_keeps_what_it_covers() -> None:
    mask = Image.new("RGBA", (256, 256), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 128, 256))
    edited = shown(draw(inputs=(MemoryFile(green()),), mask=MemoryFile(mask)))
    assert edited.crop((128, 0, 256, 256)).getcolors() == [(128 * 256, GREEN)]
    assert len(edited.crop((0, 0, 128, 256)).getcolors(100_000)) > 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "of_input", "expected"),
    [
        ("auto", (256, 128), (256, 128)),
        ("auto", (250, 131), (240, 128)),
        ("auto", (7680, 4320), (3840, 2160)),
        ("auto", (1600, 100), (288, 96)),
        ("auto", (5, 3), (16, 16)),
        ("128x64", (250, 131), (128, 64)),
    ],
)
def test_an_edit_has_the_size_that_is_asked_for_or_that_of_the_first_input(
    size: str, of_input: tuple[int, int], expected: tuple[int, int]
) -> None:
    image = draw(size=size, inputs=(MemoryFile(green(*of_input)),))
    assert (image.width, image.height) == shown(image).size == expected
    assert size_problem(f"{image.width}x{image.height}") is None


def test_an_edit_may_be_transparent() -> None:
    clear = MemoryFile(Image.new("RGBA", (256, 256), (0, 0, 0, 0)))
    assert shown(draw(inputs=(clear,), background="transparent")).getpixel((0, 0))[3] < 255  # type: ignore[index]
    assert shown(draw(inputs=(MemoryFile(green()),), output_format="jpeg")).size == (256, 256)


def test_an_input_that_cannot_be_decoded_is_refused() -> None:
    broken = MemoryFile(green())
    broken.read = io.BytesIO(b"\x89PNG and nothing else").read
    with pytest.raises(ProviderRequestInvalidError) as caught:
        draw(inputs=(broken,))
    assert caught.value.field == "inputs"
