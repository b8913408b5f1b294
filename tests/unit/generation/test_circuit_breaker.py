"""The circuit breaker: when it opens, whom it lets through, and who is told."""

from __future__ import annotations

import os
import time
from typing import TypeVar

import pytest

from pixyproxy.core.exceptions import (
    OutcomeUnknownError,
    PromptRefusedError,
    ProviderCircuitOpenError,
    ProviderError,
    ProviderRateLimitedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from pixyproxy.generation.circuit_breaker import (
    FAILURES_TO_OPEN,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    CircuitBreaker,
    Permit,
    SharedCircuits,
)

T = TypeVar("T")

DOWN = ProviderUnavailableError("down")


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(clock=clock)


def admitted(breaker: CircuitBreaker) -> Permit:
    permit = breaker.admit()
    assert permit is not None
    return permit


def submit(breaker: CircuitBreaker, error: Exception | None) -> None:
    breaker.record(admitted(breaker), error)


def open_it(breaker: CircuitBreaker) -> None:
    for _ in range(FAILURES_TO_OPEN):
        submit(breaker, DOWN)


@pytest.mark.parametrize(
    "error", [DOWN, ProviderTimeoutError("slow", may_have_billed=True), OutcomeUnknownError("cut"), RuntimeError("?")]
)
def test_it_opens_after_failures_in_a_row(breaker: CircuitBreaker, error: Exception) -> None:
    for _ in range(FAILURES_TO_OPEN):
        assert breaker.wait() == 0
        submit(breaker, error)

    assert breaker.wait() == FIRST_PAUSE
    assert breaker.admit() is None


@pytest.mark.parametrize(
    "answer",
    [None, PromptRefusedError("no"), ProviderRateLimitedError("later"), ProviderTimeoutError("the caller's time")],
)
def test_an_answer_of_any_kind_starts_the_count_anew(breaker: CircuitBreaker, answer: ProviderError | None) -> None:
    for _ in range(3):
        for _ in range(FAILURES_TO_OPEN - 1):
            submit(breaker, DOWN)
        submit(breaker, answer)

    assert breaker.admit() is not None


def test_after_the_pause_one_request_tries_and_an_answer_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += FIRST_PAUSE

    permit = admitted(breaker)
    assert permit.is_trial
    assert breaker.admit() is None
    breaker.record(permit, None)

    submit(breaker, DOWN)
    assert not admitted(breaker).is_trial


def test_each_trial_that_fails_doubles_the_pause_up_to_a_limit(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    pauses = []
    for _ in range(6):
        pauses.append(breaker.wait())
        clock.now += breaker.wait()
        submit(breaker, DOWN)

    assert pauses == [FIRST_PAUSE, 10.0, 20.0, 40.0, LONGEST_PAUSE, LONGEST_PAUSE]


def test_a_request_that_was_submitted_before_does_not_end_the_trial(breaker: CircuitBreaker, clock: Clock) -> None:
    before = admitted(breaker)
    open_it(breaker)
    clock.now += FIRST_PAUSE
    admitted(breaker)

    breaker.record(before, DOWN)

    clock.now += FIRST_PAUSE
    assert breaker.admit() is None


def test_a_trial_that_was_withdrawn_lets_the_next_one_try(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += FIRST_PAUSE

    breaker.withdraw(admitted(breaker))

    assert admitted(breaker).is_trial


def test_a_permit_that_was_withdrawn_counts_as_nothing(breaker: CircuitBreaker) -> None:
    for _ in range(FAILURES_TO_OPEN - 1):
        submit(breaker, DOWN)
    for _ in range(3):
        breaker.withdraw(admitted(breaker))
    submit(breaker, DOWN)

    assert breaker.wait() == FIRST_PAUSE


def test_its_changes_are_told(clock: Clock) -> None:
    told: list[bool] = []
    breaker = CircuitBreaker(on_change=told.append, clock=clock)
    open_it(breaker)
    clock.now += FIRST_PAUSE
    submit(breaker, DOWN)
    clock.now += 2 * FIRST_PAUSE
    submit(breaker, None)

    assert told == [True, False]


# --- What all processes see ------------------------------------------------------------------------------------------


def is_closed(circuits: SharedCircuits) -> bool:
    try:
        circuits.require_closed()
    except ProviderCircuitOpenError as refused:
        return not (refused.retry_after and 0 < refused.retry_after <= LONGEST_PAUSE)
    return True


def test_callers_are_refused_while_all_circuits_are_open() -> None:
    circuits = SharedCircuits(2)
    breakers = [CircuitBreaker(lambda until, n=number: circuits.publish(n, until)) for number in range(2)]  # type: ignore[misc]
    assert is_closed(circuits)

    open_it(breakers[0])
    assert is_closed(circuits)
    open_it(breakers[1])
    assert not is_closed(circuits)


def test_callers_are_refused_until_the_trial_has_ended() -> None:
    now = time.monotonic() - FIRST_PAUSE - 1
    circuits = SharedCircuits()
    breaker = CircuitBreaker(lambda until: circuits.publish(0, until), clock=lambda: now)
    open_it(breaker)
    assert is_closed(circuits)  # Its pause is over: one request may try.

    now = time.monotonic()
    permit = admitted(breaker)
    assert not is_closed(circuits)
    breaker.record(permit, None)
    assert is_closed(circuits)


def test_another_process_sees_it() -> None:
    circuits = SharedCircuits()
    pid = os.fork()
    if pid == 0:
        open_it(CircuitBreaker(lambda until: circuits.publish(0, until)))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

    assert not is_closed(circuits)


def test_a_worker_that_starts_anew_begins_closed() -> None:
    circuits = SharedCircuits()
    open_it(CircuitBreaker(lambda until: circuits.publish(0, until)))
    CircuitBreaker(lambda until: circuits.publish(0, until))

    assert is_closed(circuits)
