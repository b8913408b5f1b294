from __future__ import annotations

import pytest

from tests.support.waiting import wait_until


def test_gives_the_first_true_answer() -> None:
    answers = iter([None, "", "ready", "later"])
    assert wait_until(lambda: next(answers), 5, "an answer") == "ready"


def test_gives_up_and_says_on_what() -> None:
    with pytest.raises(TimeoutError, match=r"waited 0\.01 s for the moon"):
        wait_until(lambda: False, 0.01, "the moon")


def test_looks_once_even_without_time() -> None:
    assert wait_until(lambda: True, 0, "what is there")
