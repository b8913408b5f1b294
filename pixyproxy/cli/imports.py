"""The command that stores images of one's own."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Annotated

import typer

from pixyproxy.cli import warn
from pixyproxy.cli.connection import ServerClient, ServerCommand, connect
from pixyproxy.cli.display import bar
from pixyproxy.cli.failures import (
    FAILED,
    INTERRUPTED,
    creation_again,
    explain,
    refuse,
    show_command_to_repeat,
    status_of,
)
from pixyproxy.cli.options import STDIO, AsJson, Tags, request_id_of
from pixyproxy.cli.texts import json_line, json_of, printable
from pixyproxy.client import (
    ImageDetail,
    ImportOptions,
    InvalidRequestError,
    NotFoundError,
    PixyProxyClientError,
    Source,
    Visibility,
)

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("import", cls=ServerCommand)
def import_(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="PNG, WebP or JPEG files; - reads standard input.", show_default=False),
    ],
    description: Annotated[
        str, typer.Option(metavar="TEXT", help="What searches find the images by, as others by their prompts.")
    ] = "",
    tag: Tags = None,
    public: Annotated[bool, typer.Option("--public", help="Make the images public.")] = False,
    filename: Annotated[
        str, typer.Option(metavar="NAME", help="A filename, for one file; by default that of the file.")
    ] = "",
    request_id: Annotated[
        str, typer.Option(metavar="UUID", help="Repeat the command with this id, without storing images twice.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Store images of your own.

    For each file it writes the image's guid and the file. A file that is refused does not stop the others.
    """
    if len(files) > 1 and (filename or STDIO in files):
        refuse("--filename and - are for one file.")
    key = request_id or str(uuid.uuid4())
    again = creation_again("" if request_id else key, None)
    status = 0
    with connect(must_sign_in=True) as client:
        for position, file in enumerate(files):
            options = ImportOptions(
                tags=tag or (),
                visibility=Visibility.PUBLIC if public else Visibility.PRIVATE,
                filename=filename or _name_of(file),
                # That of one file is the command's own, as for create.
                request_id=key if position == 0 else request_id_of(key, str(position)),
            )
            try:
                image = _import(client, file, description, options)
            except PixyProxyClientError as error:
                warn(f"{printable(file)} was not imported.")
                explain(error, client.server)
                if not isinstance(error, (InvalidRequestError, NotFoundError)):
                    show_command_to_repeat(again, without="storing images twice")
                    raise typer.Exit(status_of(error)) from error
                status = status or status_of(error)
            except OSError as error:
                warn(f"{printable(file)} cannot be read: {error.strerror}.")
                status = status or FAILED
            except KeyboardInterrupt:
                warn("Interrupted.")
                show_command_to_repeat(again, without="storing images twice")
                raise typer.Exit(INTERRUPTED) from None
            else:
                typer.echo(json_line(json_of(image)) if as_json else f"{image.guid}\t{printable(file)}")
    if status:
        raise typer.Exit(status)


def _import(client: ServerClient, file: str, description: str, options: ImportOptions) -> ImageDetail:
    source: Source = sys.stdin.buffer if file == STDIO else Path(file)
    with bar(printable(file), client.server) as on_progress:
        return client.import_image(source, description, on_progress=on_progress, **options)


def _name_of(file: str) -> str:
    """Return the filename for a file, or nothing if the server has to make one."""
    name = Path(file).name
    return name if file != STDIO and name.isprintable() else ""
