"""Shows images and progress, with what the terminal can show."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from pixyproxy.cli import warn
from pixyproxy.cli.client_settings import image_protocol, is_plain_terminal
from pixyproxy.cli.connection import ServerClient
from pixyproxy.cli.texts import json_line, json_of, lines_of
from pixyproxy.client import ImageDetail, Rendition

if TYPE_CHECKING:
    from pixyproxy.cli.live import Line

# More pixels than an image takes on a terminal.
_SHOWN_RENDITION: Rendition = 1024


def print_image(image: ImageDetail, as_json: bool) -> None:
    """Print the details of an image, as JSON or as lines."""
    typer.echo(json_line(json_of(image)) if as_json else "\n".join(lines_of(image)))


def show_image(client: ServerClient, guid: str) -> None:
    """Show an image on the terminal, if it can show images."""
    show = image_viewer("--show")
    if show is None:
        return
    with (
        spinner("Loading the image", client.server),
        client.stream_content(guid, rendition=_SHOWN_RENDITION) as stream,
    ):
        data = b"".join(stream)
    show(data)


def image_viewer(option: str) -> Callable[[bytes], None] | None:
    """Return what shows an image on this terminal; None, after a warning, if the terminal cannot."""
    if not sys.stdout.isatty() or is_plain_terminal() or sys.stdout.encoding.lower() != "utf-8":
        warn(f"{option} needs a terminal with colours and UTF-8.")
        return None
    try:
        from pixyproxy.cli import terminal_image
    except ModuleNotFoundError:
        warn(f"{option} needs Pillow: pip install pillow")
        return None
    return partial(terminal_image.show, protocol=image_protocol())


def spinner(words: str, server: str) -> AbstractContextManager[Line | None]:
    """Show words with a spinner while the context lasts; give its line, or None if nothing is animated."""
    if not _is_animated():
        return nullcontext()
    from pixyproxy.cli import live

    return live.spinner(words, server)


def bar(words: str, server: str) -> AbstractContextManager[Callable[[int, int], Any] | None]:
    """Show a progress bar while the context lasts; give what takes the bytes so far and in all, or None."""
    if not _is_animated():
        return nullcontext()
    from pixyproxy.cli import live

    return live.bar(words, server)


def _is_animated() -> bool:
    return sys.stderr.isatty() and not is_plain_terminal()
