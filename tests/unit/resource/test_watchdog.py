"""The watchdog over calls that wait for their callers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import grpc
import pytest

from pixyproxy.resource.tally import Tally
from pixyproxy.resource.watchdog import Watchdog
from pixyproxy.service.content import CHUNK_SIZE

_TIMEOUT = 30.0
_FOR_EVER = 3600.0
_MAX_PENDING = 5
_MAX_UNTAKEN = 1000
_MAX_WATCHES = 4


class FakeContext:
    """Of a call that may be cancelled."""

    def __init__(self, peer: str) -> None:
        self.cancelled = threading.Event()
        self.callbacks: list[Callable[[], None]] = []
        self._peer = peer

    def peer(self) -> str:
        return self._peer

    def cancel(self) -> None:
        self.cancelled.set()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.callbacks.append(callback)
        return True

    def end(self) -> None:
        for callback in self.callbacks:
            callback()


def fake_context(peer: str = "ipv4:127.0.0.1:1") -> Any:
    return cast(grpc.ServicerContext, FakeContext(peer))


@contextmanager
def watching(stall_timeout: float, max_untaken: int = _MAX_UNTAKEN) -> Iterator[Watchdog]:
    watchdog = Watchdog(
        stall_timeout,
        Tally("Calls", None),
        max_pending=_MAX_PENDING,
        max_untaken=max_untaken,
        max_watches=_MAX_WATCHES,
    )
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.close()


def test_a_request_that_does_not_come_is_cut_off() -> None:
    context, other = fake_context(), fake_context()
    with watching(0.05) as watchdog:
        with watchdog.pending(other):
            pass
        with watchdog.pending(context) as wait:
            assert context.cancelled.wait(_TIMEOUT)
            assert wait.is_cut_off
        assert not other.cancelled.is_set()


def test_a_reader_is_cut_off_only_while_it_holds_a_message() -> None:
    context, other = fake_context(), fake_context()
    with watching(0.05) as watchdog, watchdog.reading(other) as resting, watchdog.reading(context) as reader:
        resting.begin()
        resting.end()
        reader.begin()
        assert context.cancelled.wait(_TIMEOUT)
        # What takes long on our side is nobody's fault.
        assert not other.cancelled.is_set()


def test_too_many_requests_on_their_way_make_room_for_the_latest() -> None:
    with watching(_FOR_EVER) as watchdog, ExitStack() as stack:
        contexts = [fake_context() for _ in range(_MAX_PENDING + 3)]
        for context in contexts:
            stack.enter_context(watchdog.pending(context))
        assert all(context.cancelled.wait(_TIMEOUT) for context in contexts[:3])
        stack.enter_context(watchdog.pending(fake_context()))
        assert contexts[3].cancelled.wait(_TIMEOUT)
        assert not any(context.cancelled.is_set() for context in contexts[4:])


def test_whoever_crowds_makes_room_for_the_others() -> None:
    with watching(_FOR_EVER) as watchdog, ExitStack() as stack:
        one = fake_context("ipv4:127.0.0.2:1")
        crowd = [fake_context() for _ in range(_MAX_PENDING + 3)]
        for context in (one, *crowd):
            stack.enter_context(watchdog.pending(context))
        assert all(context.cancelled.wait(_TIMEOUT) for context in crowd[:4])
        assert not any(context.cancelled.is_set() for context in (one, *crowd[4:]))


def test_whoever_watches_too_much_makes_room_for_the_others() -> None:
    # Watches last for longer than any timeout.
    with watching(0.1) as watchdog:
        one = fake_context("ipv4:127.0.0.2:1")
        crowd = [fake_context() for _ in range(_MAX_WATCHES)]
        for context in (one, *crowd):
            watchdog.watching(context)
        assert crowd[0].cancelled.wait(_TIMEOUT)
        crowd[0].end()
        assert not any(context.cancelled.is_set() for context in (one, *crowd[1:]))


def test_an_answer_that_is_not_taken_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    context, other = fake_context(), fake_context()
    with watching(0.05) as watchdog:
        watchdog.answered(other, 10)
        other.end()
        assert "cut off" not in caplog.text
        watchdog.answered(context, 10)
        assert context.cancelled.wait(_TIMEOUT)
        context.end()
        assert "The client did not take the answer and was cut off." in caplog.text
    assert not other.cancelled.is_set()


def test_a_large_answer_has_time_for_each_chunk() -> None:
    context = fake_context()
    began = time.monotonic()
    with watching(0.2, max_untaken=3 * CHUNK_SIZE) as watchdog:
        watchdog.answered(context, 2 * CHUNK_SIZE + 1)
        assert context.cancelled.wait(_TIMEOUT)
    assert time.monotonic() - began >= 0.6


def test_too_many_bytes_that_are_not_taken_make_room_for_the_latest() -> None:
    """The oldest go first, on the connections that have most."""
    with watching(_FOR_EVER) as watchdog:
        one = fake_context("ipv4:127.0.0.2:1")
        crowd = [fake_context() for _ in range(5)]
        watchdog.answered(one, 300)
        for context in crowd:
            watchdog.answered(context, 200)
        # 300 bytes are over the limit: one of these is too little.
        assert all(context.cancelled.wait(_TIMEOUT) for context in crowd[:2])
        assert not any(context.cancelled.is_set() for context in (one, *crowd[2:]))


def test_a_call_that_has_ended_has_no_answer_to_watch() -> None:
    context = fake_context()
    context.add_callback = lambda _: False
    with watching(_FOR_EVER) as watchdog:
        watchdog.answered(context, 2 * _MAX_UNTAKEN)
        assert not list(watchdog._untaken)
