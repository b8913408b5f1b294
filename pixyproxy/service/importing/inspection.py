"""Checks files that callers send: each must be one whole PNG, WebP or JPEG and nothing else.

The chunks or segments of a file are followed from its first byte to its last: a file with anything before or after the
image may be taken for another kind of file by other programs. Data in chunks or segments of their own, such as EXIF,
XMP, ICC profiles and C2PA manifests, belongs to the image. Then the image is decoded.
"""

from __future__ import annotations

import re
import sys
import threading
import warnings
import zlib
from mmap import mmap
from typing import IO, cast

from PIL import Image, ImageFile, PngImagePlugin

from pixyproxy.generation.image_format import (
    CONTENT_TYPES,
    FORMATS,
    MAX_EDGE,
    MAX_PIXELS,
    ImageFormat,
    NotAnImageError,
)

# The decoders of WebP and of animations hold up to four canvases of 4 bytes a pixel, that of PNG one.
_MAX_CANVAS_PIXELS = MAX_PIXELS // 4
# Files of usual encoders have at most some thousands. Pillow takes a hundred bytes for each, whatever its size.
_MAX_PARTS = 65_536
# Encoders make some twenty at most. A scan of 92 bytes can take as long to decode as all pixels.
_MAX_SCANS = 100
# One is usual. Pillow copies all that come before for each further one.
_MAX_EXIF_SEGMENTS = 64

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK = 12  # length, type and checksum
_JPEG_START = b"\xff\xd8"
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_JPEG_END, _JPEG_SCAN, _JPEG_APP1, _JPEG_APP2 = 0xD9, 0xDA, 0xE1, 0xE2
# TEM and the restart markers, which have no length.
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_ZEROS = re.compile(rb"\x00*")

# Pillow distrusts the size that a file states: it reads a large chunk in blocks and joins them, which takes twice its
# size. A mapping never returns more than it has. The limit of decompressed text is the size of a block, too.
PngImagePlugin.MAX_TEXT_CHUNK = 1024 * 1024
ImageFile.SAFEBLOCK = sys.maxsize

# Decoding takes up to 8 bytes for each of MAX_PIXELS, in a progressive JPEG. Few images are imported, so that one at a
# time suffices.
_decoding = threading.Lock()


def inspect_file(data: mmap) -> ImageFormat:
    """Check a file, and return its format.

    Raises:
        NotAnImageError: it is no PNG, WebP or JPEG, is damaged or incomplete, has anything before or after the image,
            or is too large.
    """
    try:
        end = _end_of_image(data)
        if end < len(data):
            raise NotAnImageError(f"must end with the image, which is followed by {len(data) - end:,} bytes")
        # Pillow warns, on standard error, of what is odd in metadata.
        with _decoding, warnings.catch_warnings(action="ignore"):
            return _decoded(data)
    except NotAnImageError:
        raise
    except Image.DecompressionBombError as exc:
        raise _too_many_pixels(MAX_PIXELS) from exc
    # For damaged bytes, Pillow raises almost any exception.
    except Exception as exc:
        raise _damaged() from exc


def _decoded(data: mmap) -> ImageFormat:
    # A mapping has the methods of a file.
    image = Image.open(cast(IO[bytes], data), formats=FORMATS)
    content_type = CONTENT_TYPES[image.format or ""]
    # Further images of a JPEG, such as a gain map, are not shown in its place.
    frames = 1 if content_type == "image/jpeg" else getattr(image, "n_frames", 1)
    most = MAX_PIXELS if frames == 1 and content_type != "image/webp" else _MAX_CANVAS_PIXELS
    width, height = image.size
    if frames * width * height > most:
        raise _too_many_pixels(most)
    if max(width, height) > MAX_EDGE:
        raise NotAnImageError(f"must be at most {MAX_EDGE:,} pixels wide and high")
    # A JPEG is decoded at an eighth of its size: that reads all of its data, too, with less memory.
    image.draft(None, (1, 1))
    for frame in range(frames):
        image.seek(frame)
        image.load()
    return ImageFormat(content_type, width, height)


