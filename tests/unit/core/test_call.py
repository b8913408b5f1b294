from __future__ import annotations

import pytest

from pixyproxy.core import call as module
from pixyproxy.core.call import CallScope


class Clock:
    """The time, where tests make it pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_scope_without_a_time_never_ends_by_itself(clock: Clock) -> None:
    scope = CallScope()
    clock.now += 1e9

    assert scope.remaining() is None
    assert not scope.is_over


def test_the_time_that_remains_runs_out(clock: Clock) -> None:
    scope = CallScope(10)
    assert scope.remaining() == 10

    clock.now += 9.5
    assert scope.remaining() == 0.5
    assert not scope.is_over

    clock.now += 0.5
    assert scope.remaining() == 0
    assert scope.is_over

    clock.now += 100
    assert scope.remaining() == 0


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_scope_without_any_time_is_over_at_once(timeout: float) -> None:
    scope = CallScope(timeout)

    assert scope.remaining() == 0
    assert scope.is_over


@pytest.mark.parametrize("timeout", [None, 1000])
def test_a_scope_is_over_when_the_caller_leaves(timeout: float | None) -> None:
    scope = CallScope(timeout)

    scope.leave()
    scope.leave()

    assert scope.is_over
    assert scope.remaining() != 0  # There was time left.


def test_callbacks_are_called_when_the_caller_leaves_and_when_it_has_left() -> None:
    scope = CallScope()
    called: list[str] = []
    scope.on_leaving(lambda: called.append("before"))
    assert not called

    scope.leave()
    scope.on_leaving(lambda: called.append("after"))

    assert called == ["before", "after"]
