"""How often a call is made again, and after which pauses."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pixyproxy.client import RetryPolicy, UnavailableError
from pixyproxy.client.calls import get_image
from pixyproxy.client.retry import Attempts


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"unanswered_attempts": 0},
        {"first_backoff": -1.0},
        {"max_backoff": -1.0},
        {"multiplier": 0.5},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"attempt|backoff"):
        RetryPolicy(**wrong)


def test_without_a_timeout_a_server_that_was_there_is_waited_for_however_long_it_takes() -> None:
    answered = threading.Event()
    answered.set()
    attempts = Attempts(get_image("guid"), RetryPolicy(), answered, None)

    pauses = [attempts.pause_after(UnavailableError("gone")) for _ in range(5000)]

    assert pauses[0] <= 0.5
    assert 4 < max(pauses) <= 5


def test_the_pauses_for_a_server_that_never_was_there_grow_as_the_policy_says() -> None:
    policy = RetryPolicy(unanswered_attempts=5, first_backoff=1, max_backoff=6, multiplier=3)
    attempts = Attempts(get_image("guid"), policy, threading.Event(), None)

    pauses = [attempts.pause_after(UnavailableError("gone")) for _ in range(4)]

    assert pauses == [pytest.approx(expected, rel=0.25) for expected in (1, 3, 6, 6)]
    with pytest.raises(UnavailableError):
        attempts.pause_after(UnavailableError("gone"))
