"""A table of images, as wide as the terminal, written row by row as the images arrive."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import typer
from rich.cells import cell_len, set_cell_size

from pixyproxy.cli.client_settings import TerminalSettings
from pixyproxy.cli.texts import local_time, printable

_GAP = "  "
_MIN_PROMPT_WIDTH = 40


class _Column(NamedTuple):
    title: str
    width: int
    text: Callable[[Any], str]


_INDENT = _Column("", 0, lambda _: "")
_CREATED = _Column("CREATED", 16, lambda image: local_time(image.created_at))
_GUID = _Column("GUID", 36, lambda image: image.guid)
# In the order in which they are omitted if there is no room.
OF_IMAGES = (
    _Column("SIZE", 9, lambda image: f"{image.width}x{image.height}"),
    _Column("AUTHOR", 12, lambda image: image.author),
    _Column("SEEN BY", 7, lambda image: image.visibility.name.lower()),
)
OF_GENERATIONS = (
    _Column("AUTHOR", 12, lambda generation: generation.author),
    _Column("STATE", 15, lambda generation: generation.state.name.lower()),
)


def print_table(rows: Iterable[Any], terminal: TerminalSettings, optional: Sequence[_Column]) -> None:
    """Write a table of images or generations, or nothing if there are none."""
    # A terminal may wrap a line that fills it to the last cell.
    lines = _lines_for(shutil.get_terminal_size().columns - 1, optional)
    for number, row in enumerate(rows):
        if number == 0:
            for columns in lines:
                header = _row([column.title for column in columns], columns)
                typer.echo(header if terminal.is_plain else typer.style(header, bold=True))
        for columns in lines:
            typer.echo(_row([printable(column.text(row)) for column in columns], columns))


def _lines_for(width: int, optional: Sequence[_Column]) -> list[list[_Column]]:
    """Choose the columns of an image's line, or of its two lines if prompt and guid do not fit on one.

    The guid, which other commands need, is never cut.
    """
    rest = width - _width([_CREATED, _GUID])
    if rest >= _MIN_PROMPT_WIDTH:
        fitting = _fitting(optional, rest - _MIN_PROMPT_WIDTH)
        return [[_prompt(rest - _width(fitting)), _CREATED, *fitting, _GUID]]
    details = [_INDENT, _GUID, *_fitting(optional, width - _width([_INDENT, _GUID]) + len(_GAP))]
    rest = width - _width([_CREATED])
    return [[_prompt(rest), _CREATED] if rest > 0 else [_prompt(width)], details]


def _fitting(optional: Sequence[_Column], width: int) -> list[_Column]:
    fitting = list(optional)
    while fitting and _width(fitting) > width:
        fitting.pop(0)
    return fitting[::-1]


def _prompt(width: int) -> _Column:
    return _Column("PROMPT", width, lambda image: image.prompt)


def _width(columns: Iterable[_Column]) -> int:
    """Return the width of columns next to another one."""
    return sum(column.width + len(_GAP) for column in columns)


def _row(texts: Sequence[str], columns: Sequence[_Column]) -> str:
    cells = [_fitted(text, column.width) for text, column in zip(texts, columns, strict=True)]
    return _GAP.join(cells).rstrip()


def _fitted(text: str, width: int) -> str:
    """Cut or fill a text to a number of cells; some characters take two."""
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"
