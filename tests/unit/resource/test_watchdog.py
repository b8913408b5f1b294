"""The watchdog over calls that wait for their callers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import grpc

from pixyproxy.resource.tally import Tally
from pixyproxy.resource.watchdog import Watchdog

_TIMEOUT = 30.0
_FOR_EVER = 3600.0
_MAX_PENDING = 5


class FakeContext:
    """Of a call that may be cancelled."""

    def __init__(self, peer: str) -> None:
        self.cancelled = threading.Event()
        self._peer = peer

    def peer(self) -> str:
        return self._peer

    def cancel(self) -> None:
        self.cancelled.set()


def fake_context(peer: str = "ipv4:127.0.0.1:1") -> Any:
    return cast(grpc.ServicerContext, FakeContext(peer))


@contextmanager
def watching(stall_timeout: float) -> Iterator[Watchdog]:
    watchdog = Watchdog(stall_timeout, Tally("Calls", None), max_pending=_MAX_PENDING)
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
