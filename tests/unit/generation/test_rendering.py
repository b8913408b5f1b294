"""Renditions of all kinds of images."""

from __future__ import annotations

import io
import struct
import tracemalloc
from typing import Any

import pytest
from PIL import Image, ImageCms

from pixyproxy.generation.image_format import MAX_EDGE, MAX_PIXELS, NotAnImageError
from pixyproxy.generation.rendering import Rendered, decode_small, placeholder_of, render
from tests.support.image_files import png_chunk, raw_png

RED, BLUE = (255, 0, 0), (0, 0, 255)
_TOLERANCE = 12


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def halves(mode: str, left: Any, right: Any, size: tuple[int, int] = (600, 400)) -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def rendition(data: bytes, edge: int = 256) -> Image.Image:
    image = opened(render(decode_small(data, edge), edge))
    assert max(image.size) <= edge
    return image


def opened(rendered: Rendered) -> Image.Image:
    image = Image.open(io.BytesIO(rendered.data))
    assert (image.format, image.size) == ("WEBP", (rendered.width, rendered.height))
    assert not image.info.keys() & {"exif", "icc_profile", "xmp"}
    return image


def colours(image: Image.Image) -> tuple[Any, Any]:
    """The colours in the middle of the left and of the right half."""
    width, height = image.size
    return image.getpixel((width // 4, height // 2)), image.getpixel((3 * width // 4, height // 2))


def assert_colours(image: Image.Image, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    for found, expected in zip(colours(image), (left, right), strict=True):
        assert len(found) == len(expected)
        assert all(abs(one - other) <= _TOLERANCE for one, other in zip(found, expected, strict=True)), found


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    ("size", "edge", "expected"),
    [
        ((1536, 1024), 256, (256, 171)),
        ((1024, 1536), 512, (341, 512)),
        ((3840, 2160), 1024, (1024, 576)),
        ((2049, 2047), 2048, (2048, 2046)),
        ((256, 256), 256, (256, 256)),
        ((300, 2), 256, (256, 2)),
        ((4000, 1), 256, (256, 1)),
        ((100, 60), 2048, (100, 60)),
        ((1, 1), 256, (1, 1)),
    ],
)
def test_it_fits_the_square_in_the_same_proportions_and_is_never_enlarged(
    kind: str, size: tuple[int, int], edge: int, expected: tuple[int, int]
) -> None:
    assert rendition(encoded(halves("RGB", RED, BLUE, size), kind), edge).size == expected


def test_several_are_made_of_one_decoding_as_each_of_its_own() -> None:
    data = encoded(halves("RGB", RED, BLUE, (900, 600)))
    small = decode_small(data, 1024)
    for edge, size in ((256, (256, 171)), (1024, (900, 600)), (512, (512, 341))):
        image = opened(render(small, edge))
        assert image.size == size
        assert_colours(image, RED, BLUE)


def test_a_placeholder_shows_what_the_image_shows() -> None:
    upright = placeholder_of(decode_small(encoded(halves("RGB", RED, BLUE, (900, 600))), 256))
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = encoded(halves("RGB", BLUE, RED, (900, 600)), exif=exif.tobytes())
    assert placeholder_of(decode_small(turned, 48)) == upright
    assert 5 <= len(upright) <= 30
    assert placeholder_of(decode_small(encoded(halves("RGBA", (*RED, 0), (*BLUE, 255))), 48)) != upright


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    ("orientation", "place"),
    # Where the left half of the stored pixels is shown.
    [(1, "left"), (2, "right"), (3, "right"), (4, "left"), (5, "top"), (6, "top"), (7, "bottom"), (8, "bottom")],
)
def test_it_is_upright(kind: str, orientation: int, place: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = rendition(encoded(halves("RGB", RED, BLUE), kind, exif=exif.tobytes()))
    turned = place in ("top", "bottom")
    assert image.size == ((171, 256) if turned else (256, 171))
    upright = image.transpose(Image.Transpose.ROTATE_90) if turned else image
    first = {"left": RED, "right": BLUE, "top": RED, "bottom": BLUE}[place]
    assert_colours(upright, first, BLUE if first == RED else RED)


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"nonsense" * 100])
def test_damaged_metadata_do_not_matter(exif: bytes) -> None:
    assert_colours(rendition(encoded(halves("RGB", RED, BLUE), exif=exif)), RED, BLUE)


def test_large_metadata_take_little_memory() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x9C9B] = b"\1" * 8 * 1024 * 1024
    data = encoded(halves("RGB", RED, BLUE), exif=exif.tobytes())
    tracemalloc.start()
    try:
        assert rendition(data).size == (171, 256)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data)
    finally:
        tracemalloc.stop()


