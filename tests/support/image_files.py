"""Image files of every kind that is stored, with what cameras and provenance tools put into them."""

from __future__ import annotations

import io
import zlib
from typing import Any

from PIL import Image

FORMATS = ("png", "webp", "jpeg")

LARGE_SIZE = (5_000, 4_000)


def encode(output_format: str, size: tuple[int, int] = (80, 48), mode: str = "RGB") -> bytes:
    """Encode noise."""
    picture = Image.effect_noise(size, 50).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, output_format)
    return buffer.getvalue()


def large_jpeg(mode: str, *, progressive: bool) -> bytes:
    """Encode one colour, in ``LARGE_SIZE``."""
    buffer = io.BytesIO()
    Image.new(mode, LARGE_SIZE).save(buffer, "jpeg", progressive=progressive, subsampling=0)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def raw_png(header: bytes, rows: bytes, *chunks: bytes) -> bytes:
    """Return a PNG with these fields in its header, these chunks before its data, and these filtered rows."""
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_of_size(width: int, height: int) -> bytes:
    """Return a small PNG that says to be of this size."""
    picture = encode("png")
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + picture[24:29]
    return picture[:8] + png_chunk(b"IHDR", header) + picture[33:]


def png_with(*chunks: bytes) -> bytes:
    """Return a PNG with these chunks before its data, the same each time."""
    picture = _gradient("png")
    return picture[:33] + b"".join(chunks) + picture[33:]


def jpeg_segment(marker: int, data: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data


def jpeg_with(*segments: bytes) -> bytes:
    """Return a JPEG with these segments at its start, the same each time."""
    picture = _gradient("jpeg")
    return picture[:2] + b"".join(segments) + picture[2:]


def webp_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP with these chunks, each as its name and its data, behind its image; the same each time."""
    # With XMP it has the extended header that further chunks need.
    parts = _gradient("webp", xmp=b"<x/>")[12:]
    for name, data in chunks:
        parts += name + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)
    return b"RIFF" + (4 + len(parts)).to_bytes(4, "little") + b"WEBP" + parts


def _gradient(output_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((80, 48)).convert("RGB").save(buffer, output_format, **options)
    return buffer.getvalue()


def animation(output_format: str, frames: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """Encode an animation whose frames differ."""
    pictures = [Image.new("RGB", size, (number % 256, number // 256, 0)) for number in range(frames)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, output_format, save_all=True, append_images=pictures[1:], duration=20, lossless=True)
    return buffer.getvalue()


# A JUMBF box, as C2PA has: a superbox with a description box.
_JUMBF = bytes.fromhex("0000001e6a756d62000000166a756d6463327061001100108000") + b"c2pa"

WITH_PROVENANCE = {
    "png": png_with(png_chunk(b"caBX", _JUMBF), png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>")),
    "jpeg": jpeg_with(
        jpeg_segment(0xEB, b"JP\0\1\0\0\0\1" + _JUMBF), jpeg_segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
    ),
    "webp": webp_with((b"C2PA", _JUMBF)),
}
"""For each format a file with marks of where it comes from, which nothing must change."""
