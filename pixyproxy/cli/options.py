"""Arguments and options that several commands have."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

import typer

from pixyproxy.cli.failures import refuse

STDIO = "-"
"""The name of a file that stands for standard input or output."""

LARGEST_PAGE = 200
"""The most entries of a page that the server returns."""

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON with the field names of the API.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]
Guid = Annotated[str, typer.Argument(metavar="GUID", help="The image's guid, as list shows it.", show_default=False)]
Show = Annotated[bool, typer.Option("--show", help="Show the image on the terminal.")]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG", help="A tag; repeat the option for more.", show_default=False),
]


def parse_time(text: str) -> datetime:
    """Parse a date or a time, in the local time zone by default."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is not a date or time like 2026-11-21 or 2026-11-21T14:30.") from None


def request_id_of(key: str, part: str) -> str:
    """Return the request id for a part of a command that has the id ``key``; the same each time."""
    try:
        return str(uuid.uuid5(uuid.UUID(key), part))
    except ValueError:
        refuse("--request-id: must be a UUID of 36 characters.")
