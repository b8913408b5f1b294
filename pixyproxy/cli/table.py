"""A table of images, which is written row by row as the images come, as wide as the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence

import typer
from rich.cells import cell_len, set_cell_size

from pixyproxy.cli.client_settings import TerminalSettings
from pixyproxy.cli.texts import local_time, printable
from pixyproxy.client import ImageDetail

_GAP = "  "
_MIN_PROMPT_WIDTH = 20


class _Column:
    def __init__(self, title: str, width: int, text: Callable[[ImageDetail], str]) -> None:
        self.title = title
        self.width = width
        self.text = text


# In the order in which they are given up where there is no room.
_OPTIONAL = (
    _Column("SIZE", 9, lambda image: f"{image.width}x{image.height}"),
    _Column("AUTHOR", 12, lambda image: image.author),
    _Column("SEEN BY", 7, lambda image: image.visibility.name.lower()),
    _Column("CREATED", 16, lambda image: local_time(image.created_at)),
)
_GUID = _Column("GUID", 36, lambda image: image.guid)


def print_table(images: Iterable[ImageDetail], terminal: TerminalSettings) -> None:
    """Write the table, or nothing where there are no images."""
    # A terminal may wrap a line that fills it to the last cell.
    columns = _columns_for(shutil.get_terminal_size().columns - 1)
    for number, image in enumerate(images):
        if number == 0:
            header = _row([column.title for column in columns], columns)
            typer.echo(header if terminal.is_plain else typer.style(header, bold=True))
        typer.echo(_row([printable(column.text(image)) for column in columns], columns))


def _columns_for(width: int) -> list[_Column]:
    """Choose what there is room for: the guid always, whole, and of the prompt what remains."""
    optional = list(_OPTIONAL)
    while optional and _rest(width, [_GUID, *optional]) < _MIN_PROMPT_WIDTH:
        optional.pop(0)
    fixed = [_GUID, *reversed(optional)]
    prompt = _Column("PROMPT", _rest(width, fixed), lambda image: image.prompt)
    return [*fixed, prompt] if prompt.width > 0 else fixed


def _rest(width: int, columns: Sequence[_Column]) -> int:
    return width - sum(column.width + len(_GAP) for column in columns)


def _row(texts: Sequence[str], columns: Sequence[_Column]) -> str:
    cells = [_fitted(text, column.width) for text, column in zip(texts, columns, strict=True)]
    return _GAP.join(cells).rstrip()


def _fitted(text: str, width: int) -> str:
    """Cut or fill a text to a number of cells, of which some characters take two."""
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"
