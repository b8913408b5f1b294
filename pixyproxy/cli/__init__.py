"""The command line. A command's module is imported only when it is run, so that all commands start quickly."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import textwrap
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pixyproxy.core.exceptions import ConfigurationError, PixyProxyException

# Before `grpc` is imported, whose core reads the variable only then. Below errors it logs unescaped data of callers,
# with which they could forge log lines.
os.putenv("GRPC_VERBOSITY", "ERROR")

_ADMIN = "admin"
_SALVAGE = "salvage"  # the command for generations that needs the server's packages
OUTPUT_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""The errors of writing to standard output; those of files are explained by what writes them."""
COMMANDS = {
    "create": ("creation", "Generate an image from a prompt."),
    "edit": ("creation", "Generate an image from other images and a prompt."),
    "import": ("imports", "Store images of your own."),
    "get": ("images", "Show the details of an image."),
    "list": ("images", "List images, newest first."),
    "search": ("images", "List images whose prompts have all these words."),
    "fetch": ("fetching", "Save an image's bytes as a file."),
    "update": ("images", "Change an image's filename, tags or visibility."),
    "delete": ("images", "Delete an image for good."),
    "health": ("images", "Check whether a server is serving (exit status 0 or 5)."),
    "generations": ("generations", "List, watch, cancel and salvage generations."),
    "usage": ("usage", "Show what was spent: images, tokens and costs."),
    "quota": ("usage", "Show the limits of a user, and how much of each is used."),
    "serve": (_ADMIN, "Serve until SIGTERM or Ctrl-C, with a process for each core."),
    "models": (_ADMIN, "List the models that the provider's account offers."),
    "db": (_ADMIN, "Create or upgrade the tables of the database."),
    "user": (_ADMIN, "Add, list, change, limit and remove users."),
    "images": (_ADMIN, "Copy the bytes of all images into another store."),
}
"""For each command its module in this package, and the line that ``pixyproxy --help`` shows."""


class _Commands(TyperGroup):
    """All commands; only the one that is run is imported."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands.update({name: TyperCommand(name, help=help_) for name, (_, help_) in COMMANDS.items()})

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and load_command(str(command.name)), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.Abort as error:
            # Typer's questions turn Ctrl-C into the same error as the answer no.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise


def load_command(name: str) -> Any:
    """Import a command.

    Raises:
        ConfigurationError: it needs packages that are not installed.
    """
    if COMMANDS[name][0] == _ADMIN:
        module = load_server_commands(name)
    else:
        os.putenv("GRPC_VERBOSITY", "NONE")  # These commands explain failures of connections themselves.
        module = import_module(f"{__name__}.{COMMANDS[name][0]}")
    command: Any = typer.main.get_command(module.app)
    return getattr(command, "commands", {name: command})[name]


def load_server_commands(name: str) -> Any:
    """Import the commands for operators.

    Raises:
        ConfigurationError: the packages that they need are not installed; the message names the command.
    """
    try:
        return import_module(f"{__name__}.{_ADMIN}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pixyproxy"):
            raise
        raise ConfigurationError(
            f"{name} needs the server, which runs on Linux and macOS: pip install 'pixyproxy[server]'"
        ) from error


app = typer.Typer(
    name="pixyproxy",
    cls=_Commands,
    help="Generates images from prompts over gRPC, stores them, and finds them again.",
    epilog="All other settings are environment variables: pixyproxy serve --help lists those of serve, models, db, "
    "user, images and generations salvage; pixyproxy get --help lists those of the commands that call a server.",
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
    """Handle the options before a command."""


def warn(message: str) -> None:
    """Write a message to standard error, wrapped between words at a terminal."""
    # Not typer.echo: it would write over a spinner or progress bar.
    print(_wrapped(f"pixyproxy: {message}"), file=sys.stderr, flush=True)  # noqa: T201


def has_terminal() -> bool:
    """Return whether there is a terminal; without one, `getpass` reads the password from standard input with echo."""
    try:
        with open("CONIN$" if sys.platform == "win32" else "/dev/tty", "rb"):
            return True
    except OSError:
        return sys.stdin.isatty()


def let_all_be_written() -> None:
    """Write characters that the terminal's encoding does not have as question marks."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def line_width() -> int:
    """Return how many cells of a line to use, so that there is room for the ^C that a terminal shows."""
    return max(shutil.get_terminal_size().columns - len("^C") - 1, 1)


def _wrapped(text: str) -> str:
    if not sys.stderr.isatty():
        return text
    width = line_width()
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    )


def main() -> None:
    """Run the command line; write errors to standard error."""
    _require_streams()
    if any(word == _SALVAGE or COMMANDS.get(word, ("",))[0] == _ADMIN for word in sys.argv[1:]):
        # Before typer imports OpenSSL; see there.
        import pixyproxy.data  # noqa: F401
    try:
        app()
    except PixyProxyException as error:
        warn(error.diagnosis or error.message)
        sys.exit(1)
    except OSError as error:
        if error.errno not in OUTPUT_ERRORS:
            raise
        _warn_of_output(error)
        sys.exit(1)
    finally:
        _write_rest()


def _write_rest() -> None:
    """Write what is left of the output; end the program with status 1 if that is not possible."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Or the interpreter would try again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        is_explained = isinstance(error.__context__, SystemExit) and error.__context__.code
        if not is_explained:
            _warn_of_output(error)
        sys.exit(1)


def _warn_of_output(error: OSError) -> None:
    warn(f"The output cannot be written: {error.strerror}.")


def _require_streams() -> None:
    """End the program if it was started without standard output or error; without input there is nothing to read.

    The next file that is opened would take the place of a stream that is missing.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.exit(1)
    if sys.stdout is None:
        warn("Standard output is closed.")
        sys.exit(1)