def _swapped_profile() -> bytes:
    """A profile whose red is the blue of sRGB: sRGB's own with the two columns exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_the_colour_profile_is_turned_into_srgb(kind: str) -> None:
    data = encoded(halves("RGB", RED, BLUE), kind, icc_profile=_swapped_profile())
    assert_colours(rendition(data), BLUE, RED)


def test_a_profile_leaves_transparency_alone() -> None:
    image = halves("RGBA", (*RED, 255), (*BLUE, 80))
    assert_colours(rendition(encoded(image, icc_profile=_swapped_profile())), (*BLUE, 255), (*RED, 80))


@pytest.mark.parametrize(
    "profile", [b"no profile", b"\0" * 500, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()]
)
def test_a_profile_that_does_not_fit_is_ignored(profile: bytes) -> None:
    assert_colours(rendition(encoded(halves("RGB", RED, BLUE), icc_profile=profile)), RED, BLUE)


def test_transparency_is_kept_and_hidden_colours_do_not_bleed() -> None:
    image = rendition(encoded(halves("RGBA", (255, 0, 0, 0), (0, 0, 255, 128))))
    assert image.mode == "RGBA"
    _, right = colours(image)
    assert abs(right[3] - 128) <= 2
    assert right[2] >= 255 - _TOLERANCE
    edge: list[Any] = [image.getpixel((x, 80)) for x in range(120, 136)]
    assert all(red <= _TOLERANCE for red, _, _, alpha in edge if alpha > 60)


def _palette(transparency: bool) -> bytes:
    image = halves("P", 0, 1)
    image.putpalette([*RED, *BLUE])
    options: dict[str, Any] = {"transparency": bytes([255, 100])} if transparency else {}
    return encoded(image, **options)


def _sixteen_bits() -> bytes:
    image = Image.new("I;16", (600, 400), 0)
    for x in range(300, 600):
        for y in range(400):
            image.putpixel((x, y), 0x8080)
    return encoded(image)


def _one_bit() -> bytes:
    return encoded(halves("1", 0, 1))


def _transparent_colour() -> bytes:
    return encoded(halves("RGB", RED, BLUE), transparency=BLUE)


@pytest.mark.parametrize(
    ("data", "left", "right"),
    [
        (encoded(halves("L", 40, 200)), (40,) * 3, (200,) * 3),
        (encoded(halves("LA", (40, 255), (200, 100))), (40, 40, 40, 255), (200, 200, 200, 100)),
        (_palette(transparency=False), RED, BLUE),
        (_palette(transparency=True), (*RED, 255), (*BLUE, 100)),
        (_sixteen_bits(), (0, 0, 0), (128, 128, 128)),
        (_one_bit(), (0, 0, 0), (255, 255, 255)),
        (encoded(halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), "JPEG", quality=95), RED, BLUE),
        (encoded(halves("L", 40, 200), "JPEG"), (40,) * 3, (200,) * 3),
    ],
    ids=["grey", "grey-alpha", "palette", "palette-alpha", "16-bit", "1-bit", "cmyk", "grey-jpeg"],
)
def test_every_kind_of_pixels(data: bytes, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    assert_colours(rendition(data), left, right)


@pytest.mark.parametrize(
    ("bits", "colour_type", "left", "right", "transparent", "shown"),
    [
        (1, 0, "00" * 4, "ff" * 4, "0001", (0, 0, 0)),
        (1, 0, "ff" * 4, "00" * 4, "0000", (255, 255, 255)),
        (2, 0, "55" * 8, "aa" * 8, "0002", (85, 85, 85)),
        (4, 0, "33" * 16, "aa" * 16, "000a", (51, 51, 51)),
        (8, 0, "33" * 32, "aa" * 32, "00aa", (51, 51, 51)),
        (16, 0, "4040" * 32, "8080" * 32, "8080", (64, 64, 64)),
        (16, 2, "000000000000" * 32, "000000004000" * 32, "000000004000", (0, 0, 0)),
    ],
)
def test_a_transparent_colour_of_a_png_with_any_number_of_bits(
    bits: int, colour_type: int, left: str, right: str, transparent: str, shown: tuple[int, ...]
) -> None:
    """Pillow gives it as in the file, but most pixels in 8 bits a channel."""
    rows = bytes.fromhex(f"00{left}{right}") * 64
    header = struct.pack(">IIBBBBB", 64, 64, bits, colour_type, 0, 0, 0)
    image = rendition(raw_png(header, rows, png_chunk(b"tRNS", bytes.fromhex(transparent))))

    found, hidden = colours(image)
    assert all(abs(one - other) <= _TOLERANCE for one, other in zip(found, (*shown, 255), strict=True)), found
    assert hidden[3] == 0


def test_a_colour_that_stands_for_transparency() -> None:
    image = rendition(_transparent_colour())
    left, right = colours(image)
    assert (left[3], right[3]) == (255, 0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_by_its_first_frame(kind: str) -> None:
    frames = [halves("RGB", RED, BLUE), halves("RGB", BLUE, RED)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    assert_colours(rendition(data), RED, BLUE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"picture",
        encoded(halves("RGB", RED, BLUE))[:500],
        encoded(halves("RGB", RED, BLUE), "WEBP")[:100],
        encoded(halves("RGB", RED, BLUE), "GIF"),
    ],
)
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(NotAnImageError):
        decode_small(data, 256)


@pytest.mark.parametrize("size", [(MAX_EDGE, 1), (1, MAX_EDGE)])
def test_the_longest_edge_and_one_pixel_more(size: tuple[int, int]) -> None:
    """Pillow takes a pointer for each row, and its conversions and resizing take several."""
    longest = Image.new("RGB", size, RED)
    assert rendition(encoded(longest)).size == tuple(min(edge, 256) for edge in size)
    longer = longest.resize((size[0] + (size[0] > 1), size[1] + (size[1] > 1)))
    with pytest.raises(NotAnImageError, match="pixels"):
        decode_small(encoded(longer), 256)


def test_the_most_pixels_and_one_row_more() -> None:
    width = 8000
    height = MAX_PIXELS // width
    assert rendition(encoded(Image.new("1", (width, height)), compress_level=1)).size == (256, 256)
    with pytest.raises(NotAnImageError, match="pixels"):
        decode_small(encoded(Image.new("1", (width, height + 1)), compress_level=1), 256)
