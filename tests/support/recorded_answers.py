"""Answers of the Images API as it words them, without the image bytes, and what each of them costs.

The costs are computed by hand from the prices in ``pixyproxy/generation/price_list.toml``: dollars per million tokens
are thousands of nano-dollars per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RecordedAnswer:
    """An answer, or the completed event of a stream.

    Attributes:
        name: what it is.
        model: the model that was asked.
        usage: the usage in the answer, None where it has none.
        nano_usd: what it costs, None where that cannot be known.
        is_streamed: whether it is the last event of a stream.
        is_edit: whether images were sent with the request.
    """

    name: str
    model: str
    usage: dict[str, Any] | None
    nano_usd: int | None
    is_streamed: bool = False
    is_edit: bool = False

    def __str__(self) -> str:
        return self.name


def _usage(
    input_tokens: int,
    output_tokens: int,
    *,
    input_details: tuple[int, int] | None = None,
    output_details: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Return a usage; the details are the tokens of texts and of images."""
    usage: dict[str, Any] = {"input_tokens": input_tokens}
    if input_details is not None:
        usage["input_tokens_details"] = {"image_tokens": input_details[1], "text_tokens": input_details[0]}
    usage["output_tokens"] = output_tokens
    if output_details is not None:
        usage["output_tokens_details"] = {"image_tokens": output_details[1], "text_tokens": output_details[0]}
    return usage | {"total_tokens": input_tokens + output_tokens}


RECORDED_ANSWERS = (
    RecordedAnswer(
        "generate",
        "gpt-image-2.5-flare",
        _usage(13, 1056, input_details=(13, 0), output_details=(0, 1056)),
        31_745_000,  # 13 * 5,000 + 1,056 * 30,000 = 65,000 + 31,680,000
    ),
    RecordedAnswer(
        "generate in high quality",
        "gpt-image-2",
        _usage(1_234, 6_208, input_details=(1_234, 0), output_details=(0, 6_208)),
        192_410_000,  # 1,234 * 5,000 + 6,208 * 30,000 = 6,170,000 + 186,240,000
    ),
    RecordedAnswer(
        "generate with a dated snapshot",
        "gpt-image-2.5-sunburst-2026-09-08",
        _usage(7, 196, input_details=(7, 0), output_details=(0, 196)),
        5_915_000,  # 7 * 5,000 + 196 * 30,000 = 35,000 + 5,880,000
    ),
    RecordedAnswer(
        "stream",
        "gpt-image-2.5-flare",
        # It has no output_tokens_details. The model has no price for texts: all output tokens are those of images.
        _usage(13, 1056, input_details=(13, 0)),
        31_745_000,  # as above
        is_streamed=True,
    ),
    RecordedAnswer(
        "stream with two partial images",
        "gpt-image-2.5-flare",
        _usage(13, 1256, input_details=(13, 0)),  # 2 * 100 more output tokens
        37_745_000,  # 13 * 5,000 + 1,256 * 30,000 = 65,000 + 37,680,000
        is_streamed=True,
    ),
    RecordedAnswer(
        "generate without any details",
        "gpt-image-2",
        _usage(13, 1056),  # A generation from a prompt alone has no image input.
        31_745_000,  # as above
    ),
    RecordedAnswer(
        "generate with texts in the output",
        "gpt-image-1.5",
        _usage(50, 1_100, input_details=(50, 0), output_details=(44, 1_056)),
        34_482_000,  # 50 * 5,000 + 44 * 10,000 + 1,056 * 32,000 = 250,000 + 440,000 + 33,792,000
    ),
    RecordedAnswer(
        "generate with a price of fractions of a cent",
        "gpt-image-1-mini",
        _usage(3, 272, input_details=(3, 0), output_details=(0, 272)),
        2_182_000,  # 3 * 2,000 + 272 * 8,000 = 6,000 + 2,176,000
    ),
    RecordedAnswer(
        "stream of a model with texts in the output",
        "gpt-image-1.5",
        _usage(50, 1_100, input_details=(50, 0)),
        None,  # How many of the 1,100 are dear is unknown.
        is_streamed=True,
    ),
    RecordedAnswer(
        "edit",
        "gpt-image-2.5-flare",
        _usage(1_046, 1_056, input_details=(22, 1_024), output_details=(0, 1_056)),
        39_982_000,  # 22 * 5,000 + 1,024 * 8,000 + 1,056 * 30,000 = 110,000 + 8,192,000 + 31,680,000
        is_edit=True,
    ),
    RecordedAnswer(
        "streamed edit",
        "gpt-image-2.5-flare",
        _usage(1_046, 1_156, input_details=(22, 1_024)),
        42_982_000,  # as above, and 100 * 30,000 for a partial image
        is_streamed=True,
        is_edit=True,
    ),
    RecordedAnswer(
        "edit without any details",
        "gpt-image-2",
        _usage(1_046, 1_056),
        None,  # How many of the 1,046 are those of the images is unknown.
        is_edit=True,
    ),
    RecordedAnswer("no usage", "gpt-image-2", None, None),
    RecordedAnswer("zeros in place of counts", "gpt-image-2", _usage(0, 0), None),
    RecordedAnswer(
        "details that are not the whole",
        "gpt-image-2",
        _usage(13, 1_056, input_details=(12, 0), output_details=(0, 1_056)),
        None,
    ),
    RecordedAnswer(
        "texts in the output of a model without a price for them",
        "gpt-image-2",
        _usage(13, 1_056, input_details=(13, 0), output_details=(6, 1_050)),
        None,
    ),
    RecordedAnswer(
        "a model that the price list does not have",
        "gpt-image-2.6-flare",
        _usage(13, 1_056, input_details=(13, 0), output_details=(0, 1_056)),
        None,
    ),
)
