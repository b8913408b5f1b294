"""The command line. Each command's module is imported only when it is asked for, so that all of them begin quickly."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pixyproxy.core.exceptions import ConfigurationError, PixyProxyException

# Before anything imports `grpc`, whose core reads it only then: below errors it logs what callers sent, as
# they sent it, so that they could write lines of their own.
os.putenv("GRPC_VERBOSITY", "ERROR")

_IMAGES = "pixyproxy.cli.images"
_GENERATIONS = "pixyproxy.cli.generations"
_ADMIN = "pixyproxy.cli.admin"
COMMANDS = {
    "create": (_IMAGES, "Make an image from a prompt."),
    "get": (_IMAGES, "Show the details of an image."),
    "list": (_IMAGES, "List images, newest first."),
    "search": (_IMAGES, "List images whose prompts have all these words."),
    "fetch": (_IMAGES, "Save an image's bytes as a file."),
    "update": (_IMAGES, "Change an image's filename, tags or visibility."),
    "delete": (_IMAGES, "Delete an image for good."),
    "health": (_IMAGES, "Tell whether a server takes calls (exit status 0 or 5)."),
    "generations": (_GENERATIONS, "List, watch and cancel generations."),
    "serve": (_ADMIN, "Serve until SIGTERM or Ctrl-C, with a process for each core."),
    "db": (_ADMIN, "Make or upgrade the tables of the database."),
    "user": (_ADMIN, "Add, list, change and remove users."),
    "images": (_ADMIN, "Copy the bytes of all images into another store."),
}
"""Of each command its module, and the line that ``pixyproxy --help`` shows."""


class _Commands(TyperGroup):
    """All commands, of which only the one that is run is imported."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands.update({name: TyperCommand(name, help=help_) for name, (_, help_) in COMMANDS.items()})

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and load_command(str(command.name)), rest


def load_command(name: str) -> Any:
    """Import a command.

    Raises:
        ConfigurationError: it needs packages that are not installed.
    """
    if COMMANDS[name][0] != _ADMIN:
        os.putenv("GRPC_VERBOSITY", "NONE")  # These say in words of their own what goes wrong with a connection.
    try:
        module = import_module(COMMANDS[name][0])
    except ModuleNotFoundError as error:
        if COMMANDS[name][0] != _ADMIN or (error.name or "").startswith("pixyproxy"):
            raise
        raise ConfigurationError(
            f"{name} needs the server, which runs on Linux and macOS: pip install 'pixyproxy[server]'"
        ) from error
    group: Any = typer.main.get_command(module.app)
    return group.commands[name]


app = typer.Typer(
    name="pixyproxy",
    cls=_Commands,
    help="Generates images from prompts over gRPC, keeps them, and finds them again.",
    epilog="Environment variables set everything else: pixyproxy serve --help lists those of the server and of db, "
    "user and images; pixyproxy get --help lists those of the commands that call a server.",
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"pixyproxy {version('pixyproxy')}")
        raise typer.Exit


@app.callback()
def program(
    _: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_show_version)] = False,
) -> None:
    """Take the options that stand before a command."""


def warn(message: str) -> None:
    """Write a message for people to standard error; at a terminal no line breaks inside a word."""
    # Not typer.echo: it would write past what stands on the terminal while a spinner or a bar is shown.
    print(_wrapped(f"pixyproxy: {message}"), file=sys.stderr, flush=True)  # noqa: T201


def has_terminal() -> bool:
    """Tell whether a password can be asked for: without a terminal `getpass` reads standard input and shows it."""
    try:
        with open("CONIN$" if sys.platform == "win32" else "/dev/tty", "rb"):
            return True
    except OSError:
        return sys.stdin.isatty()


def line_width() -> int:
    """Return how many cells of a terminal's line may be filled; the rest is for the ^C that the terminal shows."""
    return shutil.get_terminal_size().columns - len("^C") - 1


def _wrapped(text: str) -> str:
    if not sys.stderr.isatty():
        return text
    return textwrap.fill(text, line_width(), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Run the command line; what goes wrong is said in plain words on standard error."""
    if any(COMMANDS.get(word, ("",))[0] == _ADMIN for word in sys.argv[1:]):
        # As it says there, before typer brings what loads OpenSSL.
        import pixyproxy.data  # noqa: F401
    try:
        app()
    except PixyProxyException as error:
        warn(error.diagnosis or error.message)
        sys.exit(1)
