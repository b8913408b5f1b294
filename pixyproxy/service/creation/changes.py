"""Reports changes of generations to the RPC workers of a server, so that waiting calls need not wait for the next poll.

The local signal of each RPC worker carries the ids of generations: positive for those that have ended or are queued
again, which concern every waiting call, and negative for those that have only come further, which concern watchers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pixyproxy.core.local_signal import LocalSignal


class Changed(NamedTuple):
    """The ids of generations that have changed."""

    ended: set[int]
    progressed: set[int]


class GenerationChanges:
    """Sends changes of generations to RPC workers."""

    def __init__(self, signals: Sequence[LocalSignal]) -> None:
        """Initialize with the signal of each RPC worker."""
        self._signals = signals

    def ended(self, generation_id: int) -> None:
        """Report that a generation has ended or is queued again."""
        self._send(generation_id)

    def progressed(self, generation_id: int) -> None:
        """Report any other change of a generation."""
        self._send(-generation_id)

    def _send(self, number: int) -> None:
        for signal in self._signals:
            signal.send(number)


def read_changes(signal: LocalSignal) -> Changed:
    """Return what was sent to an RPC worker since the last call, without waiting."""
    numbers = signal.read()
    return Changed({number for number in numbers if number > 0}, {-number for number in numbers if number < 0})
