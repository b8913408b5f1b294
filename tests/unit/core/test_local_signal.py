"""Signals between the processes of one server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from pixyproxy.core.local_signal import LocalSignal, wait_for_any


@pytest.fixture
def signal() -> Iterator[LocalSignal]:
    with closing(LocalSignal()) as signal:
        yield signal


def test_what_is_sent_is_read_once(signal: LocalSignal) -> None:
    assert signal.read() == []
    for number in (7, 2**40, 0):
        signal.send(number)

    wait_for_any(signal, timeout=None)
    assert signal.read() == [7, 2**40, 0]
    assert signal.read() == []


def test_a_wait_without_a_signal_ends_at_its_time(signal: LocalSignal) -> None:
    began = time.monotonic()
    wait_for_any(signal, timeout=0.02)
    assert time.monotonic() - began >= 0.02


def test_a_full_pipe_keeps_no_sender_waiting(signal: LocalSignal) -> None:
    for number in range(20_000):
        signal.send(number)

    wait_for_any(signal, timeout=None)
    assert signal.read()[:2] == [0, 1]


def test_the_end_of_the_last_sender_is_noticed(signal: LocalSignal) -> None:
    pid = os.fork()
    if pid == 0:
        signal.send(5)
        os._exit(0)
    signal.close_sender()
    os.waitpid(pid, 0)

    wait_for_any(signal, timeout=None)
    assert signal.read() == [5]
    signal.wait_for_end()
    signal.close_sender()  # Again, without harm.


def test_a_sender_without_a_reader_does_not_fail() -> None:
    signal = LocalSignal()
    os.close(signal.fileno())
    signal.send(1)
    signal.close_sender()
