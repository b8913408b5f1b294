"""The content of an error answer, which each provider and gateway writes in its own way."""

from __future__ import annotations

import pytest

from pixyproxy.generation.openai.errors import ErrorAnswer


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ({"message": "Too large.", "detail": "no", "error": "no"}, "Too large."),
        ({"message": None, "detail": "Too large.", "error": "no"}, "Too large."),
        ({"error": "Too large."}, "Too large."),
        ("Too large.", "Too large."),
        ({"reason": 7}, '{"reason": 7}'),
        ([{"reason": 7}], '[{"reason": 7}]'),
        ({}, ""),
        (None, ""),
    ],
)
def test_the_text_is_found_wherever_it_is(error: object, message: str) -> None:
    assert ErrorAnswer.of(error).message == message


@pytest.mark.parametrize(
    ("error", "codes"),
    [
        ({"code": "Rate_Limit", "type": "requests"}, {"rate_limit", "requests"}),
        ({"type": "Requests"}, {"requests"}),
        ({"code": None, "type": 7}, set()),
    ],
)
def test_the_codes_are_its_code_and_its_type(error: object, codes: set[str]) -> None:
    assert ErrorAnswer.of(error).codes == codes


def test_the_log_says_what_is_missing() -> None:
    assert ErrorAnswer.of(None).for_log("a fox", "the-key") == "no code, param none: no message"


def test_a_refusal_has_few_enough_categories_to_be_recorded() -> None:
    """One that the database refuses would never be recorded."""
    answer = ErrorAnswer.of({"moderation_details": {"categories": [f"category-{number}" for number in range(10_000)]}})
    assert answer.explain_moderation().categories == tuple(f"category-{number}" for number in range(32))
