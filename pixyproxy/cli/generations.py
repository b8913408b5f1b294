"""The commands for generations, and how ``create`` waits for one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Unpack

import typer

from pixyproxy.cli import load_server_commands, warn
from pixyproxy.cli.connection import ServerClient, ServerCommand, connect
from pixyproxy.cli.display import image_viewer, spinner
from pixyproxy.cli.failures import INTERRUPTED, command_line, explain, propose, show_command_to_repeat
from pixyproxy.cli.help import Command
from pixyproxy.cli.lists import GENERATIONS, print_list, warn_of_more
from pixyproxy.cli.options import LARGEST_PAGE, AsJson, parse_time
from pixyproxy.cli.texts import json_line, json_of_generation, lines_of_generation, printable
from pixyproxy.client import (
    CreateOptions,
    Generation,
    GenerationFilters,
    GenerationState,
    ImageDetail,
    PartialImage,
    PixyProxyClientError,
)

if TYPE_CHECKING:
    from pixyproxy.cli.live import Line

_LONGEST_WATCH = 24 * 3600.0
_POSITION_TIMEOUT = 5.0
_WORDS = {GenerationState.QUEUED: "Queued", GenerationState.SUBMITTED: "Generating the image"}

app = typer.Typer(rich_markup_mode=None, add_completion=False)
generation_commands = typer.Typer(help="List, watch, cancel and salvage generations.", no_args_is_help=True)
app.add_typer(generation_commands, name="generations")

Show = Callable[[bytes], None]


class State(StrEnum):
    """A generation's state, as it is typed. Typer supports no list of literals."""

    QUEUED = "queued"
    SUBMITTED = "submitted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    OUTCOME_UNKNOWN = "outcome_unknown"


Guid = Annotated[str, typer.Argument(metavar="GUID", help="The generation's guid, as list shows it.")]


# --- The commands ----------------------------------------------------------------------------------------------------


@generation_commands.command("list", cls=ServerCommand)
def list_generations(
    state: Annotated[
        list[State] | None,
        typer.Option(metavar="STATE", help=f"One of {', '.join(State)}; repeat the option for more."),
    ] = None,
    author: Annotated[
        str, typer.Option(metavar="USER", help="Only generations of this user.", show_default=False)
    ] = "",
    after: Annotated[
        datetime | None,
        typer.Option(parser=parse_time, metavar="TIME", help="Only generations recorded after this time."),
    ] = None,
    before: Annotated[
        datetime | None,
        typer.Option(parser=parse_time, metavar="TIME", help="Only generations recorded before this time."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="The most generations to list.")] = 50,
    is_all: Annotated[bool, typer.Option("--all", help="List all generations.")] = False,
    as_json: AsJson = False,
) -> None:
    """List generations, newest first."""
    filters = GenerationFilters(
        states=[GenerationState[one.name] for one in state or ()],
        author=author,
        created_after=after,
        created_before=before,
    )
    count = None if is_all else limit
    with connect(must_sign_in=True) as client:
        found = client.list_generations(page_size=min(count or LARGEST_PAGE, LARGEST_PAGE), **filters)
        if print_list(islice(found, count), as_json, GENERATIONS):
            warn_of_more(found, count)
        elif not as_json:
            warn("No generations found.")


@generation_commands.command("get", cls=ServerCommand)
def get_generation(guid: Guid, as_json: AsJson = False) -> None:
    """Show the details of a generation."""
    with connect(must_sign_in=True) as client:
        _print(client.get_generation(guid), as_json)


