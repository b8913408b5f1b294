"""The provider's documented limits for the models gpt-image-2 and gpt-image-2.5.

They are those of the package ``openai`` 3.54. Nothing is known of other models, also of later dates of these: what
those refuse is for the provider to say.

Author: djjay
Date: 2026-11-21
"""

from __future__ import annotations

_SIZE_STEP = 16
_MAX_RATIO = 3
_MAX_EDGE = 3840
_MAX_PIXELS = 3840 * 2160
_FIRST_MODELS = frozenset({"gpt-image-2", "gpt-image-2-2026-04-21"})
_LIMITED_MODELS = _FIRST_MODELS | {
    "gpt-image-2.5-flare",
    "gpt-image-2.5-flare-2026-09-08",
    "gpt-image-2.5-sunburst",
    "gpt-image-2.5-sunburst-2026-09-08",
}
_LATER_QUALITIES = ("xhigh", "max")


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


def has_documented_sizes(model: str) -> bool:
    """Return whether ``size_problem`` applies to a model."""
    return model in _LIMITED_MODELS


def quality_problem(quality: str, model: str) -> str | None:
    """Return the rule that a quality breaks with a model, or None."""
    if quality in _LATER_QUALITIES and model in _FIRST_MODELS:
        return f"{' and '.join(_LATER_QUALITIES)} need a later model than {model}"
    return None


def fidelity_problem(model: str) -> str | None:
    """Return the rule that an input fidelity breaks with a model, or None."""
    return f"must be left out for {model}" if model in _FIRST_MODELS else None
