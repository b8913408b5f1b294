"""The commands that have an image generated: create and edit."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pixyproxy.cli import warn
from pixyproxy.cli.connection import ServerClient, ServerCommand, connect
from pixyproxy.cli.display import image_viewer, print_image, show_image
from pixyproxy.cli.failures import (
    FAILED,
    INTERRUPTED,
    command_line,
    creation_again,
    explain,
    propose,
    refuse,
    show_command_to_repeat,
    status_of,
)
from pixyproxy.cli.fetching import checked_target, save
from pixyproxy.cli.generations import generate
from pixyproxy.cli.like import options_like
from pixyproxy.cli.options import STDIO, AsJson, Force, Show, Tags, request_id_of
from pixyproxy.cli.texts import file_name, printable
from pixyproxy.client import ImageDetail, TryLaterError, Visibility

app = typer.Typer(rich_markup_mode=None, add_completion=False)

Model = Annotated[str, typer.Option(metavar="MODEL", help="The provider's model.")]
Size = Annotated[str, typer.Option(metavar="SIZE", help="auto, or WIDTHxHEIGHT in pixels.")]
Quality = Annotated[str, typer.Option(metavar="QUALITY", help="auto, low, medium, high, xhigh or max.")]
OutputFormat = Annotated[str, typer.Option("--format", metavar="FORMAT", help="png, webp or jpeg.")]
Background = Annotated[str, typer.Option(metavar="BACKGROUND", help="auto, opaque or transparent.")]
Moderation = Annotated[str, typer.Option(metavar="MODERATION", help="auto or low.")]
Compression = Annotated[
    int | None,
    typer.Option(
        "--compression",
        min=0,
        max=100,
        metavar="N",
        help="The compression of webp or jpeg, 0 to 100.",
        show_default=False,
    ),
]
InputFidelity = Annotated[str, typer.Option(metavar="FIDELITY", help="How closely to match input images: low or high.")]
PartialImages = Annotated[
    int, typer.Option(min=0, max=3, metavar="N", help="Show N partial images, 0 to 3; each costs some tokens.")
]
Public = Annotated[bool, typer.Option("--public", help="Make the image public.")]
Filename = Annotated[str, typer.Option(metavar="NAME", help="A filename; by default it is made from the prompt.")]
RequestId = Annotated[str, typer.Option(metavar="UUID", help="Repeat the request with this id, without paying twice.")]
Output = Annotated[
    str | None, typer.Option("--output", "-o", metavar="PATH", help="Save it as this file, or into this folder.")
]


# --- The commands -----------------------------------------------------------------------------------------------------
# Their parameters have the names of the options in CreateOptions, and are passed on by these names.


@app.command(cls=ServerCommand)
def create(
    ctx: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="What to draw; - reads it from standard input.", show_default=False),
    ] = None,
    like: Annotated[
        str,
        typer.Option(
            metavar="GUID", help="Take the prompt and the options from this image; others that are given replace them."
        ),
    ] = "",
    tags: Tags = None,
    public: Public = False,
    filename: Filename = "",
    model: Model = "",
    size: Size = "",
    quality: Quality = "",
    output_format: OutputFormat = "",
    background: Background = "",
    moderation: Moderation = "",
    output_compression: Compression = None,
    input_fidelity: InputFidelity = "",
    partial_images: PartialImages = 0,
    request_id: RequestId = "",
    output: Output = None,
    force: Force = False,
    show: Show = False,
    as_json: AsJson = False,
) -> None:
    """Generate an image from a prompt.

    It takes seconds to minutes, depending on the provider. Options default to those of the server.
    """
    _make(**ctx.params)


@app.command(cls=ServerCommand)
def edit(
    ctx: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="GUID", help="The images to edit, at most 16.", show_default=False),
    ],
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT", help="What to make of them; - reads it from standard input.", show_default=False
        ),
    ],
    mask: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="A PNG as large as the first image; where it is transparent, the image changes. Also the guid of one.",
        ),
    ] = "",
    input_fidelity: InputFidelity = "",
    tags: Tags = None,
    public: Public = False,
    filename: Filename = "",
    model: Model = "",
    size: Size = "",
    quality: Quality = "",
    output_format: OutputFormat = "",
    background: Background = "",
    output_compression: Compression = None,
    partial_images: PartialImages = 0,
    request_id: RequestId = "",
    output: Output = None,
    force: Force = False,
    show: Show = False,
    as_json: AsJson = False,
) -> None:
    """Generate an image from other images and a prompt.

    It takes seconds to minutes, depending on the provider. Options default to those of the server.
    """
    _make(**ctx.params)


def _make(
    prompt: str | None,
    *,
    like: str = "",
    public: bool,
    output: str | None,
    force: bool,
    show: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Have an image made, print it, and save and show it if that is asked for.

    ``options`` are those of CreateOptions; options that are not given are empty or None.
    """
    if prompt is None and not like:
        refuse("Give a prompt, or an image with --like.")
    target = None if output is None else checked_target(output, force=force)
    standard_input = _read_prompt() if prompt == STDIO else None
    with connect(must_sign_in=True) as client:
        given = {name: value for name, value in options.items() if value not in ("", None)}
        given["visibility"] = Visibility.PUBLIC if public else Visibility.PRIVATE
        image = _generate(client, prompt, standard_input, given, like)
        _print_created(image, as_json)
        if target is not None:
            path = target / file_name(image) if target.is_dir() else target
            # Not this command: it would create another image.
            again = command_line("fetch", image.guid, "--output", str(path), *(["--force"] if force else []))
            save(client, image.guid, path, again, force=force)
            if not as_json:
                typer.echo(f"saved as    {printable(str(path))}")
        if show:
            show_image(client, image.guid)


