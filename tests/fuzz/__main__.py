"""The long run: ``python -m tests.fuzz --inputs 100000``.

It sends so many inputs, in bounded time, to servers of its own on 127.0.0.1, tells on standard error how far it is,
and prints what came of each part. It exits with 1 where anything went wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.credentials import check_credentials
from tests.fuzz.parts import PARTS, Report, run_part
from tests.fuzz.vitals import Vitals
from tests.fuzz.world import open_world

_SIGN_IN_SAMPLES = 60
_IMAGE_SAMPLES = 400
_PROGRESS_SECONDS = 5.0


class _Progress:
    """Tells how far a part is, every few seconds."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def __call__(self, report: Report) -> None:
        if time.monotonic() - self._told_at >= _PROGRESS_SECONDS or report.failures:
            self._told_at = time.monotonic()
            _tell(f"{report.name}: {report.inputs:,} of {report.wanted:,}, {len(report.failures)} failures")


def main() -> int:
    """Run everything; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz PixyProxy for a long time.")
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs in all (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="the most seconds to take (default: %(default)g)")
    parser.add_argument("--first-batch", type=int, default=0, help="another number makes other inputs")
    parser.add_argument("--part", choices=[part.name for part in PARTS], help="only this part")
    arguments = parser.parse_args()
    ends_at = time.monotonic() + arguments.seconds
    failures: list[str] = []
    for part in PARTS:
        if arguments.part in (None, part.name):
            with tempfile.TemporaryDirectory(prefix="pixyproxy-fuzz-") as folder:
                report = run_part(
                    part,
                    arguments.inputs if arguments.part else round(arguments.inputs * part.share),
                    Path(folder),
                    first_batch=arguments.first_batch,
                    ends_at=ends_at,
                    progress=_Progress(),
                )
            _say(str(report))
            failures += report.failures
    if arguments.part is None:
        failures += _credentials()
    for failure in failures:
        _tell(failure)
    return 1 if failures else 0


def _credentials() -> list[str]:
    """Check that nothing is told of names and of others' images, and print what came of it."""
    report = Report("credentials", 0)
    started = time.monotonic()
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="pixyproxy-fuzz-") as folder, open_world(Path(folder)) as world:
        report.before = Vitals.of(world.server)
        try:
            report.inputs, lines = check_credentials(
                world, report.statuses, sign_in_samples=_SIGN_IN_SAMPLES, image_samples=_IMAGE_SAMPLES
            )
        except AssertionError as error:
            report.failures.append(str(error))
        report.after = Vitals.of(world.server)
    report.seconds = time.monotonic() - started
    _say("\n  ".join([str(report), *lines]))
    return report.failures


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
