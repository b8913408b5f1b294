"""The command line. Each command's module is imported only when it is asked for, so that all of them begin quickly."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pixyproxy.core.exceptions import ConfigurationError, DBConnectionError, PixyProxyException

# Before anything imports `grpc`, whose core reads it only then: below errors it logs what callers sent, as
# they sent it, so that they could write lines of their own.
os.putenv("GRPC_VERBOSITY", "ERROR")

_IMAGES = "pixyproxy.cli.images"
_ADMIN = "pixyproxy.cli.admin"
COMMANDS = {
    "create": (_IMAGES, "Make an image from a prompt."),
    "get": (_IMAGES, "Show what is known of an image."),
    "list": (_IMAGES, "List images, newest first."),
    "search": (_IMAGES, "List images whose prompts have all these words."),
    "fetch": (_IMAGES, "Save an image's bytes as a file."),
    "update": (_IMAGES, "Change an image's filename, tags or visibility."),
    "delete": (_IMAGES, "Delete an image for good."),
    "health": (_IMAGES, "Tell whether a server takes calls (exit status 0 or 5)."),
    "serve": (_ADMIN, "Serve until SIGTERM or Ctrl-C, from one process for each core."),
    "db": (_ADMIN, "Look after the database."),
    "user": (_ADMIN, "Say who may sign in."),
    "images": (_ADMIN, "Look after the bytes of images."),
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
    epilog="Everything is set by environment variables: pixyproxy serve --help lists those of the server, "
    "pixyproxy get --help those of the commands that ask one.",
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


def warn(line: str) -> None:
    """Say something to a person, beside what the command gives."""
    typer.echo(f"pixyproxy: {line}", err=True)


def main() -> None:
    """Run the command line; what goes wrong is said in plain words on standard error."""
    if any(COMMANDS.get(word, ("",))[0] == _ADMIN for word in sys.argv[1:]):
        # As it says there, before typer brings what loads OpenSSL.
        import pixyproxy.data  # noqa: F401
    try:
        app()
    except PixyProxyException as error:
        warn(error.message)
        if isinstance(error, DBConnectionError) and error.__cause__ is not None:
            # Callers are never told, but the operator must know what to mend.
            warn(f"because: {error.__cause__}")
        sys.exit(1)
