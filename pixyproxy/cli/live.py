"""Spinners and progress bars, on standard error."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
    track,
)
from rich.table import Column

from pixyproxy.cli import line_width
from pixyproxy.cli.failures import plain

Item = TypeVar("Item")

_LINE_SECONDS = 10.0
_CLIENT_LOG = "pixyproxy.client"


class Line:
    """The line of a spinner."""

    def __init__(self, progress: Progress, words: str) -> None:
        self._progress = progress
        self._words = words
        self._task = progress.add_task(words, total=None)

    def say(self, words: str) -> None:
        """Show other words."""
        self._words = words
        self._progress.update(self._task, description=words)

    def add(self, text: str) -> None:
        """Show a text behind the words, until these change."""
        self._progress.update(self._task, description=f"{self._words}. {text}")

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Leave the terminal to something else; the time goes on."""
        self._progress.stop()
        yield
        self._progress.start()


@contextmanager
def spinner(words: str, server: str) -> Iterator[Line]:
    """Show a spinner at a terminal, with the elapsed time, and with the client's retries; yield its line."""
    # The spinner "line" is ASCII.
    with _progress(SpinnerColumn("line"), _words(beside=10), TimeElapsedColumn()) as progress:
        line = Line(progress, words)
        with _log_shown(line.add, server):
            yield line


@contextmanager
def bar(words: str, server: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar at a terminal; yield a function of the bytes done and of all bytes, or 0."""
    with _progress(_words(beside=50), BarColumn(20), DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(words, total=None)
        with _log_shown(lambda line: progress.update(task, description=line), server):
            yield lambda done, whole: progress.update(task, completed=done, total=whole or None)


def shown(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield items, and show their number: as a progress bar at a terminal, otherwise as a line every ten seconds."""
    if sys.stderr.isatty():
        yield from track(items, description=what, total=total, console=Console(stderr=True))
        return
    line_at = time.monotonic() + _LINE_SECONDS
    for number, item in enumerate(items, 1):
        yield item
        if time.monotonic() >= line_at:
            print(f"{what}: {number:,} of {total:,}", file=sys.stderr, flush=True)  # noqa: T201
            line_at = time.monotonic() + _LINE_SECONDS


def _words(beside: int) -> TextColumn:
    # A longer text would displace the other columns, which take `beside` cells.
    column = Column(no_wrap=True, overflow="ellipsis", max_width=max(10, line_width() - beside))
    return TextColumn("{task.description}", markup=False, table_column=column)


def _progress(*columns: ProgressColumn) -> Progress:
    return Progress(*columns, console=Console(stderr=True, width=line_width()), transient=True)


@contextmanager
def _log_shown(show: Callable[[str], None], server: str) -> Iterator[None]:
    """Show the log of the client, which logs each retry and its cause."""

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            attempt, _, cause = record.getMessage().partition(": ")
            show(f"{attempt}: {plain(cause, server)}")

    logger, handler = logging.getLogger(_CLIENT_LOG), Shown()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
