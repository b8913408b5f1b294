"""Price lists, and what an image costs by one of them. ``price_list.toml`` is the default, and describes the form."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from pixyproxy.core.exceptions import ConfigurationError
from pixyproxy.core.fields import ModelName, broken_rule
from pixyproxy.core.models import Cost, GenerationOptions, Model, Usage

DEFAULT_PRICE_LIST = Path(__file__).with_name("price_list.toml")

_NANO_USD_PER_TOKEN = 1000
"""The price of a token in billionths of a dollar where a million tokens cost a dollar."""
_MAX_NANO_USD = 2**63 - 1  # what a database's integer holds
_SNAPSHOT = re.compile(r"(.+)-\d{4}-\d{2}-\d{2}")

# The most tokens that a generation is assumed to take; docs/decisions/quotas.md says why.
_MEGAPIXEL = 2**20
_OUTPUT_TOKENS_A_MEGAPIXEL = {"low": 512, "medium": 2048, "high": 8192, "auto": 8192, "xhigh": 16_384, "max": 32_768}
_PIXELS_OF_AUTO = 1536 * 1024
_TOKENS_A_PARTIAL_IMAGE = 256
_TOKENS_AN_INPUT = 8192
_TOKENS_BESIDE_THE_PROMPT = 256
_OUTPUT_TEXT_TOKENS = 4096


_PROBLEMS = {"missing": "is missing", "extra_forbidden": "is not a key of a price list"}


def _check_number(price: Any) -> Any:
    # Pydantic would take texts and truth values as well.
    if type(price) not in (int, Decimal):
        raise broken_rule("must be a number, such as 5.00")
    return price


Price = Annotated[
    Decimal, BeforeValidator(_check_number), Field(ge=0, le=1_000_000, decimal_places=9, allow_inf_nan=False)
]


class ModelPrices(Model):
    """The prices of a model in dollars per million tokens; None for tokens that it does not have."""

    text_input: Price
    image_input: Price | None = None
    text_output: Price | None = None
    image_output: Price

    def nano_usd(self, usage: Usage | None, *, has_inputs: bool) -> Fraction | None:
        """Return what a generation costs exactly, or None if that is unknown; arguments as for ``cost_of``."""
        if not any((self.text_input, self.image_input, self.text_output, self.image_output)):
            return Fraction(0)
        if usage is None or usage.output_tokens == 0:
            return None  # Some servers send zeros in place of counts.
        text, image = usage.input_text_tokens, usage.input_image_tokens
        if text is None and not has_inputs:
            image = image or 0
        parts = (
            _nano_usd(usage.input_tokens, text, image, self.text_input, self.image_input),
            _nano_usd(
                usage.output_tokens,
                usage.output_text_tokens,
                usage.output_image_tokens,
                self.text_output,
                self.image_output,
            ),
        )
        return None if None in parts else sum(filter(None, parts), Fraction(0))

    def most_nano_usd(self, prompt: str, options: GenerationOptions, inputs: int) -> int:
        """Return what a generation is assumed to cost at most; the mask counts as one of its ``inputs``."""
        pixels = _PIXELS_OF_AUTO
        if options.size not in (None, "auto"):
            width, height = str(options.size).split("x")
            pixels = int(width) * int(height)
        image_tokens = Fraction(max(pixels, _MEGAPIXEL), _MEGAPIXEL) * _OUTPUT_TOKENS_A_MEGAPIXEL[
            options.quality or "auto"
        ] + _TOKENS_A_PARTIAL_IMAGE * (options.partial_images or 0)
        # A token has at least a byte.
        text_tokens = len(prompt.encode()) + _TOKENS_BESIDE_THE_PROMPT
        return math.ceil(
            _NANO_USD_PER_TOKEN
            * (
                text_tokens * Fraction(self.text_input)
                + inputs * _TOKENS_AN_INPUT * Fraction(self.image_input or 0)
                + _OUTPUT_TEXT_TOKENS * Fraction(self.text_output or 0)
                + image_tokens * Fraction(self.image_output)
            )
        )


def _nano_usd(
    total: int, text: int | None, image: int | None, text_price: Decimal | None, image_price: Decimal | None
) -> Fraction | None:
    """Return the price of the tokens of one direction, or None if it is unknown how many are of which kind."""
    if text is None and image is None:
        if text_price is not None and image_price is not None:
            return None
        text, image = (0, total) if text_price is None else (total, 0)
    text = total - (image or 0) if text is None else text
    image = total - text if image is None else image
    if min(text, image) < 0 or text + image != total:
        return None
    if (text and text_price is None) or (image and image_price is None):
        return None
    return _NANO_USD_PER_TOKEN * (text * Fraction(text_price or 0) + image * Fraction(image_price or 0))


class PriceList(Model):
    """A price list.

    Attributes:
        name: its name, which is stored with every cost.
        models: the prices by the name of the model.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    models: dict[ModelName, ModelPrices] = Field(min_length=1)

    def cost_of(self, model: str, usage: Usage | None, *, has_inputs: bool) -> Cost | None:
        """Return what an image costs, rounded to the nearest nano-dollar, halves up; None if that is unknown.

        Args:
            model: the model that generated it.
            usage: the tokens that the provider counted, or None.
            has_inputs: whether it was made from other images.
        """
        prices = self.prices_of(model)
        nano_usd = None if prices is None else prices.nano_usd(usage, has_inputs=has_inputs)
        if nano_usd is None or nano_usd > _MAX_NANO_USD:
            return None
        return Cost(nano_usd=math.floor(nano_usd + Fraction(1, 2)), price_list=self.name)

    def prices_of(self, model: str) -> ModelPrices | None:
        """Return the prices of a model, or None; a dated snapshot that has none has those of its model."""
        snapshot = _SNAPSHOT.fullmatch(model)
        return self.models.get(model) or (self.models.get(snapshot[1]) if snapshot else None)


# --- Reading a price list --------------------------------------------------------------------------------------------


def read_price_list(path: Path) -> PriceList:
    """Read a price list.

    Raises:
        ConfigurationError: the file cannot be read, or has errors; the message names each with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}, line {line}: not text in UTF-8.") from error
    try:
        return PriceList.model_validate(_parsed(text))
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error))
        what, line_number = found.groups() if found else (str(error), None)
        raise ConfigurationError(f"{path}, line {line_number or text.count(chr(10)) + 1}: {what}.") from error
    except ValidationError as error:
        problems = [
            (_line_of(detail["loc"], text), _key(detail["loc"]), _PROBLEMS.get(detail["type"], detail["msg"]))
            for detail in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigurationError(
            "\n".join(
                f"{path}, line {line}: {key}: {re.sub('^.* should', 'must', problem)}."
                for line, key, problem in sorted(problems)
            )
        ) from error


def _parsed(text: str) -> dict[str, Any]:
    return tomllib.loads(text, parse_float=Decimal)


def _key(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location if part != "[key]")


def _line_of(location: Sequence[int | str], text: str) -> int:
    """Return the line that defines a key, or the table that the key is missing from.

    tomllib does not tell: it is the last line of the shortest beginning of the text that has the key.
    """
    lines = text.splitlines(keepends=True)
    for depth in range(len(location), 0, -1):
        for count in range(1, len(lines) + 1):
            try:
                found: Any = _parsed("".join(lines[:count]))
                for part in location[:depth]:
                    found = found[part]
            except (tomllib.TOMLDecodeError, KeyError, TypeError):
                continue
            return count
    return 1
