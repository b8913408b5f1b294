"""The command line."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated

import typer
from pydantic import SecretStr

from pixyproxy.bootstrap import build, build_exposition, build_users, open_current_database, open_database
from pixyproxy.core.exceptions import DBConnectionError, PixyProxyException
from pixyproxy.core.models import ADVISED_PASSWORD_LENGTH, UserClass, UserCreate
from pixyproxy.core.validation import validated
from pixyproxy.data import init
from pixyproxy.logs import set_up_logging
from pixyproxy.server import Server, serve_until_told
from pixyproxy.service.interfaces import UserServiceInterface
from pixyproxy.settings import describe_settings, load_settings

_FIRST_USER = "admin"

app = typer.Typer(
    name="pixyproxy",
    help="Generates images from prompts over gRPC, keeps them, and finds them again.",
    epilog="Everything is set by environment variables; pixyproxy serve --help lists them.",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
database_commands = typer.Typer(help="Look after the database.", no_args_is_help=True)
user_commands = typer.Typer(help="Say who may sign in.", no_args_is_help=True)
app.add_typer(database_commands, name="db")
app.add_typer(user_commands, name="user")

Name = Annotated[str, typer.Argument(help="The user's name.", show_default=False)]
PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input instead of asking for it.")
]


def _show_version(is_asked: bool) -> None:
    if is_asked:
        _say(f"pixyproxy {version('pixyproxy')}")
        raise typer.Exit


@app.callback()
def program(
    _: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_show_version)] = False,
) -> None:
    """Take the options that stand before a command."""


def _settings_help() -> str:
    """List all settings; click leaves a paragraph that begins with a backspace as it is."""
    lines = ["\b", "Environment variables:"]
    for variable, default, description in describe_settings():
        lines += [f"  {variable}{f'={default}' if default else ''}", f"      {description}"]
    return "\n".join(lines)


@app.command(epilog=_settings_help())
def serve() -> None:
    """Serve until SIGTERM or Ctrl-C.

    Prints one line, "listening on HOST:PORT", when it is ready; the log goes to standard error. With SQLite, the
    default, it makes or upgrades the tables by itself, and where there are no users yet it makes an admin and
    prints the password, once.
    """
    settings = load_settings()
    set_up_logging(settings.log_level, settings.log_format)
    with build_exposition(settings) as exposition, build(settings) as application:
        if exposition is not None:
            exposition.start()
        server = Server(application, settings)
        if settings.sqlite_path is not None:
            _make_first_user(application.users)
        serve_until_told(server, _say)


@database_commands.command("init")
def init_database() -> None:
    """Make the tables, or bring them to the form that this release works with. All data is kept."""
    settings = load_settings()
    set_up_logging("WARNING")
    with open_database(settings) as database:
        versions = init.upgrade(database)
    _say(f"The tables are at version {versions[-1]} now." if versions else "The tables are up to date.")


@user_commands.command("add")
def add_user(
    name: Name,
    class_key: Annotated[
        UserClass, typer.Option("--class", help="A user works with own images, an admin with everybody's.")
    ] = UserClass.USER,
    password_stdin: PasswordStdin = False,
) -> None:
    """Add a user."""
    password = _read_password(password_stdin)
    with _users() as users:
        users.create_user(validated(UserCreate, {"username": name, "password": password, "class_key": class_key}))
    _say(f"Added {class_key} {name}.")


@user_commands.command("list")
def list_users() -> None:
    """List all users."""
    with _users() as users:
        for user in users.get_all_users():
            _say(f"{user.class_key:<6} {user.username}")


@user_commands.command("passwd")
def change_password(name: Name, password_stdin: PasswordStdin = False) -> None:
    """Give a user another password. The old one is refused within a second."""
    password = _read_password(password_stdin)
    with _users() as users:
        users.change_password(name, password)
    _say(f"Changed the password of {name}.")


@user_commands.command("remove")
def remove_user(name: Name) -> None:
    """Remove a user. Images that the user has made stay, and the name then stays taken."""
    with _users() as users:
        keeps_name = users.remove_user(name)
    _say(f"Removed {name}." + (" The images stay, and the name stays taken." if keeps_name else ""))


@contextmanager
def _users() -> Iterator[UserServiceInterface]:
    settings = load_settings()
    set_up_logging("WARNING")
    with open_current_database(settings) as database:
        yield build_users(settings, database)


def _read_password(from_stdin: bool) -> str:
    """Read a password from where it cannot be seen: never from an argument, which every process list shows."""
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    if 0 < len(password) < ADVISED_PASSWORD_LENGTH:
        _warn(f"that password is short; at least {ADVISED_PASSWORD_LENGTH} characters are advised.")
    return password


def _make_first_user(users: UserServiceInterface) -> None:
    """Where there never was a user, make an admin, and show the password this once."""
    if users.has_users():
        return
    password = secrets.token_urlsafe(12)
    users.create_user(UserCreate(username=_FIRST_USER, password=SecretStr(password), class_key=UserClass.ADMIN))
    _say(f"first user: {_FIRST_USER}")
    _say(f"password: {password} (shown only now; change it with: pixyproxy user passwd {_FIRST_USER})")


def _warn(line: str) -> None:
    print(f"pixyproxy: {line}", file=sys.stderr)  # noqa: T201


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main() -> None:
    """Run the command line; what goes wrong is said in plain words on standard error."""
    try:
        app()
    except PixyProxyException as error:
        _warn(error.message)
        if isinstance(error, DBConnectionError) and error.__cause__ is not None:
            # Callers are never told, but the operator must know what to mend.
            _warn(f"because: {error.__cause__}")
        sys.exit(1)
