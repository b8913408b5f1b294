"""What a picture's bytes say of themselves."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

MAX_PIXELS = 64_000_000
"""The largest picture that is decoded: nearly eight times 3840x2160, and below what makes Pillow itself warn."""

# A JPEG with a second picture inside, such as a gain map, is read by Pillow as MPO.
_CONTENT_TYPES = {"PNG": "image/png", "WEBP": "image/webp", "JPEG": "image/jpeg", "MPO": "image/jpeg"}
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_SCAN_START = b"\xff\xda"
_JPEG_END = b"\xff\xd9"


class NotAPictureError(ValueError):
    """The bytes are not a whole, decodable PNG, WebP or JPEG of at most ``MAX_PIXELS``."""


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


def inspect_picture(data: bytes) -> PictureFormat:
    """Decode an encoded picture as a whole and return what it is.

    Raises:
        NotAPictureError: the bytes are no PNG, WebP or JPEG, are damaged or cut short, or decode to too many pixels.
    """
    picture = _decode(data)
    if picture.format is None or picture.format not in _CONTENT_TYPES or not _has_end(data, picture.format):
        raise NotAPictureError("the bytes are cut short")
    return PictureFormat(_CONTENT_TYPES[picture.format], picture.width, picture.height)


def _decode(data: bytes) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "JPEG"))
        if picture.width * picture.height <= MAX_PIXELS:
            picture.load()
            return picture
    # Damaged bytes make Pillow's decoders raise almost anything, warnings turned into errors included.
    except Exception as exc:
        raise NotAPictureError("the bytes are no decodable PNG, WebP or JPEG") from exc
    raise NotAPictureError(f"the picture has more than {MAX_PIXELS:,} pixels")


def _has_end(data: bytes, image_format: str) -> bool:
    """Look for the end mark, whose absence the decoders forgive."""
    if image_format == "PNG":
        return _PNG_END in data
    if image_format == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return data.rfind(_JPEG_END) > data.rfind(_JPEG_SCAN_START)
