"""The command that fetches the bytes of an image."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pixyproxy.cli.connection import ServerClient, ServerCommand, connect
from pixyproxy.cli.display import bar
from pixyproxy.cli.failures import FAILED, INTERRUPTED, command_line, propose, refuse
from pixyproxy.cli.options import STDIO, AsJson, Force, Guid
from pixyproxy.cli.texts import file_name, json_line, printable
from pixyproxy.client import ContentInfo, Rendition
from pixyproxy.client.download import file_to_write

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(cls=ServerCommand)
def fetch(
    guid: Guid,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The file, or the folder for it; - writes to standard output.",
            show_default=False,
        ),
    ] = "",
    rendition: Annotated[
        Rendition | None,
        typer.Option(help="A small WebP copy with at most so many pixels across and down.", show_default=False),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Save an image's bytes as a file.

    By default it is saved in the current folder under the image's filename. A download that was interrupted continues
    where it stopped. The whole file is verified.
    """
    if output == STDIO:
        _write_to_stdout(guid, rendition)
        return
    target = checked_target(output or ".", force=force)
    with connect() as client:
        path = target / file_name(client.get_image(guid), rendition) if target.is_dir() else target
        info = save(client, guid, path, command_line(*sys.argv[1:]), force=force, rendition=rendition)
    if as_json:
        typer.echo(json_line({"file": str(path)} | asdict(info)))
    else:
        typer.echo(f"Saved {printable(str(path))}: {info.size_bytes:,} bytes, verified.")


def checked_target(output: str, *, force: bool) -> Path:
    """Return the path of a file or folder to write to; refuse one that cannot be written later."""
    target = Path(output)
    is_folder = target.is_dir() or output.endswith(("/", os.sep))
    folder = target if is_folder else target.parent
    if not folder.is_dir():
        refuse(f"There is no folder {printable(str(folder))}.")
    if not is_folder:
        try:
            file_to_write(target, overwrite=force)
        except FileExistsError as error:
            _refuse_existing(target, error)
    return target


def _refuse_existing(path: Path, error: FileExistsError) -> NoReturn:
    hint = "--force overwrites it." if path.is_file() else "To write into it, redirect: fetch GUID --output -"
    refuse(f"{printable(str(error))} {hint}")


def save(
    client: ServerClient, guid: str, path: Path, again: str, *, force: bool, rendition: Rendition | None = None
) -> ContentInfo:
    """Save an image; ``again`` is the command that continues after an interruption."""
    try:
        with bar(printable(path.name), client.server) as on_progress:
            return client.fetch_content(guid, path, overwrite=force, rendition=rendition, on_progress=on_progress)
    except FileExistsError as error:
        _refuse_existing(path, error)
    except OSError as error:
        problem = f"{printable(str(path))} cannot be written: {error.strerror}."
        propose(f"{problem} The server keeps the image. To save it, run:", again)
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        propose("Interrupted. To continue where it stopped, run:", again)
        raise typer.Exit(INTERRUPTED) from None


def _write_to_stdout(guid: str, rendition: Rendition | None) -> None:
    if sys.stdout.isatty():
        refuse("Image bytes are not written to a terminal: redirect them to a file or a program.")
    with connect() as client, client.stream_content(guid, rendition=rendition) as stream:
        for chunk in stream:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
