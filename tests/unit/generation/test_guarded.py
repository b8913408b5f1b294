"""What stands before the provider: the circuit breaker, the pace and the queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    ConflictError,
    DBConnectionError,
    OutcomeUnknownError,
    PromptRefusedError,
    ProviderCircuitOpenError,
    ProviderError,
    ProviderRateLimitedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    TooBusyError,
)
from pixyproxy.generation import retry
from pixyproxy.generation.circuit_breaker import FAILURES_TO_OPEN, FIRST_PAUSE, LONGEST_PAUSE, CircuitBreaker
from pixyproxy.generation.guarded import GuardedGenerator
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest
from pixyproxy.generation.pacing import Pacer
from tests.support.waiting import wait_until

DOWN = ProviderUnavailableError("down")
PICTURE = GeneratedImage(data=b"x", content_type="image/png", width=1, height=1, model="m", usage=None)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def nothing() -> None:
    pass


class LocalTurns:
    """Turns as the database gives them, with a clock that tests can move, and nobody else who takes any."""

    def __init__(self, limit: int, window: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.window, self.clock = limit, window, clock
        self.taken: list[float] = []
        self.lock = threading.Lock()
        self.error: Exception | None = None

    def take(self) -> float:
        if self.error is not None:
            raise self.error
        with self.lock:
            wait = self.wait_for(0)
            if wait == 0:
                self.taken.append(self.clock())
            return wait

    def wait_for(self, ahead: int) -> float:
        if self.error is not None:
            raise self.error
        windows, place = divmod(ahead, self.limit)
        opened_by = len(self.taken) + place - self.limit
        wait = 0.0 if opened_by < 0 else max(0.0, self.taken[opened_by] + self.window - self.clock())
        return wait + windows * self.window


# --- The circuit breaker ---------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(on_open=nothing, clock=clock)


def end_with(breaker: CircuitBreaker, error: Exception | None) -> None:
    """Let a request end in some way."""
    if error is None:
        with breaker.watching():
            return
    with pytest.raises(type(error)), breaker.watching():
        raise error


def open_it(breaker: CircuitBreaker) -> None:
    for _ in range(FAILURES_TO_OPEN):
        end_with(breaker, DOWN)


@pytest.mark.parametrize(
    "error", [DOWN, ProviderTimeoutError("slow", may_have_billed=True), OutcomeUnknownError("cut"), RuntimeError("?")]
)
def test_it_opens_after_failures_in_a_row(breaker: CircuitBreaker, error: Exception) -> None:
    for _ in range(FAILURES_TO_OPEN):
        breaker.require_hope()
        end_with(breaker, error)

    with pytest.raises(ProviderCircuitOpenError) as refused:
        breaker.require_hope()
    assert refused.value.retry_after == FIRST_PAUSE
    with pytest.raises(ProviderCircuitOpenError), breaker.watching():
        pytest.fail("was let through")


@pytest.mark.parametrize(
    "answer",
    [None, PromptRefusedError("no"), ProviderRateLimitedError("later"), ProviderTimeoutError("the caller's time")],
)
def test_an_answer_of_any_kind_starts_the_count_anew(breaker: CircuitBreaker, answer: ProviderError | None) -> None:
    for _ in range(3):
        for _ in range(FAILURES_TO_OPEN - 1):
            end_with(breaker, DOWN)
        end_with(breaker, answer)

    breaker.require_hope()


def test_after_the_pause_one_request_tries_and_an_answer_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += FIRST_PAUSE

    with breaker.watching():
        breaker.require_hope()  # it may wait for its turn
        with pytest.raises(ProviderCircuitOpenError), breaker.watching():
            pytest.fail("a second one was let through")
    breaker.require_hope()
    end_with(breaker, DOWN)
    breaker.require_hope()


def test_each_trial_that_fails_doubles_the_pause_up_to_a_limit(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    pauses = []
    for _ in range(6):
        with pytest.raises(ProviderCircuitOpenError) as refused:
            breaker.require_hope()
        assert refused.value.retry_after is not None
        pauses.append(refused.value.retry_after)
        clock.now += refused.value.retry_after
        end_with(breaker, DOWN)

    assert pauses == [FIRST_PAUSE, 10.0, 20.0, 40.0, LONGEST_PAUSE, LONGEST_PAUSE]


def test_whoever_opens_it_or_tries_in_vain_is_told_when_to_try_again(breaker: CircuitBreaker, clock: Clock) -> None:
    told = []
    for _ in range(FAILURES_TO_OPEN + 1):
        error = ProviderUnavailableError("down")
        end_with(breaker, error)
        told.append(error.retry_after)
        clock.now += FIRST_PAUSE

    assert told == [None] * (FAILURES_TO_OPEN - 1) + [FIRST_PAUSE, FIRST_PAUSE * 2]


def test_what_the_provider_says_of_trying_again_is_left_as_it_is(breaker: CircuitBreaker) -> None:
    error = ProviderUnavailableError("down", retry_after=1.5)
    for _ in range(FAILURES_TO_OPEN):
        end_with(breaker, error)

    assert error.retry_after == 1.5


def test_opening_is_told() -> None:
    told: list[bool] = []
    open_it(CircuitBreaker(on_open=lambda: told.append(True)))

    assert told == [True]


# --- The pace --------------------------------------------------------------------------------------------------------


def test_no_more_pass_within_a_window_than_may(clock: Clock) -> None:
    pacer = Pacer(LocalTurns(2, clock=clock))
    for _ in range(2):
        pacer.wait_for_turn("alice", CallScope(1), nothing)

    with pytest.raises(TooBusyError) as refused:
        pacer.wait_for_turn("alice", CallScope(59), nothing)
    assert refused.value.retry_after == 60
    clock.now += 59.9
    with pytest.raises(TooBusyError):
        pacer.wait_for_turn("alice", CallScope(0.05), nothing)
    clock.now += 0.1
    pacer.wait_for_turn("alice", CallScope(0.05), nothing)


def test_one_that_may_pass_soon_waits() -> None:
    pacer = Pacer(LocalTurns(1, window=0.2))
    pacer.wait_for_turn("alice", CallScope(10), nothing)
    passed = threading.Event()

    def wait() -> None:
        pacer.wait_for_turn("alice", CallScope(10), nothing)
        passed.set()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(wait)
        assert passed.wait(10)


def test_a_caller_that_goes_away_leaves_the_queue(clock: Clock) -> None:
    pacer = Pacer(LocalTurns(1, clock=clock))
    pacer.wait_for_turn("alice", CallScope(), nothing)
    call = CallScope()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pacer.wait_for_turn, "alice", call, nothing)
        wait_until(lambda: pacer._queues, timeout=5, what="the queue to fill")
        call.leave()
        with pytest.raises(ProviderTimeoutError):
            waiting.result(timeout=5)
    assert pacer._queues == {}


@pytest.mark.parametrize("error", [DBConnectionError("away"), ConflictError("busy")])
def test_a_database_that_is_away_keeps_the_queue_waiting(error: Exception) -> None:
    """Whoever waits is noted as sent already: given up, its outcome would be unknown."""
    turns = LocalTurns(1)
    turns.error = error
    pacer = Pacer(turns)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pacer.wait_for_turn, "alice", CallScope(30), nothing)
        wait_until(lambda: pacer._queues, timeout=5, what="the queue to fill")
        turns.error = None
        waiting.result(timeout=10)
    assert len(turns.taken) == 1


def test_a_turn_that_another_server_takes_is_waited_for() -> None:
    turns = LocalTurns(1, window=0.3)
    turns.take()
    pacer = Pacer(turns)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pacer.wait_for_turn, "alice", CallScope(30), nothing)
        wait_until(lambda: turns.take() == 0, timeout=5, what="the other server's turn")
        waiting.result(timeout=10)
    assert len(turns.taken) == 3


def test_whoever_is_next_is_refused_where_another_server_took_the_turn(clock: Clock) -> None:
    class Contended(LocalTurns):
        def wait_for(self, ahead: int) -> float:
            wait = super().wait_for(ahead)
            if not self.taken:
                self.taken.append(self.clock())  # by the other server, right after it was said to be free
            return wait

    with pytest.raises(TooBusyError) as refused:
        Pacer(Contended(1, clock=clock)).wait_for_turn("alice", CallScope(30), nothing)
    assert refused.value.retry_after == 60


def test_authors_have_their_turns_one_after_the_other(clock: Clock) -> None:
    """Alice queues four requests, then Bob queues two: they alternate as long as both have some."""
    pacer = Pacer(LocalTurns(1, clock=clock))
    pacer.wait_for_turn("someone", CallScope(), nothing)
    passed: list[str] = []

    def wait(author: str) -> None:
        pacer.wait_for_turn(author, CallScope(), nothing)
        passed.append(author)

    with ThreadPoolExecutor(6) as pool:
        for number, author in enumerate(["alice"] * 4 + ["bob"] * 2):
            pool.submit(wait, author)
            wait_until(_queue_of(pacer, number + 1), timeout=5, what="the queue to grow")
        for number in range(1, 7):
            clock.now += 60
            pacer.wake()
            wait_until(_length_is(passed, number), timeout=5, what="the next to pass")

    assert passed == ["alice", "bob", "alice", "bob", "alice", "alice"]


def test_a_single_request_is_not_hopeless_behind_anothers_long_queue(clock: Clock) -> None:
    pacer = Pacer(LocalTurns(1, clock=clock))
    pacer.wait_for_turn("someone", CallScope(), nothing)
    crowd = CallScope()

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(pacer.wait_for_turn, "alice", crowd, nothing) for _ in range(6)]
        wait_until(_queue_of(pacer, 6), timeout=5, what="the queue to grow")
        # Bob's turn is the second from now, in two minutes; a seventh of Alice's would be in seven.
        bob = CallScope(121)
        waiting.append(pool.submit(pacer.wait_for_turn, "bob", bob, nothing))
        wait_until(_queue_of(pacer, 7), timeout=5, what="the queue to grow")
        with pytest.raises(TooBusyError):
            pacer.wait_for_turn("alice", CallScope(121), nothing)
        crowd.leave()
        bob.leave()
        for request in waiting:
            with pytest.raises(ProviderTimeoutError):
                request.result(timeout=5)


def _length_is(passed: list[str], length: int) -> Callable[[], bool]:
    return lambda: len(passed) == length


def _queue_of(pacer: Pacer, length: int) -> Callable[[], bool]:
    return lambda: sum(map(len, pacer._queues.values())) == length


# --- Both together ---------------------------------------------------------------------------------------------------


class FakeGenerator:
    """Does what ``behave`` says, and counts how often it is asked."""

    def __init__(self, behave: Callable[[], GeneratedImage]) -> None:
        self.asked = 0
        self._behave = behave

    def generate(self, request: GenerationRequest, call: CallScope) -> GeneratedImage:
        self.asked += 1
        return self._behave()

    def close(self) -> None:
        pass


def down() -> GeneratedImage:
    # As an ambiguous failure, which is not tried again, so that no test waits for that.
    raise ProviderUnavailableError("down", may_have_billed=True)


REQUEST = GenerationRequest(
    prompt="p", model="m", size="auto", quality="auto", output_format="png", background="auto", author_guid="alice"
)


def test_a_dead_provider_is_not_asked_again_and_not_waited_for() -> None:
    provider = FakeGenerator(down)
    generator = GuardedGenerator(provider, None)
    for _ in range(FAILURES_TO_OPEN):
        with pytest.raises(ProviderUnavailableError):
            generator.generate(REQUEST, CallScope())
    asked = provider.asked

    with pytest.raises(ProviderCircuitOpenError):
        generator.generate(REQUEST, CallScope())
    assert provider.asked == asked


def test_a_request_counts_once_however_often_it_is_tried() -> None:
    """One prompt that makes the provider stumble must not close the way for everybody."""
    errors = iter([ProviderUnavailableError("stumbles")] * 3 * (FAILURES_TO_OPEN - 1))

    def stumble() -> GeneratedImage:
        error = next(errors, None)
        if error is not None:
            raise error
        return PICTURE

    provider = FakeGenerator(stumble)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "BACKOFF_BASE", 0.0)
        generator = GuardedGenerator(provider, None)
        for _ in range(FAILURES_TO_OPEN - 1):
            with pytest.raises(ProviderUnavailableError):
                generator.generate(REQUEST, CallScope())

        assert generator.generate(REQUEST, CallScope()) is PICTURE
    assert provider.asked == 3 * (FAILURES_TO_OPEN - 1) + 1


def test_one_that_began_before_does_not_end_the_trial(breaker: CircuitBreaker, clock: Clock) -> None:
    early, trial = breaker.watching(), breaker.watching()
    early.__enter__()
    open_it(breaker)
    clock.now += FIRST_PAUSE
    trial.__enter__()

    assert not early.__exit__(ProviderUnavailableError, DOWN, None)
    with pytest.raises(ProviderCircuitOpenError), breaker.watching():
        pytest.fail("a second one was let through")
    trial.__exit__(None, None, None)
    breaker.require_hope()


def test_one_that_was_to_try_and_was_refused_lets_the_next_try(breaker: CircuitBreaker, clock: Clock) -> None:
    open_it(breaker)
    clock.now += FIRST_PAUSE
    end_with(breaker, TooBusyError("the queue is long"))

    end_with(breaker, None)
    breaker.require_hope()


def test_the_queue_gives_up_when_the_provider_dies() -> None:
    fail, entered = threading.Event(), threading.Semaphore(0)

    def fail_later() -> GeneratedImage:
        entered.release()
        assert fail.wait(10)
        return down()

    generator = GuardedGenerator(FakeGenerator(fail_later), LocalTurns(FAILURES_TO_OPEN))
    with ThreadPoolExecutor(20) as pool:
        requests = [pool.submit(generator.generate, REQUEST, CallScope()) for _ in range(FAILURES_TO_OPEN + 10)]
        for _ in range(FAILURES_TO_OPEN):
            assert entered.acquire(timeout=10)
        fail.set()
        kinds = [type(request.exception(timeout=10)) for request in requests]

    assert kinds.count(ProviderUnavailableError) == FAILURES_TO_OPEN
    assert kinds.count(ProviderCircuitOpenError) == 10


def test_a_healthy_provider_is_asked_as_often_as_may_be() -> None:
    provider = FakeGenerator(lambda: PICTURE)
    generator = GuardedGenerator(provider, LocalTurns(3))
    for _ in range(3):
        assert generator.generate(REQUEST, CallScope(5)) is PICTURE

    with pytest.raises(TooBusyError):
        generator.generate(REQUEST, CallScope(5))
    assert provider.asked == 3
