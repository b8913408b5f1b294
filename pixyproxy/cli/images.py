"""The commands for the details of images: get, list, search, update and delete; and health."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from typing import Annotated, Literal

import typer

from pixyproxy.cli import warn
from pixyproxy.cli.connection import NOT_SIGNED_IN, ServerClient, ServerCommand, connect
from pixyproxy.cli.display import image_viewer, print_image, show_image, spinner
from pixyproxy.cli.failures import TRY_LATER, refuse
from pixyproxy.cli.lists import IMAGES, print_list, warn_of_more
from pixyproxy.cli.options import LARGEST_PAGE, AsJson, Guid, Show, Tags, parse_time
from pixyproxy.cli.texts import printable
from pixyproxy.client import Filters, ImageDetail, Visibility

_SHOWN_AT_ONCE = 50
_HEALTH_TIMEOUT = 5.0

app = typer.Typer(rich_markup_mode=None, add_completion=False)

ShowAll = Annotated[bool, typer.Option("--show", help="Show the images on the terminal.")]
Author = Annotated[str, typer.Option(metavar="USER", help="Only images by this user.", show_default=False)]
FilenamePart = Annotated[
    str, typer.Option(metavar="TEXT", help="Only images with this text in the filename.", show_default=False)
]
WhoSees = Literal["private", "public"]
Sees = Annotated[
    WhoSees | None, typer.Option("--visibility", help="Only private or only public images.", show_default=False)
]
After = Annotated[
    datetime | None,
    typer.Option(parser=parse_time, metavar="TIME", help="Only images made after this time.", show_default=False),
]
Before = Annotated[
    datetime | None,
    typer.Option(parser=parse_time, metavar="TIME", help="Only images made before this time.", show_default=False),
]
Limit = Annotated[int, typer.Option(min=1, metavar="N", help="The most images to list.")]
All = Annotated[bool, typer.Option("--all", help="List all images.")]


# --- The commands -----------------------------------------------------------------------------------------------------


@app.command(cls=ServerCommand)
def get(guid: Guid, show: Show = False, as_json: AsJson = False) -> None:
    """Show the details of an image."""
    with connect() as client:
        print_image(client.get_image(guid), as_json)
        if show:
            show_image(client, guid)


@app.command("list", cls=ServerCommand)
def list_(
    tag: Tags = None,
    author: Author = "",
    filename: FilenamePart = "",
    visibility: Sees = None,
    after: After = None,
    before: Before = None,
    limit: Limit = 50,
    is_all: All = False,
    show: ShowAll = False,
    as_json: AsJson = False,
) -> None:
    """List images, newest first."""
    filters = _filters(tag, author, filename, visibility, after, before)
    _list_images(filters, None if is_all else limit, as_json, show=show)


@app.command(cls=ServerCommand)
def search(
    words: Annotated[
        list[str],
        typer.Argument(metavar="WORDS", help="Words in the prompt; the last one may be the beginning of a word."),
    ],
    tag: Tags = None,
    author: Author = "",
    filename: FilenamePart = "",
    visibility: Sees = None,
    after: After = None,
    before: Before = None,
    limit: Limit = 50,
    is_all: All = False,
    as_json: AsJson = False,
) -> None:
    """List images whose prompts have all these words."""
    filters = _filters(tag, author, filename, visibility, after, before)
    filters["prompt"] = " ".join(words)
    _list_images(filters, None if is_all else limit, as_json)


@app.command(cls=ServerCommand)
def update(
    guid: Guid,
    filename: Annotated[str | None, typer.Option(metavar="NAME", help="The new filename.", show_default=False)] = None,
    tag: Tags = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Remove all tags.")] = False,
    visibility: Annotated[WhoSees | None, typer.Option(help="Who may see it.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Change an image's filename, tags or visibility.

    New tags replace all the old ones.
    """
    if tag and no_tags:
        refuse("--tag and --no-tags exclude each other.")
    if filename is None and not tag and not no_tags and visibility is None:
        refuse("Nothing to change: use --filename, --tag, --no-tags or --visibility.")
    with connect(must_sign_in=True) as client:
        image = client.update_image(
            guid, filename=filename, tags=[] if no_tags else tag, visibility=_visibility(visibility)
        )
    print_image(image, as_json)


@app.command(cls=ServerCommand)
def delete(
    guid: Guid, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False
) -> None:
    """Delete an image for good."""
    if not yes and not sys.stdin.isatty():
        refuse("There is no terminal to ask for confirmation at: use --yes.")
    with connect(must_sign_in=True) as client:
        if not yes:
            image = client.get_image(guid)
            typer.confirm(f'Delete {guid}, "{printable(image.prompt)[:60]}", for good?', abort=True, err=True)
        client.delete_image(guid)
    typer.echo(f"Deleted {printable(guid)}.")


@app.command(cls=ServerCommand)
def health() -> None:
    """Check whether a server is serving (exit status 0 or 5)."""
    with connect() as client:
        is_serving = client.is_serving(timeout=_HEALTH_TIMEOUT)
    typer.echo("serving" if is_serving else "not serving")
    if not is_serving:
        raise typer.Exit(TRY_LATER)


# --- Lists ------------------------------------------------------------------------------------------------------------


def _filters(
    tags: list[str] | None,
    author: str,
    filename: str,
    visibility: WhoSees | None,
    after: datetime | None,
    before: datetime | None,
) -> Filters:
    return Filters(
        tags=tags or (),
        author=author,
        filename=filename,
        visibility=_visibility(visibility),
        created_after=after,
        created_before=before,
    )


def _visibility(who: WhoSees | None) -> Visibility | None:
    return None if who is None else Visibility[who.upper()]


def _list_images(filters: Filters, limit: int | None, as_json: bool, *, show: bool = False) -> None:
    shower = image_viewer("--show") if show else None
    with connect() as client:
        images = client.list_images(page_size=min(limit or LARGEST_PAGE, LARGEST_PAGE), **filters)
        listed = islice(images, limit)
        if print_list(listed if shower is None else _shown(client, listed, shower), as_json, IMAGES):
            warn_of_more(images, limit)
        elif not as_json:
            warn("No images found." + (f" {NOT_SIGNED_IN}" if not client.is_signed_in else ""))


def _shown(client: ServerClient, images: Iterator[ImageDetail], show: Callable[[bytes], None]) -> Iterator[ImageDetail]:
    """Yield images, each after it was shown. Thumbnails are requested for several at a time."""
    while page := list(islice(images, _SHOWN_AT_ONCE)):
        with spinner("Loading thumbnails", client.server):
            thumbnails = {one.guid: one for one in client.get_thumbnails([image.guid for image in page])}
        for image in page:
            thumbnail = thumbnails[image.guid]
            if thumbnail.error:
                warn(f"The image {image.guid} cannot be shown: {printable(thumbnail.error)}")
            else:
                show(thumbnail.data)
            yield image
