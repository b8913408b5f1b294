from __future__ import annotations

import pytest

from pixyproxy.generation.image_format import MAX_PIXELS, ImageFormat, NotAnImageError, inspect_image
from tests.support.image_files import FORMATS, LARGE_SIZE, encode, large_jpeg, png_of_size
from tests.support.memory import memory_for, needs_memory_statistics


@pytest.mark.parametrize("output_format", FORMATS)
def test_type_and_size_come_from_the_bytes(output_format: str) -> None:
    assert inspect_image(encode(output_format)) == ImageFormat(f"image/{output_format}", 80, 48)


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_transparency_is_no_obstacle(output_format: str) -> None:
    assert inspect_image(encode(output_format, mode="RGBA")).width == 80


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_cut_is_noticed(output_format: str) -> None:
    picture = encode(output_format)
    for length in range(len(picture)):
        with pytest.raises(NotAnImageError):
            inspect_image(picture[:length])


@pytest.mark.parametrize("output_format", FORMATS)
def test_bytes_after_the_end_do_not_cost_the_picture(output_format: str) -> None:
    assert inspect_image(encode(output_format) + b"\n").height == 48


def test_damage_is_noticed() -> None:
    picture = bytearray(encode("png"))
    picture[len(picture) // 2] ^= 0xFF
    with pytest.raises(NotAnImageError):
        inspect_image(bytes(picture))


@pytest.mark.parametrize("output_format", ["gif", "bmp", "tiff"])
def test_other_formats_are_refused(output_format: str) -> None:
    with pytest.raises(NotAnImageError):
        inspect_image(encode(output_format))


@pytest.mark.parametrize("data", [b"", b"\0", b"<html></html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xd9"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(NotAnImageError):
        inspect_image(data)


@pytest.mark.parametrize("edge", [8_001, 9_500, 30_000])
def test_too_many_pixels_are_refused_before_they_are_decoded(edge: int) -> None:
    assert edge * edge > MAX_PIXELS
    with pytest.raises(NotAnImageError):
        inspect_image(png_of_size(edge, edge))


@needs_memory_statistics
def test_a_jpeg_is_decoded_without_memory_for_all_its_pixels() -> None:
    data = large_jpeg("RGB", progressive=False)
    assert inspect_image(data) == ImageFormat("image/jpeg", *LARGE_SIZE)
    assert memory_for(lambda: inspect_image(data)) < LARGE_SIZE[0] * LARGE_SIZE[1]


def test_refusal_is_a_value_error() -> None:
    assert issubclass(NotAnImageError, ValueError)
