"""Price lists: what images cost by them, and which errors in them are named."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pixyproxy.core.exceptions import ConfigurationError
from pixyproxy.core.models import Cost, GenerationOptions, Usage
from pixyproxy.generation.openai.images import read_usage
from pixyproxy.generation.price_list import DEFAULT_PRICE_LIST, ModelPrices, PriceList, read_price_list
from tests.support.recorded_answers import RECORDED_ANSWERS, RecordedAnswer

DEFAULTS = read_price_list(DEFAULT_PRICE_LIST)
USAGE = Usage(input_tokens=3, output_tokens=5, total_tokens=8)


def prices(**values: Any) -> PriceList:
    """A list with a single model."""
    defaults = {"text_input": Decimal(0), "image_output": Decimal(0)}
    return PriceList(name="one", models={"a": ModelPrices(**(defaults | values))})


@pytest.mark.parametrize("answer", RECORDED_ANSWERS, ids=str)
def test_recorded_answers_cost_what_was_computed_by_hand(answer: RecordedAnswer) -> None:
    cost = DEFAULTS.cost_of(answer.model, read_usage(answer.usage), has_inputs=answer.is_edit)

    assert cost == (None if answer.nano_usd is None else Cost(nano_usd=answer.nano_usd, price_list="2026-11-21"))


@pytest.mark.parametrize(
    ("price", "nano_usd"),
    [
        ("0.0001", 1),  # 5 * 0.1 = 0.5
        ("0.000099999", 0),  # 0.499995
        ("0.0003", 2),  # 1.5
        ("0.00029", 1),  # 1.45
        ("0.000000001", 0),
        ("1000000", 5_000_000_000),
    ],
)
def test_a_cost_is_rounded_once_halves_up(price: str, nano_usd: int) -> None:
    assert prices(image_output=Decimal(price)).cost_of("a", USAGE, has_inputs=False) == Cost(
        nano_usd=nano_usd, price_list="one"
    )


def test_parts_are_not_rounded_by_themselves() -> None:
    # 3 * 0.1 + 5 * 0.1 = 0.8, of which each part alone would be rounded to another sum.
    listed = prices(text_input=Decimal("0.0001"), image_output=Decimal("0.0001"))
    cost = listed.cost_of("a", USAGE, has_inputs=False)
    assert cost is not None
    assert cost.nano_usd == 1


@pytest.mark.parametrize("usage", [None, USAGE, Usage(input_tokens=0, output_tokens=0, total_tokens=0)])
def test_a_free_model_costs_nothing_whatever_was_counted(usage: Usage | None) -> None:
    assert prices().cost_of("a", usage, has_inputs=True) == Cost(nano_usd=0, price_list="one")


def test_a_part_that_is_not_named_is_the_rest() -> None:
    listed = prices(text_input=Decimal(1), image_input=Decimal(10), image_output=Decimal(100), text_output=Decimal(7))
    usage = Usage(input_tokens=3, input_image_tokens=2, output_tokens=5, output_text_tokens=1, total_tokens=8)
    cost = listed.cost_of("a", usage, has_inputs=True)
    assert cost is not None
    assert cost.nano_usd == 1 * 1_000 + 2 * 10_000 + 1 * 7_000 + 4 * 100_000


@pytest.mark.parametrize("part", ["input_text_tokens", "output_image_tokens"])
def test_a_part_that_is_more_than_the_whole_has_no_cost(part: str) -> None:
    usage = USAGE.model_copy(update={part: 6})
    assert prices(image_output=Decimal(1)).cost_of("a", usage, has_inputs=False) is None


def test_a_cost_that_no_database_can_store_is_unknown() -> None:
    most = Usage(input_tokens=0, output_tokens=2**62, total_tokens=2**62)
    assert prices(image_output=Decimal(1)).cost_of("a", most, has_inputs=False) is None


def test_a_snapshot_has_prices_of_its_own_where_they_are_listed() -> None:
    listed = PriceList(
        name="two",
        models={
            "a": ModelPrices(text_input=Decimal(0), image_output=Decimal(1)),
            "a-2026-01-02": ModelPrices(text_input=Decimal(0), image_output=Decimal(2)),
        },
    )
    costs = {
        model: listed.cost_of(model, USAGE, has_inputs=False)
        for model in ("a", "a-2026-01-02", "a-2026-02-03", "a-2026-02", "a-2026-02-03-x", "b-2026-02-03", "A")
    }
    assert {model: cost and cost.nano_usd for model, cost in costs.items()} == {
        "a": 5_000,
        "a-2026-01-02": 10_000,
        "a-2026-02-03": 5_000,
        "a-2026-02": None,
        "a-2026-02-03-x": None,
        "b-2026-02-03": None,
        "A": None,
    }


MODEL = '[models."a"]\ntext_input = 5\nimage_output = 30.5\n'


def refusal(path: Path, text: str | bytes) -> list[str]:
    """The lines of the message, without the path."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigurationError) as refused:
        read_price_list(path)
    lines = refused.value.message.split("\n")
    assert all(line.startswith(f"{path}, line ") for line in lines)
    return [line.removeprefix(f"{path}, line ") for line in lines]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["1: models: is missing.", "1: name: is missing."]),
        (MODEL, ["1: name: is missing."]),
        ('# a comment\nname = ""\n' + MODEL, ["2: name: must match pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'."]),
        ('name = "x"\nmodels = 5\n', ["2: models: must be a valid dictionary."]),
        ('name = "x"\n\nmodels = {}\n', ["3: models: must have at least 1 item after validation, not 0."]),
        (f'name = "x"\ncolour = 1\n{MODEL}', ["2: colour: is not a key of a price list."]),
        (f'name = "x"\n{MODEL}cached = 1\n', ["5: models.a.cached: is not a key of a price list."]),
        (f'name = "x"\n{MODEL}image_input = -1\n', ["5: models.a.image_input: must be greater than or equal to 0."]),
        (f'name = "x"\n{MODEL}image_input = nan\n', ["5: models.a.image_input: must be a finite number."]),
        (f'name = "x"\n{MODEL}image_input = -inf\n', ["5: models.a.image_input: must be a finite number."]),
        (f'name = "x"\n{MODEL}image_input = "5"\n', ["5: models.a.image_input: must be a number, such as 5.00."]),
        (f'name = "x"\n{MODEL}image_input = true\n', ["5: models.a.image_input: must be a number, such as 5.00."]),
        (
            f'name = "x"\n{MODEL}image_input = 1e999999999\n',
            ["5: models.a.image_input: must be less than or equal to 1000000."],
        ),
        (
            f'name = "x"\n{MODEL}image_input = 1e-999999999\n',
            ["5: models.a.image_input: must have no more than 9 decimal places."],
        ),
        (
            f'name = "x"\n{MODEL}\n[models."b"]\n\ntext_input = 5\n[models.c]\ntext_input = -5\nimage_output = 1\n',
            ["6: models.b.image_output: is missing.", "10: models.c.text_input: must be greater than or equal to 0."],
        ),
        (f'name = "x"\n{MODEL}\n{MODEL}', ["6: Cannot declare ('models', 'a') twice."]),
        (f'name = "x"\n{MODEL}text_input = 6\n', ["5: Cannot overwrite a value."]),
        (f'name = "x"\n{MODEL}[models."b]\n', ["5: Illegal character '\\n'."]),
        ('name = "x"\n[models.a', ["2: Expected ']' at the end of a table declaration."]),
        (b'name = "x"\n# \xff\n', ["2: not text in UTF-8."]),
    ],
)
def test_errors_are_named_with_their_lines(tmp_path: Path, text: str | bytes, problems: list[str]) -> None:
    assert refusal(tmp_path / "prices.toml", text) == problems