def _print_created(image: ImageDetail, as_json: bool) -> None:
    try:
        print_image(image, as_json)
    except BrokenPipeError:
        raise  # Who read the output has what they wanted.
    except OSError as error:
        propose(
            f"The image was generated, but its details cannot be written: {error.strerror}. To see them, run:",
            command_line("get", image.guid),
        )
        raise typer.Exit(FAILED) from error


def _generate(
    client: ServerClient, prompt: str | None, standard_input: str | None, options: dict[str, Any], like: str
) -> ImageDetail:
    """Have an image generated from ``standard_input`` or else ``prompt``; all others are the arguments of ``_make``."""
    if standard_input is not None:
        prompt = standard_input
    key = options.get("request_id") or str(uuid.uuid4())
    again = creation_again("" if "request_id" in options else key, standard_input)
    options = options | {"request_id": key}
    with _explaining_how_to_repeat(client, again):
        if like:
            image = client.get_image(like)
            options = options_like(image, options)
            prompt = image.prompt if prompt is None else prompt
        if "mask" in options:
            options["mask"] = _mask_of(client, options["mask"], key)
        viewer = image_viewer("--partial-images") if options.get("partial_images") else None
        return generate(client, again, viewer, prompt or "", **options)


@contextmanager
def _explaining_how_to_repeat(client: ServerClient, command: str) -> Iterator[None]:
    """After an interruption or a temporary error, show the command that repeats the request."""
    try:
        yield
    except KeyboardInterrupt:
        if client.is_answered():
            warn("Interrupted. If the server has started to generate the image, it finishes and keeps it.")
        else:
            warn(f"Interrupted. No server answers at {printable(client.server)}.")
        show_command_to_repeat(command)
        raise typer.Exit(INTERRUPTED) from None
    except TryLaterError as error:
        explain(error, client.server)
        show_command_to_repeat(command)
        raise typer.Exit(status_of(error)) from error


# --- The options of a new image ---------------------------------------------------------------------------------------


def _mask_of(client: ServerClient, mask: str, key: str) -> str:
    """Return the guid of a mask, which is imported if it is given as a file."""
    try:
        return str(uuid.UUID(mask))
    except ValueError:
        pass
    try:
        return client.import_image(Path(mask), request_id=request_id_of(key, "mask")).guid
    except OSError as error:
        refuse(f"--mask: {printable(mask)} cannot be read: {error.strerror}.")


def _read_prompt() -> str:
    try:
        return sys.stdin.buffer.read().decode().rstrip("\r\n")
    except UnicodeDecodeError:
        refuse("The prompt on standard input is not UTF-8.")
