"""Makes images of parsed answers of the provider, with the options and the token counts that these name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from mmap import mmap
from typing import Any

from pydantic import ValidationError

from pixyproxy.core.models import GenerationOptions, PartialImage, Usage
from pixyproxy.core.provider_limits import background_problem, compression_problem
from pixyproxy.generation.image_format import inspect_image
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest
from pixyproxy.generation.openai.answer import images_of

_MAX_TOKENS = 2**31 - 1  # more than any image takes, and few enough for sums in a database's integer

_logger = logging.getLogger(__name__)


def image_of(request: GenerationRequest, answer: Mapping[str, Any], data: bytes | mmap) -> GeneratedImage:
    """Return the image of an answer, with what the answer says of it.

    Raises:
        ValueError: the bytes are no image.
    """
    image_format = inspect_image(data)
    count = len(images_of(answer))
    if count > 1:
        _logger.warning("The image provider sent %d images for one request; all but the first are dropped.", count)
    return GeneratedImage(
        data=memoryview(data).toreadonly(),
        content_type=image_format.content_type,
        width=image_format.width,
        height=image_format.height,
        model=request.model,
        options=_options_used(request, answer),
        usage=read_usage(answer.get("usage")),
    )


def partial_of(answer: Mapping[str, Any], data: bytes | mmap, wanted: int) -> PartialImage:
    """Return the partial image of an event.

    Raises:
        ValueError: the bytes are no image, or it is none of those ``wanted``.
    """
    index = answer.get("partial_image_index")
    if not isinstance(index, int) or not 0 <= index < wanted:
        raise ValueError("a partial image that nobody wants")
    content_type = inspect_image(data).content_type
    return PartialImage.model_construct(index=index, content_type=content_type, data=bytes(memoryview(data)))


def read_usage(usage: object) -> Usage | None:
    """Return the token counts, or None if they are not three integers: the image is kept nevertheless."""
    if not isinstance(usage, dict):
        return None
    counts = {name: _token_count(usage.get(name)) for name in ("input_tokens", "output_tokens", "total_tokens")}
    if None in counts.values():
        return None
    for direction in ("input", "output"):
        parts = usage.get(f"{direction}_tokens_details")
        for kind in ("text", "image"):
            count = parts.get(f"{kind}_tokens") if isinstance(parts, dict) else None
            counts[f"{direction}_{kind}_tokens"] = _token_count(count)
    return Usage.model_validate(counts)


def _token_count(count: object) -> int | None:
    # Some servers write integers as 11.0.
    if isinstance(count, float) and count.is_integer():
        count = int(count)
    # True is an int, too.
    return count if type(count) is int and 0 <= count <= _MAX_TOKENS else None


def _options_used(request: GenerationRequest, answer: Mapping[str, Any]) -> GenerationOptions:
    """Return the options that the answer names, and those of the request in place of others."""
    options = dict(request.options)
    for name in ("size", "quality", "output_format", "background"):
        with suppress(ValidationError):  # A compatible server may write anything.
            named = GenerationOptions.model_validate({name: answer.get(name)})
            # A stream may repeat "auto", which does not tell what was used.
            options |= {name: value for name, value in named if value not in (None, "auto")}
    # A server that chose another format than it was asked for did not use what that format does not have. Options that
    # contradict each other would be invalid, and the image lost.
    if compression_problem(options["output_compression"], options["output_format"]) is not None:
        options["output_compression"] = None
    if background_problem(options["background"], options["output_format"]) is not None:
        options["background"] = None
    return GenerationOptions.of_checked(options)
