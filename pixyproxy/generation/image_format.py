"""Finds the format of image bytes, and checks them."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import mmap
from typing import IO, cast

from PIL import Image

MAX_PIXELS = 64_000_000
"""The most pixels of an image: nearly eight times 3840x2160, and below the limit at which Pillow warns."""

MAX_EDGE = 65_535
"""The most pixels across or down, as in a JPEG. Pillow takes memory for each row, in resizing also for each column."""

FORMATS = ("PNG", "WEBP", "JPEG")
"""The formats of images, by Pillow's names."""

# Pillow reads a JPEG that contains a second image, such as a gain map, as MPO.
CONTENT_TYPES = {"PNG": "image/png", "WEBP": "image/webp", "JPEG": "image/jpeg", "MPO": "image/jpeg"}
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_SCAN_START = b"\xff\xda"
_JPEG_END = b"\xff\xd9"
# Decoding takes up to 8 bytes a pixel of a JPEG, and 17 of a WebP. The limit bounds the memory for images that arrive
# at the same time.
_decodings = threading.BoundedSemaphore(2)


class NotAnImageError(ValueError):
    """The bytes are not a complete PNG, WebP or JPEG of at most ``MAX_PIXELS``, each edge of at most ``MAX_EDGE``."""


@dataclass(frozen=True)
class ImageFormat:
    """The media type of an encoded image (``image/png``, ``image/webp`` or ``image/jpeg``), and its size in pixels."""

    content_type: str
    width: int
    height: int


def inspect_image(data: bytes | mmap) -> ImageFormat:
    """Check an encoded image, and return its format.

    The checksums of a PNG are verified; a WebP or JPEG is decoded.

    Raises:
        NotAnImageError: the bytes are no PNG, WebP or JPEG, are damaged or incomplete, or are too large.
    """
    # A mapping has the methods of a file already, and need not be copied.
    file = io.BytesIO(data) if isinstance(data, bytes) else cast(IO[bytes], data)
    with opened_image(file) as image:
        width, height = image.size
        if image.format == "PNG":
            image.verify()
        else:
            # A JPEG is decoded at an eighth of its size: that reads all of its data, too, with less memory.
            image.draft(None, (1, 1))
            with _decodings:
                image.load()
    if image.format not in CONTENT_TYPES or not _has_end(data, image.format):
        raise NotAnImageError("the bytes are incomplete")
    return ImageFormat(CONTENT_TYPES[image.format], width, height)


@contextmanager
def opened_image(file: IO[bytes]) -> Iterator[Image.Image]:
    """Open an encoded image. Raises as ``inspect_image``, also in place of what Pillow raises until the end."""
    try:
        image = Image.open(file, formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise NotAnImageError(f"the image has more than {MAX_PIXELS:,} pixels")
        if max(image.size) > MAX_EDGE:
            raise NotAnImageError(f"the image is more than {MAX_EDGE:,} pixels wide or high")
        yield image
    except NotAnImageError:
        raise
    # For damaged bytes, Pillow raises almost any exception, including warnings that are turned into errors.
    except Exception as exc:
        raise NotAnImageError("the bytes are no complete PNG, WebP or JPEG") from exc


def _has_end(data: bytes | mmap, image_format: str) -> bool:
    """Look for the end mark, whose absence Pillow does not report."""
    # The explicit start matters for a mapping, which would be searched from its current position.
    if image_format == "PNG":
        return data.rfind(_PNG_END, 0) >= 0
    if image_format == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    end = data.rfind(_JPEG_END, 0)
    return end >= 0 and data.find(_JPEG_SCAN_START, end) < 0