@generation_commands.command("watch", cls=ServerCommand)
def watch_generation(
    guid: Guid,
    show: Annotated[bool, typer.Option("--show", help="Show its partial images on the terminal.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch a generation until it has ended, for a day at most.

    The exit status is that of create. With --json it writes a line for each state.
    """
    generation = None
    with connect(must_sign_in=True) as client:
        shower = image_viewer("--show") if show else None
        try:
            with nullcontext() if as_json else spinner("Watching the generation", client.server) as line:
                for generation in _states(client, guid, line, shower, _LONGEST_WATCH):
                    if as_json:
                        _print(generation, as_json)
        except KeyboardInterrupt:
            _say_how_to_come_back(generation, guid)
            raise typer.Exit(INTERRUPTED) from None
        if generation is not None:
            if not as_json:
                _print(generation, as_json)
            generation.result()


@generation_commands.command("cancel", cls=ServerCommand)
def cancel_generation(guid: Guid, as_json: AsJson = False) -> None:
    """Cancel a generation that is queued, which costs nothing."""
    with connect(must_sign_in=True) as client:
        generation = client.cancel_generation(guid)
    if as_json:
        _print(generation, as_json)
    else:
        typer.echo(f"Cancelled {printable(generation.guid)}.")


@generation_commands.command("salvage", cls=Command)
def salvage_generation(
    guid: Annotated[
        str, typer.Argument(metavar="GUID", help="The generation's guid, or the one in the error.", show_default=False)
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file, which must not exist; - writes to standard output.",
            show_default=False,
        ),
    ],
) -> None:
    """Save what is kept of a generation without an image.

    If no image could be stored from the provider's answer, the answer is kept. The file gets the bytes in it, of
    whatever kind they are, or else the answer itself. This command is for operators: it reads the server's database and
    image store, and the environment variables of serve.
    """
    load_server_commands("generations salvage").salvage(guid, output)


# --- Waiting for a generation ----------------------------------------------------------------------------------------


def generate(
    client: ServerClient, again: str, show: Show | None, prompt: str, **options: Unpack[CreateOptions]
) -> ImageDetail:
    """Have an image generated, and show the progress; ``again`` is the command that repeats the request."""
    generation = None
    try:
        with spinner("Making the image", client.server) as line:
            try:
                generation = client.create_generation(prompt, **options)
            except PixyProxyClientError as error:
                # A server of the first release knows no inputs either, and would make an image without them.
                if error.code != "UNIMPLEMENTED" or options.get("inputs"):
                    raise
                return client.create_image(prompt, **options)  # A server of the first release.
            for state in _states(client, generation.guid, line, show):
                generation = state
    except KeyboardInterrupt:
        if generation is None:
            raise
        if not _was_cancelled(client, generation):
            _say_how_to_come_back(generation, generation.guid)
            show_command_to_repeat(again)
        raise typer.Exit(INTERRUPTED) from None
    return generation.result()


def _states(
    client: ServerClient, guid: str, line: Line | None, show: Show | None, timeout: float | None = None
) -> Iterator[Generation]:
    """Watch a generation: yield each state, and show it on the line; show partial images."""
    for event in client.watch_generation(guid, timeout=timeout):
        if isinstance(event, PartialImage):
            if show is not None:
                # An unreadable partial image is no reason to stop watching.
                with line.hidden() if line else nullcontext(), suppress(OSError, Warning):
                    show(event.data)
            continue
        if line is not None and not event.state.is_final:
            line.say(_words(client, event))
        yield event


def _words(client: ServerClient, generation: Generation) -> str:
    """Describe a generation that has not ended, with its position in the queue when it was queued."""
    words = _WORDS[generation.state]
    if generation.state is GenerationState.QUEUED and (ahead := _count_ahead(client, generation)):
        # Users are served in turn, so that only their own generations are ahead for certain.
        words += f" behind {ahead}{'' if ahead < LARGEST_PAGE else ' or more'} of yours"
    return words + (f" (attempt {generation.attempts})" if generation.attempts > 1 else "")


def _count_ahead(client: ServerClient, generation: Generation) -> int:
    """Return how many queued generations of the same author are older, up to a page of them."""
    try:
        older = client.list_generations(
            page_size=LARGEST_PAGE,
            timeout=_POSITION_TIMEOUT,
            states=[GenerationState.QUEUED],
            author=generation.author,
            created_before=generation.created_at,
        )
        return sum(1 for _ in islice(older, LARGEST_PAGE))
    except PixyProxyClientError:
        return 0  # The watch goes on without it.


def _was_cancelled(client: ServerClient, generation: Generation) -> bool:
    """Ask once whether to cancel a queued generation, and do so."""
    if generation.state is not GenerationState.QUEUED or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    try:
        if not typer.confirm("The generation is queued and has cost nothing. Cancel it?", err=True):
            return False
        client.cancel_generation(generation.guid)
    except typer.Abort:
        typer.echo(err=True)  # What follows begins on a line of its own.
        return False
    except PixyProxyClientError as error:
        explain(error, client.server)
        return False
    warn("Cancelled. Nothing was generated.")
    return True


def _say_how_to_come_back(generation: Generation | None, guid: str) -> None:
    if generation is None or not generation.state.is_final:
        command = command_line("generations", "watch", guid)
        propose("Interrupted. The server finishes and keeps it. To watch it, run:", command)


# --- Output ----------------------------------------------------------------------------------------------------------


def _print(generation: Generation, as_json: bool) -> None:
    typer.echo(json_line(json_of_generation(generation)) if as_json else "\n".join(lines_of_generation(generation)))
