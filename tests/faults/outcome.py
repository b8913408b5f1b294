"""What came of injecting a fault, some number of times."""

from __future__ import annotations

import statistics
import threading
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What came of one kind of fault.

    Attributes:
        fault: what was done.
        injected: how often.
        acknowledged: the images that callers were told are there.
        lost: those of them that are not, or not as they were told; a line each.
        billed_twice: requests that were submitted again although they may have been billed; a line each.
        recovery: seconds from each fault, or from its end, until all was well.
        problems: everything else that is not as documented; a line each.
        measured: seconds of what else was timed, by what it is.
        not_run: why it was not run; empty where it was.
    """

    fault: str
    injected: int = 0
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    billed_twice: list[str] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    measured: dict[str, list[float]] = field(default_factory=dict)
    not_run: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def is_good(self) -> bool:
        """Whether everything was as documented."""
        return not (self.lost or self.billed_twice or self.problems)

    def expect(self, holds: bool, otherwise: str) -> bool:
        """Record a problem unless a condition holds; return whether it does."""
        if not holds:
            with self._lock:
                self.problems.append(otherwise)
        return holds

    def recovered(self, seconds: float) -> None:
        """Record the time of one recovery."""
        with self._lock:
            self.recovery.append(seconds)

    def add(self, other: Outcome) -> None:
        """Take in another outcome of the same fault."""
        with self._lock:
            self.injected += other.injected
            self.acknowledged += other.acknowledged
            self.lost += other.lost
            self.billed_twice += other.billed_twice
            self.recovery += other.recovery
            self.problems += other.problems
            for what, seconds in other.measured.items():
                self.measured.setdefault(what, []).extend(seconds)

    def report(self) -> str:
        """Everything that is wrong, for a person."""
        return "\n".join(
            [
                *(f"lost: {line}" for line in self.lost),
                *(f"billed twice: {line}" for line in self.billed_twice),
                *(f"problem: {line}" for line in self.problems),
            ]
        )

    def cells(self) -> list[str]:
        """One row of the table."""
        if self.not_run:
            return [self.fault, self.not_run, "", "", "", ""]
        return [
            self.fault,
            f"{self.injected:,}",
            f"{self.acknowledged:,}",
            str(len(self.lost)),
            str(len(self.billed_twice)),
            median_and_longest(self.recovery),
        ]


def median_and_longest(seconds: list[float]) -> str:
    """The median and the longest of some times, or a dash where there are none."""
    return " / ".join(map(in_words, (statistics.median(seconds), max(seconds)))) if seconds else "–"


def in_words(seconds: float) -> str:
    """A time as people read it."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
