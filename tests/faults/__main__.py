"""The full run of all faults: ``python -m tests.faults``. Writes benchmarks/results/faults.md."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

# Before all that loads OpenSSL; see there.
import pixyproxy  # noqa: F401
from tests.faults.outcome import Outcome, median_and_longest
from tests.faults.plan import Databases, run
from tests.faults.site import ROOT, Bench
from tests.support.openai_stand_in import start_stand_in

_PAGE = ROOT / "benchmarks" / "results" / "faults.md"
_HEAD = ("fault", "times injected", "images acknowledged", "lost", "billed twice", "time to recover (median / max)")


def main() -> int:
    """Run everything; return 1 where anything is not as it should be."""
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {line}", file=sys.stderr, flush=True)  # noqa: T201

    with tempfile.TemporaryDirectory(prefix="pixyproxy-faults-") as folder, start_stand_in() as stand_in:
        outcomes, servers = run(Bench(Path(folder), stand_in), say)
    text = _page(outcomes, servers, time.monotonic() - began)
    print(text)  # noqa: T201
    _PAGE.write_text(text, encoding="utf-8")
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def _page(outcomes: Sequence[Outcome], servers: Databases, seconds: float) -> str:
    total = Outcome("**all**")
    for outcome in outcomes:
        total.add(outcome)
    total.recovery.clear()
    rows = [_HEAD, ("---",) * len(_HEAD), *(outcome.cells() for outcome in [*outcomes, total])]
    measured = [("also measured", "how often", "median / max"), ("---",) * 3]
    measured += [
        (what, f"{len(seconds):,}", median_and_longest(seconds)) for what, seconds in total.measured.items() if seconds
    ]
    problems = "\n".join(
        f"- **{outcome.fault}**: {line}" for outcome in outcomes for line in outcome.report().splitlines()
    )
    return f"# make faults\n\n{_circumstances(servers, seconds)}\n\n{_table(rows)}\n\n{_table(measured)}\n" + (
        f"\nNot as it should be:\n\n{problems}\n" if problems else ""
    )


def _table(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _circumstances(servers: Databases, seconds: float) -> str:
    return (
        f"Last full run: {datetime.now(UTC):%Y-%m-%d}, {seconds / 60:.1f} minutes on {os.cpu_count()} cores. "
        f"PixyProxy {version('pixyproxy')}, Python {platform.python_version()}, grpcio {version('grpcio')}, "
        f"MySQL {servers.mysql.version}, MariaDB {servers.mariadb.version}."
    )


if __name__ == "__main__":
    sys.exit(main())
