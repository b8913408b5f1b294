"""The parts of the fuzzing, and how one is run: batch after batch against a server that is watched all the while."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.fuzz.cases import Checker
from tests.fuzz.frames import fuzz_frames
from tests.fuzz.messages import fuzz_messages
from tests.fuzz.requests import fuzz_requests
from tests.fuzz.vitals import Vitals, Watch
from tests.fuzz.world import open_world

# Batches that fail; more than these would say nothing new.
_MOST_FAILURES = 5


@dataclass(frozen=True)
class Part:
    """One kind of fuzzing.

    Attributes:
        name: its name.
        share: its share of all inputs.
        batch: inputs after which the server is looked at.
        creates: the most images that it makes.
        fuzz: sends the batch of a number, and so many inputs; returns how many it sent.
    """

    name: str
    share: float
    batch: int
    creates: int
    fuzz: Callable[[Checker, int, int], int]


PARTS = (
    Part("messages", 0.2, 250, 200, fuzz_messages),
    Part("requests", 0.5, 500, 100, fuzz_requests),
    Part("frames", 0.3, 300, 0, fuzz_frames),
)


@dataclass
class Report:
    """What came of a part; ``before`` is taken after the first batch, when the server has warmed up."""

    name: str
    wanted: int
    inputs: int = 0
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    before: Vitals | None = None
    after: Vitals | None = None

    def __str__(self) -> str:
        counted = ", ".join(f"{status} {count:,}" for status, count in self.statuses.most_common())
        return (
            f"{self.name}: {self.inputs:,} inputs, {len(self.failures)} failures, before {self.before}, "
            f"after {self.after}, {self.seconds:.0f} s\n  {counted}"
        )


def run_part(
    part: Part,
    inputs: int,
    folder: Path,
    *,
    first_batch: int = 0,
    ends_at: float = float("inf"),
    progress: Callable[[Report], object] = lambda _: None,
) -> Report:
    """Run a part against a server of its own.

    Args:
        part: what to run.
        inputs: how many inputs to send.
        folder: where the server keeps everything.
        first_batch: the number of the first batch; others make other inputs.
        ends_at: the time.monotonic() after which no batch is begun; what is missing then is a failure.
        progress: called after each batch.
    """
    report = Report(part.name, inputs)
    batches = _Batches(part, report, first_batch, ends_at, progress)
    _try(report, partial(batches.run, folder))
    if report.inputs < inputs:
        report.failures.append(f"{part.name}: only {report.inputs} of {inputs} inputs could be sent")
    return report


@dataclass
class _Batches:
    """The batches of a part."""

    part: Part
    report: Report
    number: int
    ends_at: float
    progress: Callable[[Report], object]

    def run(self, folder: Path) -> None:
        """Run them all against a new server, and stop it."""
        report, started = self.report, time.monotonic()
        with open_world(folder, creates=self.part.creates) as world:
            checker, watch = Checker(world, report.statuses), Watch(world)
            while self._go_on():
                _try(report, partial(self._run_next, checker, watch))
                report.before = report.before or Vitals.of(world.server)
                report.seconds = time.monotonic() - started
                self.progress(report)
            _try(report, partial(self._settle, watch))

    def _go_on(self) -> bool:
        report = self.report
        is_in_time = time.monotonic() < self.ends_at
        return report.inputs < report.wanted and len(report.failures) < _MOST_FAILURES and is_in_time

    def _run_next(self, checker: Checker, watch: Watch) -> None:
        number, self.number = self.number, self.number + 1
        size = min(self.part.batch, self.report.wanted - self.report.inputs)
        try:
            self.report.inputs += self.part.fuzz(checker, number, size)
        finally:
            watch.check()

    def _settle(self, watch: Watch) -> None:
        if self.report.before is not None:
            self.report.after = watch.settle(self.report.before)


def _try(report: Report, work: Callable[[], object]) -> None:
    """Record errors, so that the rest is still run."""
    try:
        work()
    except Exception as error:
        report.failures.append("".join(traceback.format_exception(error)))
