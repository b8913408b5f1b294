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
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from pixyproxy.cli.texts import printable

_CLIENT_LOG = "pixyproxy.client"
_WORDS = "{task.description}"


@contextmanager
def spinner(words: str) -> Iterator[None]:
    """Show that something is going on, for how long, and why it takes longer."""
    # The spinner "line" needs no more than ASCII.
    columns = (SpinnerColumn("line"), TextColumn(_WORDS, markup=False), TimeElapsedColumn())
    with Progress(*columns, console=_console(), transient=True) as progress:
        task = progress.add_task(words, total=None)
        with _log_shown(lambda line: progress.update(task, description=f"{words}. {printable(line)}")):
            yield


@contextmanager
def bar(words: str) -> Iterator[Callable[[int, int], None]]:
    """Show how much of something is there; give what is to be told that, and the whole."""
    columns = (TextColumn(_WORDS, markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=_console(), transient=True) as progress:
        task = progress.add_task(words, total=None)
        with _log_shown(lambda line: progress.update(task, description=printable(line))):
            yield lambda done, whole: progress.update(task, completed=done, total=whole)


def _console() -> Console:
    return Console(stderr=True)


@contextmanager
def _log_shown(show: Callable[[str], None]) -> Iterator[None]:
    """Show what the client logs, which is that and why it tries again."""

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show(record.getMessage())

    logger, handler = logging.getLogger(_CLIENT_LOG), Shown()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