def test_a_model_without_a_name_is_refused(tmp_path: Path) -> None:
    [problem] = refusal(tmp_path / "prices.toml", 'name = "x"\n[models."a b"]\ntext_input = 5\nimage_output = 1\n')
    assert problem.startswith("2: models.a b: must be a model name of 1 to 64 letters, digits")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"prices.toml cannot be read: No such file or directory\.$"):
        read_price_list(tmp_path / "prices.toml")


def test_numbers_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(f'name = "x"\n{MODEL}image_input = 0.1\n')

    assert read_price_list(path) == PriceList(
        name="x",
        models={"a": ModelPrices(text_input=Decimal(5), image_input=Decimal("0.1"), image_output=Decimal("30.5"))},
    )


# --- What an image costs at most -------------------------------------------------------------------------------------


def most_of(listed: PriceList, prompt: str, options: GenerationOptions, inputs: int) -> int | None:
    of_model = listed.prices_of(options.model or "")
    return None if of_model is None else of_model.most_nano_usd(prompt, options, inputs)


@pytest.mark.parametrize(
    ("options", "inputs", "output_tokens", "input_tokens"),
    [
        ({}, 0, 12_288, 0),
        ({"size": "auto", "quality": "auto"}, 0, 12_288, 0),
        ({"size": "1024x1024", "quality": "low"}, 0, 512, 0),
        ({"size": "1024x1024", "quality": "medium"}, 0, 2_048, 0),
        ({"size": "1536x1024", "quality": "high"}, 0, 12_288, 0),
        ({"size": "1024x1024", "quality": "max"}, 0, 32_768, 0),
        # A small image costs more for each of its pixels.
        ({"size": "16x16", "quality": "high"}, 0, 8_192, 0),
        ({"size": "1024x1024", "quality": "low", "partial_images": 3}, 0, 512 + 768, 0),
        ({"size": "1024x1024", "quality": "low"}, 2, 512, 16_384),
    ],
)
def test_an_image_costs_at_most_what_its_options_and_inputs_make(
    options: dict[str, Any], inputs: int, output_tokens: int, input_tokens: int
) -> None:
    most = most_of(DEFAULTS, "ü", GenerationOptions(model="gpt-image-2", **options), inputs)
    assert most == output_tokens * 30_000 + input_tokens * 8_000 + (2 + 256) * 5_000


def test_what_a_model_costs_at_most_is_known_where_it_has_a_price() -> None:
    assert most_of(DEFAULTS, "x", GenerationOptions(model="gpt-image-2-2026-04-21"), 0) is not None
    assert most_of(DEFAULTS, "x", GenerationOptions(model="who-knows"), 0) is None
    assert most_of(prices(), "x", GenerationOptions(model="a", size="99999x99999", quality="max"), 16) == 0


@pytest.mark.parametrize("answer", RECORDED_ANSWERS, ids=str)
def test_recorded_answers_cost_less_than_the_most(answer: RecordedAnswer) -> None:
    most = most_of(DEFAULTS, "x", GenerationOptions(model=answer.model), int(answer.is_edit))
    assert most is None or answer.nano_usd is None or answer.nano_usd <= most
