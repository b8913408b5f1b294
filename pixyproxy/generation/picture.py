"""What a picture's bytes say of themselves."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from mmap import mmap
from typing import IO, cast

from PIL import Image

MAX_PIXELS = 64_000_000
"""The largest picture that is taken: nearly eight times 3840x2160, and below what makes Pillow itself warn."""

# A JPEG with a second picture inside, such as a gain map, is read by Pillow as MPO.
_CONTENT_TYPES = {"PNG": "image/png", "WEBP": "image/webp", "JPEG": "image/jpeg", "MPO": "image/jpeg"}
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_SCAN_START = b"\xff\xda"
_JPEG_END = b"\xff\xd9"
# Decoding takes up to 4 bytes a pixel, which must not be multiplied by all pictures that come at once.
_decodings = threading.BoundedSemaphore(2)


class NotAPictureError(ValueError):
    """The bytes are not a whole PNG, WebP or JPEG of at most ``MAX_PIXELS``."""


@dataclass(frozen=True)
class PictureFormat:
    """What an encoded picture is.

    Attributes:
        content_type: ``image/png``, ``image/webp`` or ``image/jpeg``.
        width: pixels across.
        height: pixels down.
    """

    content_type: str
    width: int
    height: int


def inspect_picture(data: bytes | mmap) -> PictureFormat:
    """Check an encoded picture as a whole and return what it is.

    A PNG has checksums of its own, and they are what is checked; a WebP or JPEG is decoded.

    Raises:
        NotAPictureError: the bytes are no PNG, WebP or JPEG, are damaged or cut short, or have too many pixels.
    """
    picture = _check(data)
    if picture.format is None or picture.format not in _CONTENT_TYPES or not _has_end(data, picture.format):
        raise NotAPictureError("the bytes are cut short")
    return PictureFormat(_CONTENT_TYPES[picture.format], picture.width, picture.height)


def _check(data: bytes | mmap) -> Image.Image:
    try:
        # What is mapped is a file already, and need not be copied into one.
        file = io.BytesIO(data) if isinstance(data, bytes) else cast(IO[bytes], data)
        picture = Image.open(file, formats=("PNG", "WEBP", "JPEG"))
        if picture.width * picture.height <= MAX_PIXELS:
            if picture.format == "PNG":
                picture.verify()
            else:
                with _decodings:
                    picture.load()
            return picture
    # Damaged bytes make Pillow raise almost anything, warnings turned into errors included.
    except Exception as exc:
        raise NotAPictureError("the bytes are no whole PNG, WebP or JPEG") from exc
    raise NotAPictureError(f"the picture has more than {MAX_PIXELS:,} pixels")


def _has_end(data: bytes | mmap, image_format: str) -> bool:
    """Look for the end mark, whose absence is forgiven so far."""
    # What is mapped would otherwise be searched from where it was last read.
    if image_format == "PNG":
        return data.rfind(_PNG_END, 0) >= 0
    if image_format == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    end = data.rfind(_JPEG_END, 0)
    return end >= 0 and data.find(_JPEG_SCAN_START, end) < 0
