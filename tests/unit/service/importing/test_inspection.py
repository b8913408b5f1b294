from __future__ import annotations

import io
import mmap
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

from pixyproxy.generation.image_format import MAX_EDGE, MAX_PIXELS, ImageFormat, NotAnImageError
from pixyproxy.service.importing import inspection
from pixyproxy.service.importing.inspection import inspect_file
from tests.support.image_files import (
    FORMATS,
    LARGE_SIZE,
    WITH_PROVENANCE,
    animation,
    encode,
    jpeg_segment,
    jpeg_with,
    large_jpeg,
    png_chunk,
    png_of_size,
    png_with,
    webp_with,
)
from tests.support.memory import memory_for, needs_memory_statistics

_MEBIBYTE = 1024 * 1024


def inspect(data: bytes) -> ImageFormat:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with mmap.mmap(file.fileno(), len(data), access=mmap.ACCESS_READ) as mapping:
            return inspect_file(mapping)


def reason_against(data: bytes) -> str:
    with pytest.raises(NotAnImageError) as caught:
        inspect(data)
    return str(caught.value)


# --- What is an image ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_format", FORMATS)
def test_type_and_size_come_from_the_bytes(output_format: str) -> None:
    assert inspect(encode(output_format)) == ImageFormat(f"image/{output_format}", 80, 48)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_png_is_read(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (5, 3)).save(buffer, "png")
    assert inspect(buffer.getvalue()).height == 3


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"restart_marker_blocks": 1}, {"icc_profile": b"p" * 200_000}]
)
def test_every_kind_of_jpeg_is_read(options: dict[str, object]) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((300, 200), 50).save(buffer, "jpeg", **options)
    assert inspect(buffer.getvalue()).width == 300


def test_fill_bytes_before_a_marker_belong_to_a_jpeg() -> None:
    picture = encode("jpeg")
    assert inspect(picture[:2] + b"\xff" * 9 + picture[2:-2] + b"\xff" + picture[-2:]).width == 80


@pytest.mark.parametrize("output_format", FORMATS)
def test_marks_of_provenance_belong_to_the_image(output_format: str) -> None:
    assert inspect(WITH_PROVENANCE[output_format]).content_type == f"image/{output_format}"


@pytest.mark.parametrize("padding", [b"", b"\0" * 100])
def test_further_images_of_a_jpeg_with_an_index_belong_to_it(padding: bytes) -> None:
    buffer = io.BytesIO()
    pictures = [Image.effect_noise(size, 50) for size in ((80, 48), (40, 24))]
    pictures[0].save(buffer, "mpo", save_all=True, append_images=pictures[1:])
    both = buffer.getvalue()
    second = both.rfind(b"\xff\xd8\xff")
    assert second > 0
    assert inspect(both) == ImageFormat("image/jpeg", 80, 48)
    assert inspect(both[:second] + padding + both[second:] + padding).width == 80
    assert "damaged" in reason_against(both[:-1])
    assert "followed by" in reason_against(both + b"PK\x03\x04")


def test_a_gain_map_belongs_to_the_image() -> None:
    index = jpeg_segment(0xE2, b"MPF\0" + b"MM\0*\0\0\0\x08\0\0")
    xmp = jpeg_segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version="1.0"/>')
    assert inspect(jpeg_with(index, xmp) + encode("jpeg", (20, 12))).width == 80


def test_animations_are_images() -> None:
    for output_format in ("png", "webp"):
        assert inspect(animation(output_format, 10)) == ImageFormat(f"image/{output_format}", 16, 16)


# --- What is none ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_cut_is_noticed(output_format: str) -> None:
    picture = encode(output_format)
    for length in range(1, len(picture)):
        reason_against(picture[:length])


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_a_cut_animation_is_noticed(output_format: str) -> None:
    picture = animation(output_format, 3)
    for length in range(1, len(picture)):
        reason_against(picture[:length])


@pytest.mark.parametrize("place", range(8, 3000, 7))
def test_every_flipped_bit_of_a_png_is_noticed(place: int) -> None:
    picture = bytearray(encode("png"))
    picture[place] ^= 1
    reason_against(bytes(picture))


def test_damaged_data_of_a_png_with_right_checksums_is_noticed() -> None:
    picture = encode("png")
    broken = picture[:33] + png_chunk(b"IDAT", b"no zlib stream") + png_chunk(b"IEND", b"")
    assert "damaged" in reason_against(broken)
    too_short = picture[:33] + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")
    assert "damaged" in reason_against(too_short)


@pytest.mark.parametrize("output_format", ["gif", "bmp", "tiff", "avif", "ico"])
def test_other_formats_are_refused(output_format: str) -> None:
    assert reason_against(encode(output_format)) == "must be a PNG, WebP or JPEG"


