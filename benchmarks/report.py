"""The figures as tables and as a chart, in benchmarks/results/."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot

from benchmarks.measurements import CONTENT_OPTIMIZATIONS, CROWDS, Figures

RESULTS = Path(__file__).parent / "results"
"""Where all benchmarks write; docs/performance.md has a summary, written by hand."""

# Ratios differ by about as much between machines.
_CLOSE = 0.2
_PACKAGES = ("grpcio", "protobuf", "mysql-connector-python", "pydantic", "fastapi", "uvicorn", "asyncmy")


@dataclass(frozen=True)
class Goal:
    """What a row must reach: at least, or at most, so much."""

    kind: Literal["≥", "≤"]
    value: float

    def is_met(self, value: float) -> bool:
        return value >= self.value if self.kind == "≥" else value <= self.value


@dataclass(frozen=True)
class Row:
    """A line of the table: what was measured, once a round, and what it should be."""

    title: str
    values: Sequence[float]
    goal: Goal | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """Whether the goal is met on this machine, and whether another machine may well miss it."""
        if self.goal is None:
            return ""
        if not self.goal.is_met(self.median):
            return "**missed**"
        varies = min(self.values) != max(self.values)
        is_close = abs(self.median / self.goal.value - 1) < _CLOSE or not all(map(self.goal.is_met, self.values))
        return "met, near the limit" if varies and is_close else "met"


def rows_of(figures: Figures) -> list[Row]:
    """Return all rows; ratios are taken round by round, so that drift of the machine hits both sides."""

    def ratio(title: str, over: str, under: str, goal: Goal | None = None) -> Row:
        pairs = zip(figures[over], figures[under], strict=True)
        return Row(title, [one / other for one, other in pairs], goal)

    def plain(title: str, name: str, goal: Goal | None = None) -> Row:
        return Row(title, figures[name], goal)

    one, two = "GetImage, one worker on one core", "GetImage, all on two cores"
    return [
        ratio(f"{one} / the same without its work", "one core: pixyproxy", "one core: shell", Goal("≥", 0.6)),
        ratio(f"{one} / a bare handler", "one core: pixyproxy", "one core: bare", Goal("≥", 0.4)),
        ratio(f"{one} / the driver's select alone", "one core: pixyproxy", "one core: select"),
        ratio(
            f"{two}, 2 workers / one process on both cores",
            "two cores: pixyproxy",
            "two cores: one process on both",
            Goal("≥", 2.5),
        ),
        *(
            ratio(
                f"{two}, 2 workers / FastAPI with {driver}, 2 workers",
                "two cores: pixyproxy",
                f"two cores: FastAPI, {driver}",
                Goal("≥", 3),
            )
            for driver in ("mysql-connector", "asyncmy")
        ),
        ratio(f"{two}, 2 workers / grpc-go", "two cores: pixyproxy", "two cores: go"),
        *(
            ratio(
                f"{two}, {count:,} connections / grpc-go",
                f"crowds: pixyproxy, {count} connections",
                f"crowds: go, {count} connections",
            )
            for count in CROWDS
        ),
        ratio(
            f"{two}, 1,000 connections / 64 connections",
            "crowds: pixyproxy, 1000 connections",
            "crowds: pixyproxy, 64 connections",
            Goal("≥", 0.9),
        ),
        plain(
            f"{two}, 1,000 connections, share that is answered",
            "crowds: pixyproxy, 1000 connections, answered",
            Goal("≥", 1),
        ),
        plain(f"{two}, 5,000 connections, share that is answered", "crowds: pixyproxy, 5000 connections, answered"),
        *(
            plain(f"MB with {count:,} connections", f"crowds: pixyproxy, {count} connections, MB", Goal("≤", 300))
            for count in (1000, 5000)
        ),
        *(
            ratio(
                f"GetImageContent, 4 MiB, {readers} / bare stream from memory",
                f"content: pixyproxy, {readers}, MiB/s",
                f"content: bare, {readers}, MiB/s",
                Goal("≥", 0.9),
            )
            for readers in ("1 reader", "8 readers")
        ),
        *(
            ratio(
                f"GetImageContent, 4 MiB, 8 readers / without {name}",
                "content: pixyproxy, 8 readers, MiB/s",
                f"content: without {name}, 8 readers, MiB/s",
            )
            for name in CONTENT_OPTIMIZATIONS
        ),
        *(
            ratio(
                f"GetImageContent, {size} KiB, 8 readers, all on two cores, 2 workers / grpc-go",
                f"content: pixyproxy, {size} KiB, 8 readers, a second",
                f"content: go, {size} KiB, 8 readers, a second",
                Goal("≥", goal),
            )
            for size, goal in ((64, 0.45), (1024, 0.75), (4096, 0.9), (20480, 0.9))
        ),
        plain("GetImageContent, first byte, ms", "content: pixyproxy, first byte, ms", Goal("≤", 2)),
        plain("GetImageContent, KiB a stalled reader", "content: KiB a stalled reader"),
        ratio(
            "BatchGetThumbnails, 50 images, p50 / GetImage",
            "thumbnails: p50, ms",
            "thumbnails: GetImage p50, ms",
            Goal("≤", 8),
        ),
        plain("BatchGetThumbnails, 50 images at 256 pixels, MB", "thumbnails: MB a page", Goal("≤", 2)),
        plain("BatchGetThumbnails, 50 images, s until all are made", "thumbnails: all made, s"),
        Row(
            "GetImage, p99 while renditions are made / idle",
            [
                busy / statistics.median(figures["renditions: idle p99, ms"])
                for busy in figures["renditions: busy p99, ms"]
            ],
            Goal("≤", 1.5),
        ),
        plain("Renditions made meanwhile, a second", "renditions: made a second"),
        Row(
            "GetImage, p99 with all generations and 200 stalled readers / idle",
            [busy / statistics.median(figures["idle p99, ms"]) for busy in figures["busy p99, ms"]],
            Goal("≤", 1.5),
        ),
        plain("CreateImage adds to the provider's time, ms", "CreateImage adds, ms", Goal("≤", 10)),
        plain("CreateImage of 2 MB, 2 generation workers, a second", "CreateImage of 2 MB, a second", Goal("≥", 100)),
        plain("Memory of an 8 MiB image in flight / its size", "memory of an image in flight / its size", Goal("≤", 3)),
        plain("Generations at a time, a worker", "generations at a time, a worker", Goal("≥", 64)),
        plain("Open streams", "open streams", Goal("≥", 500)),
        plain("Start to serving, s", "start to serving, s", Goal("≤", 1.5)),
        plain("MB a worker at rest", "MB a worker at rest", Goal("≤", 90)),
    ]


def table_of(rows: Iterable[Row]) -> str:
    """Write rows as a Markdown table."""
    lines = ["| what | median | min–max | goal | on this machine |", "|---|---|---|---|---|"]
    for row in rows:
        goal = f"{row.goal.kind} {row.goal.value:g}" if row.goal else ""
        spread = f"{_short(min(row.values))}–{_short(max(row.values))}"
        lines.append(f"| {row.title} | {_short(row.median)} | {spread} | {goal} | {row.verdict} |")
    return "\n".join(lines)


def figures_table(figures: Figures) -> str:
    """Write all that was measured, as it was measured."""
    lines = ["| measured | median | min–max |", "|---|---|---|"]
    lines += [
        f"| {name} | {_short(statistics.median(values))} | {_short(min(values))}–{_short(max(values))} |"
        for name, values in figures.items()
    ]
    return "\n".join(lines)


def draw(figures: Figures, path: Path) -> None:
    """Draw the calls a second of all that serve GetImage."""
    sides = (
        ("one core: ", "One server process on one core", ("bare", "shell", "pixyproxy", "select")),
        (
            "two cores: ",
            "Everything on two cores",
            ("pixyproxy", "one process on both", "FastAPI, mysql-connector", "FastAPI, asyncmy", "go"),
        ),
    )
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3), layout="constrained")
    for side, (prefix, title, names) in zip(axes, sides, strict=True):
        values = [figures[prefix + name] for name in names]
        medians = [statistics.median(one) for one in values]
        spread = [
            [median - min(one) for median, one in zip(medians, values, strict=True)],
            [max(one) - median for median, one in zip(medians, values, strict=True)],
        ]
        colours = ["tab:blue" if name == "pixyproxy" else "tab:gray" for name in names]
        side.barh(names, medians, xerr=spread, color=colours, capsize=3)
        side.invert_yaxis()
        side.set_title(title)
        side.set_xlabel("calls a second")
    # No date and no random ids: the same figures make the same file.
    with mpl.rc_context({"svg.hashsalt": "pixyproxy"}):
        figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def describe(database_version: str) -> str:
    """Return when and on what the figures were measured, and with which versions."""
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    go = subprocess.run(["go", "version"], check=True, capture_output=True, text=True).stdout.split()[2]
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d} on two of the {os.cpu_count()} cores of a machine with "
        f"{cpu[1] if cpu else platform.machine()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {packages}, MySQL {database_version}, {go}."
    )


def write(figures: Figures, machine: str) -> None:
    """Write the tables and the chart."""
    draw(figures, RESULTS / "bench.svg")
    parts = (
        "# make bench",
        machine,
        table_of(rows_of(figures)),
        "![Calls a second of GetImage](bench.svg)",
        figures_table(figures),
    )
    (RESULTS / "bench.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