# --- The structure of a file ------------------------------------------------------------------------------------------


def _end_of_image(data: mmap) -> int:
    """Return the offset behind the last byte of the image that a file begins with."""
    if data[:8] == _PNG_START:
        return _end_of_png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _end_of_webp(data)
    if data[:2] == _JPEG_START:
        return _end_of_jpegs(data)
    raise NotAnImageError("must be a PNG, WebP or JPEG")


def _end_of_png(data: mmap) -> int:
    position = len(_PNG_START)
    for _ in range(_MAX_PARTS):
        end = position + _PNG_CHUNK + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            raise _damaged()
        # Without a copy, because a chunk may be as large as the file.
        with memoryview(data) as view, view[position + 4 : end - 4] as chunk:
            checksum = zlib.crc32(chunk)
        if checksum != int.from_bytes(data[end - 4 : end], "big"):
            raise _damaged()
        if data[position + 4 : position + 8] == b"IEND":
            return end
        position = end
    raise _too_many_parts()


def _end_of_webp(data: mmap) -> int:
    end = 8 + int.from_bytes(data[4:8], "little")
    position = 12
    for _ in range(_MAX_PARTS):
        if position == end:
            return end
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + size + size % 2
        if position > min(end, len(data)):
            raise _damaged()
    raise _too_many_parts()


def _end_of_jpegs(data: mmap) -> int:
    """Return the end of a JPEG, or, if it has a multi-picture index, of all the JPEGs that follow one another."""
    end, has_index = _end_of_jpeg(data, 0)
    for _ in range(_MAX_PARTS):
        if not has_index:
            return end
        # Cameras align the images.
        start = cast(re.Match[bytes], _ZEROS.match(data, end)).end()
        if data[start : start + 2] != _JPEG_START:
            return start
        end, _ = _end_of_jpeg(data, start)
    raise _too_many_parts()


def _end_of_jpeg(data: mmap, start: int) -> tuple[int, bool]:
    """Return the end of the JPEG that begins at ``start``, and whether it has a multi-picture index."""
    position = start + len(_JPEG_START)
    has_index = False
    scans = exif_segments = 0
    for _ in range(_MAX_PARTS):
        marker = _JPEG_MARKER.match(data, position)
        if marker is None:
            raise _damaged()
        code, position = marker[1][0], marker.end()
        if code == _JPEG_END:
            return position, has_index
        if code in _JPEG_ALONE:
            continue
        has_index |= code == _JPEG_APP2 and data[position + 2 : position + 6] == b"MPF\0"
        scans += code == _JPEG_SCAN
        exif_segments += code == _JPEG_APP1 and data[position + 2 : position + 8] == b"Exif\0\0"
        if scans > _MAX_SCANS:
            raise NotAnImageError(f"must have at most {_MAX_SCANS} scans")
        if exif_segments > _MAX_EXIF_SEGMENTS:
            raise NotAnImageError(f"must have at most {_MAX_EXIF_SEGMENTS} segments of EXIF")
        position += int.from_bytes(data[position : position + 2], "big")
        if code == _JPEG_SCAN:
            scan_end = _JPEG_SCAN_END.search(data, position)
            position = len(data) if scan_end is None else scan_end.start()
    raise _too_many_parts()


def _damaged() -> NotAnImageError:
    return NotAnImageError("must be a whole PNG, WebP or JPEG; this one is damaged or incomplete")


def _too_many_parts() -> NotAnImageError:
    return NotAnImageError(f"must have at most {_MAX_PARTS:,} chunks or segments")


def _too_many_pixels(most: int) -> NotAnImageError:
    return NotAnImageError(
        f"must have at most {most:,} pixels"
        + (", which for a WebP or an animation includes all frames" if most < MAX_PIXELS else "")
    )
