"""What moves on a terminal while a person waits. It goes to standard error, which must be a terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
)
from rich.table import Column

from pixyproxy.cli import line_width

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
def spinner(words: str, plain: Callable[[str], str]) -> Iterator[Line]:
    """Show that something is going on, for how long, and why it takes longer; give the line that says so.

    Args:
        words: what is going on.
        plain: makes an error's message readable.
    """
    # The spinner "line" needs no more than ASCII.
    with _progress(SpinnerColumn("line"), _words(beside=10), TimeElapsedColumn()) as progress:
        line = Line(progress, words)
        with _log_shown(line.add, plain):
            yield line


@contextmanager
def bar(words: str, plain: Callable[[str], str]) -> Iterator[Callable[[int, int], None]]:
    """Show how much of something is there; give what is to be told that, and the whole. Arguments as for spinner."""
    with _progress(_words(beside=50), BarColumn(20), DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(words, total=None)
        with _log_shown(lambda line: progress.update(task, description=line), plain):
            yield lambda done, whole: progress.update(task, completed=done, total=whole)


def _words(beside: int) -> TextColumn:
    # A longer text would push out the other columns, which take `beside` cells.
    column = Column(no_wrap=True, overflow="ellipsis", max_width=max(10, line_width() - beside))
    return TextColumn("{task.description}", markup=False, table_column=column)


def _progress(*columns: ProgressColumn) -> Progress:
    return Progress(*columns, console=Console(stderr=True, width=line_width()), transient=True)


@contextmanager
def _log_shown(show: Callable[[str], None], plain: Callable[[str], str]) -> Iterator[None]:
    """Show what the client logs, which is that and why it tries again."""

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            attempt, _, cause = record.getMessage().partition(": ")
            show(f"{attempt}: {plain(cause)}")

    logger, handler = logging.getLogger(_CLIENT_LOG), Shown()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
