"""Formats images and names for terminals, for shells and as JSON."""

from __future__ import annotations

import base64
import json
import re
import shlex
import sys
from dataclasses import asdict
from datetime import datetime
from typing import Any

from pixyproxy.client import ContentInfo, Generation, GenerationOptions, ImageDetail, Usage

# Control characters, marks that change the direction of text, and surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_IN_NAMES = re.compile(f"{_UNSAFE.pattern}|[/\\\\]")
# Windows takes C:x for a file of another folder, x:y for a hidden stream of x and NUL.png for a device, and drops dots
# and spaces at the end of a name.
_UNSAFE_ON_WINDOWS = re.compile(r'[<>:"|?*]|[. ]+\Z')
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.|\Z)", re.IGNORECASE)
_MAX_NAME_BYTES = 200
_MAX_ENDING_BYTES = 16


def printable(text: str) -> str:
    """Make a text safe for a terminal: replace line breaks by spaces, and escape control characters."""
    return _UNSAFE.sub(_visible, re.sub(r"[\t\r\n]+", " ", text))


def shell_quoted(argument: str) -> str:
    """Quote an argument for a shell, so that the command can be copied from a terminal."""
    if not _UNSAFE.search(re.sub(r"[\t\n]", "", argument)):
        return shlex.quote(argument)
    # Not every shell has this form; so it is not used for line breaks alone.
    return "$'" + _UNSAFE.sub(_shell_escape, argument.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def json_line(content: dict[str, Any]) -> str:
    """Format JSON on one line, safe for a terminal, in the encoding of standard output."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(content, ensure_ascii=not is_unicode)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def json_of(image: ImageDetail) -> dict[str, Any]:
    """Return all fields of an image, with the names of the API's JSON; numbers stay numbers."""
    return asdict(image) | {
        "visibility": f"VISIBILITY_{image.visibility.name}",
        "created_at": rfc3339(image.created_at),
        "updated_at": rfc3339(image.updated_at),
        "options": image.options and image.options.as_dict(),
        "origin": f"ORIGIN_{image.origin.name}",
        "placeholder": base64.b64encode(image.placeholder).decode(),
    }


def lines_of(image: ImageDetail) -> list[str]:
    """Describe an image for people."""
    described = {
        "guid": image.guid,
        "prompt": image.prompt,
        "filename": image.filename,
        "tags": ", ".join(image.tags),
        "author": image.author,
        "visibility": image.visibility.name.lower(),
        "content": f"{image.width}x{image.height} {image.content_type}, {image.size_bytes:,} bytes",
        "sha256": image.sha256,
        "model": image.model,
        "options": _options(image.options) if image.options else "",
        "origin": image.origin.name.lower(),
        "sources": ", ".join(image.source_guids),
        "created": local_time(image.created_at),
        "updated": local_time(image.updated_at),
        "tokens": _tokens(image.usage) if image.usage else "",
        "cost": f"{dollars(image.cost.nano_usd)} (prices of {image.cost.price_list})" if image.cost else "",
    }
    return _lines(described)


def _options(options: GenerationOptions) -> str:
    used = options.as_dict()
    used.pop("model", None)  # It has a line of its own.
    return ", ".join(f"{name.removeprefix('output_').replace('_', ' ')} {value}" for name, value in used.items())


def _tokens(usage: Usage) -> str:
    parts = ", ".join(
        f"{text:,} of text and {images:,} of images {direction}"
        for text, images, direction in (
            (usage.input_text_tokens, usage.input_image_tokens, "in"),
            (usage.output_text_tokens, usage.output_image_tokens, "out"),
        )
        if text is not None and images is not None
    )
    return f"{usage.total_tokens:,}" + (f" ({parts})" if parts else "")


def json_of_generation(generation: Generation) -> dict[str, Any]:
    """Return a generation by the names and in the forms of the API's JSON, every field of it."""
    request, error = generation.request, generation.error
    times = {name: getattr(generation, name) for name in ("created_at", "submitted_at", "finished_at")}
    return asdict(generation) | {
        "state": f"GENERATION_STATE_{generation.state.name}",
        "request": request
        and asdict(request)
        | {
            "visibility": f"VISIBILITY_{request.visibility.name}",
            "request_id": generation.request_id,
            "inputs": [{"guid": guid} for guid in request.inputs],
            "mask": {"guid": request.mask} if request.mask else None,
        },
        "image": generation.image and json_of(generation.image),
        "error": error
        and asdict(error) | {"retry_after": None if error.retry_after is None else f"{error.retry_after}s"},
        **{name: time and rfc3339(time) for name, time in times.items()},
    }


def lines_of_generation(generation: Generation) -> list[str]:
    """Describe a generation to a person."""
    error = generation.error
    return _lines(
        {
            "guid": generation.guid,
            "state": generation.state.name.lower(),
            "prompt": generation.prompt,
            "author": generation.author,
            "request id": generation.request_id,
            "created": local_time(generation.created_at),
            "submitted": local_time(generation.submitted_at) if generation.submitted_at else "",
            "finished": local_time(generation.finished_at) if generation.finished_at else "",
            "attempts": str(generation.attempts or ""),
            "image": generation.image.guid if generation.image else "",
            "error": f"{error.reason}: {error.message}" if error else "",
        }
    )


def _lines(described: dict[str, str]) -> list[str]:
    return [f"{name:<10}  {printable(value)}" for name, value in described.items() if value]


def dollars(nano_usd: int) -> str:
    """Format an amount in dollars, exactly, with two decimals at least."""
    whole, nanos = divmod(nano_usd, 10**9)
    return f"${whole:,}.{f'{nanos:09}'.rstrip('0'):0<2}"


def local_time(time: datetime) -> str:
    """Format a time in the local time zone."""
    return f"{time.astimezone():%Y-%m-%d %H:%M}"


def file_name(info: ContentInfo | ImageDetail, rendition: int | None = None) -> str:
    """Return a safe file name for an image or a rendition: no path, not hidden, not like an option, not too long."""
    name = _UNSAFE_IN_NAMES.sub("_", info.filename)
    if sys.platform == "win32":
        name = _UNSAFE_ON_WINDOWS.sub("_", name)
    name = name.lstrip(".- ") or info.guid
    if sys.platform == "win32" and _DEVICE.match(name):
        name = f"_{name}"
    stem, dot, ending = name.rpartition(".")
    if not dot or len(ending.encode()) > _MAX_ENDING_BYTES:
        stem, dot, ending = name, "", ""
    stem = stem.encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
    return stem + dot + ending if rendition is None else f"{stem}-{rendition}.webp"


def _visible(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _shell_escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # A byte that is invalid in this locale, as Python represents it in arguments.
        code -= 0xDC00
        return f"\\x{code:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def rfc3339(time: datetime) -> str:
    """Format a time in UTC."""
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
