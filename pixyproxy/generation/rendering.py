"""Makes renditions: small WebP copies of an image."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from pixyproxy.generation.image_format import opened_image
from pixyproxy.generation.thumbhash import thumbhash

# 6 to 20 kB for a photograph at 256 pixels.
_QUALITY = 80
# Before the precise resizing, an image is averaged over whole pixels to a size that is still so many times too large.
_GAP = 1.5
_STRIP_PIXELS = 1_000_000
# A JPEG's segment has no more, and the orientation is at the beginning. Pillow makes objects of all values, which take
# a hundred times their size.
_MOST_EXIF = 65_536
PLACEHOLDER_PIXELS = 48
"""The most pixels across and down of what a placeholder is made from."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """A rendition, encoded as WebP, and its size in pixels."""

    data: bytes
    width: int
    height: int


@dataclass(frozen=True)
class SmallImage:
    """A decoded image that was shrunk: upright, in sRGB, as RGB or RGBA, without metadata.

    Attributes:
        image: the pixels.
        whole: the width and height of the whole image when upright.
    """

    image: Image.Image
    whole: Size

    def within(self, edge: int) -> Image.Image:
        """Return the image shrunk to fit a square of ``edge`` pixels."""
        # From the whole image's size: this one's is rounded.
        return self.image.resize(_fitted(self.whole, edge), Image.Resampling.LANCZOS)


def render(small: SmallImage, edge: int) -> Rendered:
    """Make the rendition of an image that fits a square of ``edge`` pixels. It is never larger than the image."""
    image = small.within(edge)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=_QUALITY)
    return Rendered(file.getvalue(), image.width, image.height)


def placeholder_of(small: SmallImage) -> bytes:
    """Return the ThumbHash of an image. Of more pixels it would hardly be another one, and take longer."""
    return thumbhash(small.within(PLACEHOLDER_PIXELS))


def decode_small(data: bytes, edge: int) -> SmallImage:
    """Decode the first frame of a PNG, WebP or JPEG, and shrink it to fit a square of ``edge`` pixels.

    Beside what Pillow takes to decode the image, usually 4 bytes a pixel, this needs little memory.

    Raises:
        NotAnImageError: the bytes are no PNG, WebP or JPEG, are damaged, or are too large.
    """
    with opened_image(io.BytesIO(data)) as image:
        whole = image.size
        size = _fitted(whole, edge)
        _correct_transparency(image)
        # A JPEG can be decoded at a half, a quarter or an eighth of its size.
        image.draft(None, (int(size[0] * _GAP), int(size[1] * _GAP)))
        image.load()
        small = _averaged(image, size).resize(size, Image.Resampling.LANCZOS)
        small = _in_srgb(small, image.info.get("icc_profile"))
        upright = _upright(small, image.info.get("exif"))
        return SmallImage(upright, whole if upright.size == size else whole[::-1])


def _correct_transparency(image: Image.Image) -> None:
    """Give the transparent colour of a PNG in 8 bits a channel, as Pillow gives the pixels, and not as in the file."""
    colour = image.info.get("transparency")
    if colour is None or not isinstance(image, PngImagePlugin.PngImageFile):
        return
    match image.tile[0].args:
        case "L;2":
            image.info["transparency"] = colour * 85
        case "L;4":
            image.info["transparency"] = colour * 17
        case "I;16B":
            image.info["transparency"] = colour // 257
        case "RGB;16B":
            image.info["transparency"] = tuple(channel // 256 for channel in colour)


def _fitted(size: Size, edge: int) -> Size:
    width, height = size
    longest = max(width, height)
    if longest <= edge:
        return size
    return max(1, round(width * edge / longest)), max(1, round(height * edge / longest))


def _averaged(image: Image.Image, size: Size) -> Image.Image:
    """Shrink an image by a whole factor towards a size, and convert its pixels to 8 bits a channel without a palette.

    In strips, because conversions take as much memory as the image.
    """
    factor = max(1, int(min(image.width / size[0], image.height / size[1]) / _GAP))
    rows = max(1, _STRIP_PIXELS // image.width // factor) * factor
    averaged: Image.Image | None = None
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = _plain(image.crop(box)).reduce(factor)
        if averaged is None:
            averaged = Image.new(strip.mode, (strip.width, -(-image.height // factor)))
        averaged.paste(strip, (0, top // factor))
    assert averaged is not None  # noqa: S101  an image has at least one row
    return averaged


def _plain(image: Image.Image) -> Image.Image:
    """Convert pixels to L, LA, RGB, RGBA or CMYK."""
    if image.mode == "I;16":
        # A conversion alone would turn all but the darkest pixels white.
        image = image.point(lambda value: value * (1 / 257)).convert("L")
    if image.mode == "P" or "transparency" in image.info:
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image.convert("L") if image.mode == "1" else image


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colours = image if alpha is None else image.convert(image.mode.removesuffix("A"))
    if profile is not None:
        # A profile that is damaged, or one for another kind of pixels, is ignored, as browsers do.
        with suppress(ImageCms.PyCMSError, OSError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            colours = ImageCms.profileToProfile(colours, source, srgb, outputMode="RGB") or colours
    colours = colours.convert("RGB")
    if alpha is not None:
        colours.putalpha(alpha)
    return colours


def _upright(image: Image.Image, exif: bytes | None) -> Image.Image:
    # All other metadata ends here.
    image.info = {"exif": exif[:_MOST_EXIF]} if exif else {}
    # Damaged metadata do not matter, and neither does what Pillow warns of them, on standard error.
    with suppress(Exception), warnings.catch_warnings(action="ignore"):
        image = ImageOps.exif_transpose(image)
    image.info = {}
    return image