@pytest.mark.parametrize(
    "data",
    [b"\0", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html></html>", b"%PDF-1.7", b"PK\x05\x06" + bytes(18)],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    assert reason_against(data) == "must be a PNG, WebP or JPEG"


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xd9", b"RIFF\4\0\0\0WEBP", b"\xff\xd8" * 50])
def test_nothing_but_a_frame_is_refused(data: bytes) -> None:
    assert "damaged" in reason_against(data)


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("more", [b"\n", b"PK\x05\x06" + bytes(18), b"<script>", b"%PDF-1.7", b"\0" * 100_000])
def test_anything_after_the_image_is_refused(output_format: str, more: bytes) -> None:
    assert reason_against(encode(output_format) + more) == (
        f"must end with the image, which is followed by {len(more):,} bytes"
    )


@pytest.mark.parametrize("output_format", FORMATS)
def test_anything_before_the_image_is_refused(output_format: str) -> None:
    assert reason_against(b"%PDF-1.7\n" + encode(output_format)) == "must be a PNG, WebP or JPEG"


def test_a_second_jpeg_without_an_index_is_refused() -> None:
    assert "followed by" in reason_against(encode("jpeg") + encode("jpeg"))


# --- What takes too much ---------------------------------------------------------------------------------------------


def jpeg_of_size(width: int, height: int) -> bytes:
    picture = encode("jpeg")
    frame = picture.index(b"\xff\xc0") + 5
    return picture[:frame] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + picture[frame + 4 :]


def flat_webp(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "webp", quality=0, method=0)
    return buffer.getvalue()


def webp_of_size(width: int, height: int) -> bytes:
    picture = webp_with()
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return picture[:24] + canvas + picture[30:]


@pytest.mark.parametrize(
    "data",
    [
        png_of_size(8_001, 8_000),
        png_of_size(10_000, 10_000),
        png_of_size(50_000, 50_000),
        png_of_size(MAX_EDGE + 1, 1),
        png_of_size(1, MAX_EDGE + 1),
        jpeg_of_size(65_500, 65_500),
        jpeg_of_size(9_999, 9_999),
        flat_webp(4_001, 4_000),
        webp_of_size(16_383, 16_383),
    ],
    ids=len,
)
def test_too_many_pixels_are_refused_before_they_are_decoded(data: bytes) -> None:
    tracemalloc.start()
    try:
        assert "pixels" in reason_against(data)
        assert tracemalloc.get_traced_memory()[1] < 16 * _MEBIBYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [(MAX_EDGE, 1), (1, MAX_EDGE)])
def test_the_longest_edge_is_read(size: tuple[int, int]) -> None:
    assert inspect(encode("png", size)) == ImageFormat("image/png", *size)


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_the_frames_of_an_animation_count_together(output_format: str) -> None:
    assert 63 * 500 * 500 < MAX_PIXELS / 4 < 65 * 500 * 500
    assert inspect(animation(output_format, 63, (500, 500))).width == 500
    assert "all frames" in reason_against(animation(output_format, 65, (500, 500)))


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_every_frame_of_an_animation_is_decoded(output_format: str) -> None:
    picture = animation(output_format, 3)
    last = picture.rfind(b"ANMF" if output_format == "webp" else b"fdAT")
    # The bytes of the last frame, with a right checksum in a PNG.
    if output_format == "png":
        size = int.from_bytes(picture[last - 4 : last], "big")
        broken = png_chunk(b"fdAT", picture[last + 4 : last + 8] + b"no zlib stream")
        assert "damaged" in reason_against(picture[: last - 4] + broken + picture[last + 8 + size :])
    else:
        assert "damaged" in reason_against(picture[: last + 32] + bytes(len(picture) - last - 32))


@pytest.mark.parametrize(
    "chunk",
    [
        lambda bomb: png_chunk(b"zTXt", b"Comment\0\0" + bomb),
        lambda bomb: png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb),
        lambda bomb: png_chunk(b"iCCP", b"profile\0\0" + bomb),
    ],
    ids=["zTXt", "iTXt", "iCCP"],
)
def test_a_bomb_in_a_text_is_refused(chunk: Callable[[bytes], bytes]) -> None:
    bomb = zlib.compress(bytes(64 * _MEBIBYTE), 9)
    data = png_with(chunk(bomb))
    del bomb
    tracemalloc.start()
    try:
        reason_against(data)
        assert tracemalloc.get_traced_memory()[1] < 16 * _MEBIBYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        png_with(*[png_chunk(b"prVt", b"")] * 70_000),
        jpeg_with(*[jpeg_segment(0xE5, b"")] * 70_000),
        webp_with(*[(b"more", b"")] * 70_000),
    ],
    ids=FORMATS,
)
def test_too_many_parts_are_refused(data: bytes) -> None:
    assert reason_against(data) == f"must have at most {inspection._MAX_PARTS:,} chunks or segments"


@needs_memory_statistics
@pytest.mark.parametrize(("mode", "is_progressive", "bytes_a_pixel"), [("RGB", False, 1), ("CMYK", True, 9)])
def test_a_jpeg_is_decoded_without_memory_for_all_its_pixels(
    mode: str, is_progressive: bool, bytes_a_pixel: int
) -> None:
    """Those of a progressive one have 2 bytes a channel until it is decoded, and need no more."""
    data = large_jpeg(mode, progressive=is_progressive)
    assert inspect(data) == ImageFormat("image/jpeg", *LARGE_SIZE)
    assert memory_for(lambda: inspect(data)) < bytes_a_pixel * LARGE_SIZE[0] * LARGE_SIZE[1]


def with_scans(number: int) -> bytes:
    """Return a progressive JPEG that repeats its last scan."""
    buffer = io.BytesIO()
    Image.new("RGB", (80, 48)).save(buffer, "jpeg", progressive=True)
    picture = buffer.getvalue()
    last = picture.rfind(b"\xff\xda")
    return picture[:-2] + picture[last:-2] * (number - picture.count(b"\xff\xda")) + picture[-2:]


def test_a_jpeg_with_too_many_scans_is_refused() -> None:
    assert inspect(with_scans(inspection._MAX_SCANS)).width == 80
    assert reason_against(with_scans(inspection._MAX_SCANS + 1)) == f"must have at most {inspection._MAX_SCANS} scans"


def test_a_jpeg_with_too_many_segments_of_exif_is_refused() -> None:
    most = inspection._MAX_EXIF_SEGMENTS
    exif, other = jpeg_segment(0xE1, b"Exif\0\0more"), jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0")
    assert inspect(jpeg_with(*[exif] * most, *[other] * most)).width == 80
    assert reason_against(jpeg_with(*[exif] * (most + 1))) == f"must have at most {most} segments of EXIF"
