"""The tables of `make bench-million`, in benchmarks/results/million.md."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.million.measuring import Compared, Measured
from benchmarks.million.queries import CALLERS, QUERIES

_DOCUMENT = Path(__file__).parents[1] / "results" / "million.md"


def differences(measured: Sequence[Measured]) -> list[str]:
    """Return where databases disagree on the images of a query, or on their order."""
    first, *others = measured
    return [
        f"{query} as {caller}: {other.label} and {first.label} differ"
        for other in others
        for (query, caller), guids in first.guids.items()
        if other.guids[query, caller] != guids
    ]


def tables(measured: Sequence[Measured], count: int, runs: int) -> str:
    """Return the tables, as far as they were measured."""
    lines = []
    if all(each.lists for each in measured):
        lines += [*_queries(measured, count, runs), ""]
    lines += [f"| | {' | '.join(each.label for each in measured)} |", f"|---|{'---|' * len(measured)}"]
    return "\n".join(lines + _deep_pages(measured) + _summaries(measured) + _inserts(measured))


def _queries(measured: Sequence[Measured], count: int, runs: int) -> list[str]:
    """Every query with the caller for whom its ratio to GetImage is highest."""
    lines = [
        f"Median and 95th percentile in milliseconds of {runs} calls, one at a time, of `ListImages` with 50 images a "
        f"page among {count:,}; in brackets the ratio to `GetImage` by the same caller, measured alternately. "
        f"Of the callers ({', '.join(CALLERS.values())}), each row shows the one with the highest ratio.",
        "",
        f"| query | {' | '.join(each.label for each in measured)} |",
        f"|---|{'---|' * len(measured)}",
    ]
    for query in QUERIES:
        cells = []
        for each in measured:
            caller, compared = _worst(each, query.name)
            cells.append(f"{_written(compared)} {caller}")
        lines.append(f"| {query.name} | {' | '.join(cells)} |")
    return lines


def _deep_pages(measured: Sequence[Measured]) -> list[str]:
    lines = []
    for caller in measured[0].deep_pages:
        pages = [each.deep_pages[caller] for each in measured]
        cells = [f"{deep:.2f} / {first:.2f} ({deep / first:.2f})" for first, deep in pages]
        lines.append(f"| page 10,000 / page 1 of 10 images, {caller} | {' | '.join(cells)} |")
    return lines


def _summaries(measured: Sequence[Measured]) -> list[str]:
    return [
        f"| usage of everybody in a month, {name} | {' | '.join(_written(each.summaries[name]) for each in measured)} |"
        for name in measured[0].summaries
    ]


def _inserts(measured: Sequence[Measured]) -> list[str]:
    inserts = [each.inserts for each in measured if each.inserts is not None]
    rows = (
        ("an insert without the index", [each.without_index.median for each in inserts]),
        ("an insert with the index", [each.with_index.median for each in inserts]),
        ("sealing, later, in the background", [each.sealing for each in inserts]),
        ("all of it against none", [each.ratio for each in inserts]),
    )
    return [f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |" for name, values in rows if values]


def write(text: str) -> None:
    """Write the tables into benchmarks/results/."""
    _DOCUMENT.write_text(
        f"# make bench-million\n\nMeasured on {datetime.now(UTC):%Y-%m-%d}. {text}\n", encoding="utf-8"
    )


def _worst(measured: Measured, query: str) -> tuple[str, Compared]:
    of_query = [(caller, compared) for (name, caller), compared in measured.lists.items() if name == query]
    return max(of_query, key=lambda pair: pair[1].ratio)


def _written(compared: Compared) -> str:
    return f"{compared.times.median:.1f} / {compared.times.p95:.1f} ({compared.ratio:.1f})"
