"""Shows an image on a terminal, with a graphics protocol if the terminal has one, otherwise with half blocks."""

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

_MAX_COLUMNS = 60
_KITTY_CHUNK = 4096
_UPPER_HALF = "▀"


def show(data: bytes, protocol: str) -> None:
    """Show an image on standard output, which must be a terminal.

    Args:
        data: the encoded image.
        protocol: the terminal's, as ``image_protocol`` returns it.

    Raises:
        OSError: the bytes are not an image.
    """
    with warnings.catch_warnings():
        # Refuse a small file that would take all memory.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data)).convert("RGB")
    console = Console()
    columns = min(_MAX_COLUMNS, console.width)
    rows = max(1, min(round(columns * image.height / image.width / 2), console.height - 2))
    columns = max(1, min(columns, round(rows * 2 * image.width / image.height)))
    if protocol == "kitty":
        image.thumbnail((columns * 20, rows * 40))
        _write(_kitty(image, columns, rows))
    elif protocol == "iterm2":
        _write(_iterm2(data, columns, rows))
    else:
        console.print(Segments(_half_blocks(image.resize((columns, rows * 2)))), end="")


def _kitty(image: Image.Image, columns: int, rows: int) -> str:
    """The terminal graphics protocol: a PNG in base64, in pieces."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
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


def _half_blocks(image: Image.Image) -> Iterator[Segment]:
    """Two pixels a character: the upper one as its foreground colour, the lower one as its background colour."""
    pixels = image.tobytes()

    def colour(column: int, row: int) -> str:
        start = 3 * (row * image.width + column)
        return f"#{pixels[start : start + 3].hex()}"

    for row in range(0, image.height, 2):
        for column in range(image.width):
            yield Segment(_UPPER_HALF, Style(color=colour(column, row), bgcolor=colour(column, row + 1)))
        yield Segment.line()


def _write(sequence: str) -> None:
    sys.stdout.write(f"{sequence}\n")
    sys.stdout.flush()
