"""Lists of images and of generations, written as they arrive. A table is as wide as the terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import typer

from pixyproxy.cli import warn
from pixyproxy.cli.client_settings import is_plain_terminal
from pixyproxy.cli.texts import json_line, json_of, json_of_generation, local_time, printable

_GAP = "  "
_MIN_PROMPT_WIDTH = 40


class _Column(NamedTuple):
    title: str
    width: int
    text: Callable[[Any], str]


_INDENT = _Column("", 0, lambda _: "")
_PROMPT = _Column("PROMPT", 0, lambda entry: entry.prompt)
_CREATED = _Column("CREATED", 16, lambda entry: local_time(entry.created_at))
_GUID = _Column("GUID", 36, lambda entry: entry.guid)
_AUTHOR = _Column("AUTHOR", 12, lambda entry: entry.author)
_FILENAME = _Column("FILENAME", 0, lambda image: image.filename)
_SIZE = _Column("SIZE", 9, lambda image: f"{image.width}x{image.height}")
_SEEN_BY = _Column("SEEN BY", 7, lambda image: image.visibility.name.lower())
_STATE = _Column("STATE", 15, lambda generation: generation.state.name.lower())


class Listing(NamedTuple):
    """How entries of one kind are listed: as JSON, as fields for other programs, and as a table.

    The further columns of a table are in the order in which they are omitted if there is no room.
    """

    json_of: Callable[[Any], dict[str, Any]]
    fields: Sequence[_Column]
    optional: Sequence[_Column]


IMAGES = Listing(json_of, (_GUID, _CREATED, _SEEN_BY, _AUTHOR, _FILENAME, _PROMPT), (_SIZE, _AUTHOR, _SEEN_BY))
GENERATIONS = Listing(json_of_generation, (_GUID, _CREATED, _STATE, _AUTHOR, _PROMPT), (_AUTHOR, _STATE))


def print_list(entries: Iterable[Any], as_json: bool, listing: Listing) -> bool:
    """List entries as JSON, as a table at a terminal, or separated by tabs; return whether there are any."""
    lines: Iterable[str]
    if as_json:
        lines = (json_line(listing.json_of(entry)) for entry in entries)
    elif sys.stdout.isatty():
        lines = _table(entries, listing.optional)
    else:
        lines = ("\t".join(printable(column.text(entry)) for column in listing.fields) for entry in entries)
    has_any = False
    for line in lines:
        typer.echo(line)
        has_any = True
    return has_any


def warn_of_more(rest: Iterator[Any], limit: int | None) -> None:
    """Say at a terminal if there are more entries than were listed."""
    if limit is not None and sys.stderr.isatty() and next(rest, None) is not None:
        warn("There are more; --limit or --all lists them.")


def _table(rows: Iterable[Any], optional: Sequence[_Column]) -> Iterator[str]:
    # A terminal may wrap a line that fills it to the last cell.
    lines = _lines_for(shutil.get_terminal_size().columns - 1, optional)
    for number, row in enumerate(rows):
        if number == 0:
            headers = [_row([column.title for column in columns], columns) for columns in lines]
            yield from headers if is_plain_terminal() else [typer.style(header, bold=True) for header in headers]
        for columns in lines:
            yield _row([printable(column.text(row)) for column in columns], columns)


def _lines_for(width: int, optional: Sequence[_Column]) -> list[list[_Column]]:
    """Choose the columns of an image's line, or of its two lines if prompt and guid do not fit on one.

    The guid, which other commands need, is never cut.
    """
    rest = width - _width([_CREATED, _GUID])
    if rest >= _MIN_PROMPT_WIDTH:
        fitting = _fitting(optional, rest - _MIN_PROMPT_WIDTH)
        return [[_PROMPT._replace(width=rest - _width(fitting)), _CREATED, *fitting, _GUID]]
    details = [_INDENT, _GUID, *_fitting(optional, width - _width([_INDENT, _GUID]) + len(_GAP))]
    rest = width - _width([_CREATED])
    prompt = [_PROMPT._replace(width=rest), _CREATED] if rest > 0 else [_PROMPT._replace(width=width)]
    return [prompt, details]


def _fitting(optional: Sequence[_Column], width: int) -> list[_Column]:
    fitting = list(optional)
    while fitting and _width(fitting) > width:
        fitting.pop(0)
    return fitting[::-1]


def _width(columns: Iterable[_Column]) -> int:
    """Return the width of columns next to another one."""
    return sum(column.width + len(_GAP) for column in columns)


def _row(texts: Sequence[str], columns: Sequence[_Column]) -> str:
    cells = [_fitted(text, column.width) for text, column in zip(texts, columns, strict=True)]
    return _GAP.join(cells).rstrip()


def _fitted(text: str, width: int) -> str:
    """Cut or fill a text to a number of cells; some characters take two."""
    from rich.cells import cell_len, set_cell_size  # Only tables need it.

    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"
