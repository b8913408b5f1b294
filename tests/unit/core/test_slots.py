"""Slots that several processes take together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pixyproxy.core.slots import SharedSlots

_TIMEOUT = 30.0
ANN, BOB, CARL = 1, 2, "192.0.2.7"


def test_no_more_are_taken_than_there_are() -> None:
    slots = SharedSlots(2).of(0)
    assert [slots.take(ANN) for _ in range(3)] == [True, True, False]
    slots.give_back(ANN)
    assert slots.taken == 1
    assert slots.take(ANN)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only one worker serves on this system")
def test_processes_count_together_and_what_one_held_is_given_back_for_it() -> None:
    shared = SharedSlots(3, processes=2)
    one, other = shared.of(0), shared.of(1)
    assert one.take(ANN)
    assert other.take(ANN)
    assert other.take(ANN)
    assert not one.take(ANN)
    assert one.taken == other.taken == 3
    shared.clear(1)
    assert one.taken == 1
    assert one.take(ANN)


@pytest.mark.parametrize(
    ("limit", "most"),
    [
        (1, [1, 0, 0]),
        (2, [2, 0, 0]),
        (3, [3, 1, 0]),
        (4, [4, 1, 0]),
        (5, [5, 1, 0]),
        (8, [8, 2, 0]),
        (128, [128, 32, 8]),
        (500, [500, 125, 31]),
    ],
)
def test_a_holder_leaves_slots_to_others(limit: int, most: list[int]) -> None:
    slots = SharedSlots(limit).of(0)
    assert slots.limit == most[0]
    assert slots.total >= sum(most)
    assert [sum(slots.take(holder) for _ in range(2 * limit)) for holder in (ANN, BOB, CARL)] == most
    slots.give_back(ANN)
    assert slots.take(CARL)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only one worker serves on this system")
def test_a_holder_is_known_to_all_processes() -> None:
    shared = SharedSlots(3, processes=2)
    one, other = shared.of(0), shared.of(1)
    assert [one.take(ANN), other.take(ANN), one.take(ANN), other.take(ANN)] == [True, True, True, False]
    assert other.take(BOB)
    shared.clear(0)
    assert other.taken == 2


_RACE = """
import os, sys, threading
from pixyproxy.core.slots import SharedSlots

PROCESSES, LIMIT, ROUNDS, ANN = 4, 3, 2000, 1
shared = SharedSlots(LIMIT, PROCESSES)

def work(number):
    slots, most = shared.of(number), [0]
    def take_and_give_back():
        for _ in range(ROUNDS):
            if slots.take(ANN):
                most[0] = max(most[0], slots.taken)
                slots.give_back(ANN)
    threads = [threading.Thread(target=take_and_give_back) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return most[0]

children = []
for number in range(PROCESSES):
    pid = os.fork()
    if pid == 0:
        os._exit(work(number))
    children.append(pid)
most = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
print(max(most), shared.of(0).taken)
"""

_KILLED = """
import os, signal, time
from pixyproxy.core.slots import SharedSlots

shared, ANN = SharedSlots(1000, 2), 1
for _ in range(20):
    before = shared.of(0).taken
    pid = os.fork()
    if pid == 0:
        slots = shared.of(1)
        while True:
            slots.take(ANN)
            slots.give_back(ANN)
    mine = shared.of(0)
    while shared.of(0).taken == before:
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    shared.clear(1)
    assert mine.take(ANN)
print(shared.of(0).taken)
"""


def _run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=_TIMEOUT * 2, check=False
    )
    assert done.returncode == 0, f"{signal.Signals(-done.returncode) if done.returncode < 0 else ''} {done.stderr}"
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only one worker serves on this system")
def test_processes_that_race_never_take_more() -> None:
    most, left = map(int, _run(_RACE).split())
    assert 1 <= most <= 3
    assert left == 0


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only one worker serves on this system")
def test_a_process_that_is_killed_keeps_no_lock() -> None:
    assert _run(_KILLED) == "20\n"
