"""The provider's rules for options, and its documented limits for the models gpt-image-2 and gpt-image-2.5.

They are those of the package ``openai`` 3.54. The limits of other models, including later snapshots of these, are not
known, so that only the provider refuses what they do not support.

Author: djjay
Date: 2026-11-21
"""

from __future__ import annotations

import math

_SIZE_STEP = 16
_MAX_RATIO = 3
_MAX_EDGE = 3840
_MAX_PIXELS = 3840 * 2160
# "Less than 50MB" and "less than 4MB", read as MiB: nothing is refused here that the provider may accept.
_MAX_INPUT_BYTES = 50 * 1024 * 1024
_MAX_MASK_BYTES = 4 * 1024 * 1024
_FIRST_MODELS = frozenset({"gpt-image-2", "gpt-image-2-2026-04-21"})
_LIMITED_MODELS = _FIRST_MODELS | {
    "gpt-image-2.5-flare",
    "gpt-image-2.5-flare-2026-09-08",
    "gpt-image-2.5-sunburst",
    "gpt-image-2.5-sunburst-2026-09-08",
}
_LATER_QUALITIES = ("xhigh", "max")


def background_problem(background: str | None, output_format: str | None) -> str | None:
    """Return the rule that a background breaks with an output format, or None. Either is None if it is not chosen."""
    is_shown = background != "transparent" or output_format != "jpeg"
    return None if is_shown else "transparent needs the output format png or webp"


def compression_problem(compression: int | None, output_format: str | None) -> str | None:
    """Return the rule that a compression breaks with an output format, or None. Either is None if it is not chosen."""
    is_lossless = output_format == "png"
    return "needs the output format webp or jpeg" if is_lossless and compression is not None else None


def size_problem(size: str) -> str | None:
    """Return the rule that a size, ``WIDTHxHEIGHT`` in pixels or ``auto``, breaks, or None."""
    if size == "auto":
        return None
    width, height = (int(edge) for edge in size.split("x"))
    short, long = sorted((width, height))
    if width % _SIZE_STEP or height % _SIZE_STEP:
        return f"width and height must be multiples of {_SIZE_STEP}"
    if long > _MAX_RATIO * short:
        return f"the ratio of width to height must be between 1:{_MAX_RATIO} and {_MAX_RATIO}:1"
    if long > _MAX_EDGE or short * long > _MAX_PIXELS:
        return f"must be at most {_MAX_EDGE} pixels wide and high, and have at most {_MAX_PIXELS:,} pixels"
    return None


def nearest_size(width: int, height: int) -> tuple[int, int]:
    """Return the largest size in pixels that the provider accepts within the given one, if there is one."""
    scale = min(1.0, _MAX_EDGE / max(width, height), math.sqrt(_MAX_PIXELS / (width * height)))
    width, height = (max(_SIZE_STEP, int(edge * scale) // _SIZE_STEP * _SIZE_STEP) for edge in (width, height))
    return min(width, _MAX_RATIO * height), min(height, _MAX_RATIO * width)


def has_documented_sizes(model: str) -> bool:
    """Return whether ``size_problem`` applies to a model."""
    return model in _LIMITED_MODELS


def quality_problem(quality: str, model: str) -> str | None:
    """Return the rule that a quality breaks with a model, or None."""
    if quality in _LATER_QUALITIES and model in _FIRST_MODELS:
        return f"{' and '.join(_LATER_QUALITIES)} need a later model than {model}"
    return None


def input_problem(size_bytes: int) -> str | None:
    """Return the rule that an input breaks, or None."""
    return None if size_bytes < _MAX_INPUT_BYTES else f"must have less than {_MAX_INPUT_BYTES >> 20} MiB"


def mask_problem(content_type: str, size_bytes: int) -> str | None:
    """Return the rule that a mask breaks, or None."""
    if content_type != "image/png":
        return "must be a PNG"
    return None if size_bytes < _MAX_MASK_BYTES else f"must have less than {_MAX_MASK_BYTES >> 20} MiB"


def fidelity_problem(model: str) -> str | None:
    """Return the rule that an input fidelity breaks with a model, or None."""
    return f"must be left out for {model}" if model in _FIRST_MODELS else None
