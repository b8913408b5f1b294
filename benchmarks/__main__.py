"""Run all measurements: ``make bench``, or ``python -m benchmarks --quick`` to check that they run."""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks import measurements, report
from benchmarks.load import has_go
from benchmarks.site import open_site

_ALL = (
    measurements.on_one_core,
    measurements.on_two_cores,
    measurements.crowds,
    measurements.contents,
    measurements.contents_beside_go,
    measurements.thumbnails,
    measurements.renditions,
    measurements.under_stress,
    measurements.creation,
    measurements.creation_rate,
    measurements.limits,
)


def main() -> None:
    """Measure, print the tables, and write them into benchmarks/results/."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="measure for half a second each, once, and write nothing")
    parser.add_argument(
        "--only", choices=[one.__name__ for one in _ALL], help="run this measurement only, and write nothing"
    )
    arguments = parser.parse_args()
    if not has_go():
        sys.exit(
            "make bench needs Go (https://go.dev/dl) for the program that makes the calls, and for the peer in Go."
        )
    figures = measurements.Figures(list)
    started = time.monotonic()
    with open_site(seconds=0.5 if arguments.quick else 2.0, rounds=1 if arguments.quick else 5) as site:
        for measure in _ALL:
            if arguments.only in (None, measure.__name__):
                began = time.monotonic()
                print(f"{measure.__name__}: {measure.__doc__}", flush=True)
                measure(site, figures)
                print(f"  {time.monotonic() - began:.0f} s", flush=True)
        machine = report.describe(site.database.version)
    print(f"In all {time.monotonic() - started:.0f} s")
    print(report.figures_table(figures))
    if arguments.only:
        return
    print(f"\n{machine}\n\n{report.table_of(report.rows_of(figures))}")
    if not arguments.quick:
        report.write(figures, machine)


if __name__ == "__main__":
    main()
