"""`make bench-million`: search and lists among a million images."""

from __future__ import annotations

import argparse
import sys

from benchmarks.million.databases import Kind, kept_database
from benchmarks.million.loading import fill
from benchmarks.million.measuring import PARTS, Measured, measure
from benchmarks.million.report import differences, tables, write

_MEASURED = [Kind.MYSQL, Kind.MARIADB, Kind.SQLITE]


def main() -> None:
    """Fill databases that do not exist yet, measure, compare, and write the tables."""
    parser = argparse.ArgumentParser(prog="bench-million", description=__doc__)
    parser.add_argument("databases", nargs="*", type=Kind, default=_MEASURED, help="mysql, mariadb, sqlite; all")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=40, help="calls of each query by each caller")
    parser.add_argument("--only", choices=PARTS, help="run this measurement only, and write nothing")
    parser.add_argument("--fill-only", action="store_true", help="make the databases only")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/million.md")
    arguments = parser.parse_args()
    measured: list[Measured] = []
    for kind in arguments.databases:
        with kept_database(kind, arguments.images) as database:
            fill(database, arguments.images)
            if not arguments.fill_only:
                measured.append(measure(database, arguments.runs, arguments.only))
    if not measured:
        return
    text = tables(measured, arguments.images, arguments.runs)
    print(text)
    if arguments.write and arguments.only is None:
        write(text)
    wrong = differences(measured)
    print("\n".join(wrong) or "All databases gave the same images in the same order.")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
