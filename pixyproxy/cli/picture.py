"""A picture on a terminal: by the terminal's own means where it says that it has them, else of coloured half blocks."""

from __future__ import annotations

import base64
import io
import sys
import warnings
from collections.abc import Iterator

from PIL import Image
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

from pixyproxy.cli.client_settings import TerminalSettings

_MAX_COLUMNS = 60
_KITTY_CHUNK = 4096
_UPPER_HALF = "▀"


def show(data: bytes, terminal: TerminalSettings) -> None:
    """Show a picture on standard output, which must be a terminal.

    Raises:
        OSError: it cannot be read as a picture.
    """
    with warnings.catch_warnings():
        # A picture of a few bytes that would take all memory is none of ours.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture = Image.open(io.BytesIO(data)).convert("RGB")
    console = Console()
    columns = min(_MAX_COLUMNS, console.width)
    rows = max(1, min(round(columns * picture.height / picture.width / 2), console.height - 2))
    columns = max(1, min(columns, round(rows * 2 * picture.width / picture.height)))
    if terminal.picture_protocol == "kitty":
        picture.thumbnail((columns * 20, rows * 40))
        _write(_kitty(picture, columns, rows))
    elif terminal.picture_protocol == "iterm2":
        _write(_iterm2(data, columns, rows))
    else:
        console.print(Segments(_half_blocks(picture.resize((columns, rows * 2)))), end="")


def _kitty(picture: Image.Image, columns: int, rows: int) -> str:
    """The terminal graphics protocol: a PNG in base64, in pieces."""
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    payload = base64.b64encode(buffer.getvalue()).decode()
    pieces = [payload[start : start + _KITTY_CHUNK] for start in range(0, len(payload), _KITTY_CHUNK)]
    head = f"a=T,f=100,q=2,c={columns},r={rows},"
    return "".join(
        f"\033_G{head if number == 1 else ''}m={int(number < len(pieces))};{piece}\033\\"
        for number, piece in enumerate(pieces, 1)
    )


def _iterm2(data: bytes, columns: int, rows: int) -> str:
    """iTerm2's inline images: the file itself in base64."""
    arguments = f"size={len(data)};width={columns};height={rows};inline=1"
    return f"\033]1337;File={arguments}:{base64.b64encode(data).decode()}\a"


def _half_blocks(picture: Image.Image) -> Iterator[Segment]:
    """Two pixels a character: the upper one as the text's colour, the lower one as what is behind it."""
    pixels = picture.tobytes()

    def colour(column: int, row: int) -> str:
        start = 3 * (row * picture.width + column)
        return f"#{pixels[start : start + 3].hex()}"

    for row in range(0, picture.height, 2):
        for column in range(picture.width):
            yield Segment(_UPPER_HALF, Style(color=colour(column, row), bgcolor=colour(column, row + 1)))
        yield Segment.line()


def _write(sequence: str) -> None:
    sys.stdout.write(f"{sequence}\n")
    sys.stdout.flush()
