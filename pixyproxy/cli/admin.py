"""The commands for operators: serve, models, db, user, images and generations salvage."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer
from pydantic import SecretStr

from pixyproxy.bootstrap import (
    build_copying,
    build_users,
    list_models,
    open_current_database,
    open_database,
    open_existing_database,
    read_kept_answer,
)
from pixyproxy.cli import has_terminal, let_all_be_written, warn
from pixyproxy.cli.failures import FAILED, NOT_FOUND, refuse
from pixyproxy.cli.help import Command
from pixyproxy.cli.options import STDIO
from pixyproxy.cli.texts import json_line, printable
from pixyproxy.core.exceptions import (
    ConfigurationError,
    ConstraintViolationError,
    InvalidFieldError,
    RecordNotFoundError,
)
from pixyproxy.core.fields import ADVISED_PASSWORD_LENGTH, UserClass
from pixyproxy.core.models import (
    MAX_GENERATIONS_AT_ONCE,
    MAX_IMAGES_PER_DAY,
    MAX_USD_PER_DAY,
    UNLIMITED,
    QuotaLimits,
    QuotaName,
    UserCreate,
)
from pixyproxy.core.text import exact_key
from pixyproxy.core.validation import validated
from pixyproxy.data import init
from pixyproxy.data.database import Database
from pixyproxy.service.image_copying import CopyOutcome
from pixyproxy.service.indexer import seal_all
from pixyproxy.service.interfaces import UserServiceInterface
from pixyproxy.serving.cores import advised_workers, can_share_work
from pixyproxy.serving.file_access import protect_existing_files, protect_new_files, warn_of_read_only_folder
from pixyproxy.serving.logs import set_up_logging
from pixyproxy.serving.workers import serve_alone, serve_together
from pixyproxy.settings import MAX_WORKERS, Settings, describe_settings, load_settings, misspelt_settings

_FIRST_USER = "admin"
_IMAGE = "image"
_NOT_COPIED = (CopyOutcome.MISSING, CopyOutcome.DAMAGED, CopyOutcome.FAILED)

_logger = logging.getLogger(__name__)

app = typer.Typer(rich_markup_mode=None, add_completion=False)
database_commands = typer.Typer(help="Create or upgrade the tables of the database.", no_args_is_help=True)
user_commands = typer.Typer(help="Add, list, change, limit and remove users.", no_args_is_help=True)
app.add_typer(database_commands, name="db")
image_commands = typer.Typer(help="Copy the bytes of all images into another store.", no_args_is_help=True)
app.add_typer(user_commands, name="user")
app.add_typer(image_commands, name="images")


def _check_name(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("It is not text in the encoding of this terminal.") from None
    return name


Name = Annotated[str, typer.Argument(metavar="NAME", help="The user's name.", callback=_check_name, show_default=False)]
Workers = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_WORKERS, metavar="N", help="The number of RPC workers, in place of PIXYPROXY_WORKERS."),
]
PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input instead of asking for it.")
]


class _Serve(Command):
    variables = tuple(describe_settings())


@app.command(cls=_Serve)
def serve(workers: Workers = None) -> None:
    """Serve until SIGTERM or Ctrl-C, with a process for each core.

    Prints one line, "listening on HOST:PORT", when it is ready; the log goes to standard error. With SQLite, the
    default, it creates or upgrades the tables. If there are no users yet, it adds an admin, and prints the password
    once.
    """
    settings = _load_settings(is_server=True)
    protect_existing_files(settings)
    warn_of_read_only_folder(settings)
    count = workers or settings.workers or advised_workers()
    if count == 1 or not can_share_work():
        serve_alone(settings, _make_first_user, _say_listening)
    elif not serve_together(settings, count, _make_first_user, _say_listening):
        raise typer.Exit(1)


@app.command(cls=Command)
def models(
    is_all: Annotated[bool, typer.Option("--all", help="List all models, not only those for images.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write a line of JSON for each model.")] = False,
) -> None:
    """List the models that the provider's account offers.

    The provider does not say what a model is for: those with "image" in their names are listed, and PIXYPROXY_MODEL,
    which is marked with *. Needs OPENAI_API_KEY.
    """
    settings = _load_settings()
    offered = list_models(settings)
    shown = [model for model in offered if is_all or _IMAGE in model.name.lower() or model.name == settings.model]
    width = max((len(printable(model.name)) for model in shown), default=0)
    for model in shown:
        is_default = model.name == settings.model
        if as_json:
            _say(json_line({"id": model.name, "shutdown_date": model.shutdown_date, "is_default": is_default}))
            continue
        end = f"  shuts down on {printable(model.shutdown_date)}" if model.shutdown_date else ""
        _say(f"{'*' if is_default else ' '} {printable(model.name):<{width if end else 0}}{end}")
    if settings.model not in {model.name for model in offered}:
        warn(f"The account does not offer {settings.model}, the model of PIXYPROXY_MODEL.")
    if len(shown) < len(offered):
        warn(f"Not listed: {len(offered) - len(shown):,} other models; --all lists them.")


@database_commands.command("init", cls=Command)
def init_database() -> None:
    """Create the tables, or upgrade those of an earlier release.

    All data is kept.
    """
    settings = _load_settings()
    with open_database(settings) as database:
        versions = init.upgrade(database)
        seal_all(database, lambda done, count: _say(f"Indexed {done:,} of {count:,} images for search."))
    _say(f"The tables are at version {versions[-1]} now." if versions else "The tables are up to date.")


@user_commands.command("add", cls=Command)
def add_user(
    name: Name,
    class_key: Annotated[
        UserClass, typer.Option("--class", help="Users can change their own images, admins those of all users.")
    ] = UserClass.USER,
    password_stdin: PasswordStdin = False,
) -> None:
    """Add a user."""
    user = {"username": name, "password": "not read yet", "class_key": class_key}
    validated(UserCreate, user)  # No password is asked for in vain.
    # The first user may be added before the first start of a server.
    with _users(open_current_database) as users:
        if _is_user(users, name):
            raise ConstraintViolationError(f"The name {name} is taken. To change the password: pixyproxy user passwd")
        users.create_user(validated(UserCreate, user | {"password": _read_password(password_stdin)}))
    _say(f"Added {class_key} {name}.")


@user_commands.command("list", cls=Command)
def list_users() -> None:
    """List all users."""
    with _users() as service:
        users = service.get_all_users()
    for user in users:
        _say(f"{user.class_key:<6} {user.username}")
    if not users:
        warn("There are no users. To add one: pixyproxy user add NAME --class admin")


@user_commands.command("passwd", cls=Command)
def change_password(name: Name, password_stdin: PasswordStdin = False) -> None:
    """Change the password of a user.

    Servers refuse the old one within a second.
    """
    with _users() as users:
        if not _is_user(users, name):
            raise RecordNotFoundError(f"There is no user {name}.")
        password = _read_password(password_stdin)
        users.change_password(name, password)
    _say(f"Changed the password of {name}.")


@user_commands.command("limit", cls=Command)
def limit_user(
    name: Name,
    usd_per_day: Annotated[
        str | None, typer.Option(metavar="USD", help="The most US dollars that the user may spend on a day.")
    ] = None,
    images_per_day: Annotated[
        str | None, typer.Option(metavar="N", help="The most images that the user may generate on a day.")
    ] = None,
    generations_at_once: Annotated[
        str | None, typer.Option(metavar="N", help="The most generations submitted at a time; others are queued.")
    ] = None,
) -> None:
    """Show or set what a user may spend.

    Without options, it shows the limits. The value "default" removes a limit of the user's own, so that the one of the
    servers' settings holds; "unlimited" also exempts the user from that. Days are those of UTC. Limits hold at once,
    and what was spent today counts.
    """
    asked = {
        "nano_usd_per_day": ("--usd-per-day", usd_per_day, 0, MAX_USD_PER_DAY, 9),
        "images_per_day": ("--images-per-day", images_per_day, 0, MAX_IMAGES_PER_DAY, 0),
        "generations_at_once": ("--generations-at-once", generations_at_once, 1, MAX_GENERATIONS_AT_ONCE, 0),
    }
    given = {
        field: _parse_limit(option, text, lowest, highest, digits)
        for field, (option, text, lowest, highest, digits) in asked.items()
        if text is not None
    }
    with _users() as users:
        limits = users.set_limits(name, QuotaLimits(**given)) if given else users.get_limits(name)
    for (field, limit), option in zip(limits, QuotaName, strict=True):
        if limit is None:
            shown = "default"
        elif limit == UNLIMITED:
            shown = "unlimited"
        else:
            shown = f"{Decimal(limit).scaleb(-9).normalize():,f}" if field.startswith("nano") else f"{limit:,}"
        _say(f"{option.value:<19} {shown}")


@user_commands.command("remove", cls=Command)
def remove_user(name: Name) -> None:
    """Remove a user.

    The user's queued generations are cancelled. The images stay. If there are any, the name stays taken.
    """
    with _users() as users:
        keeps_name = users.remove_user(name)
        has_admin = any(user.class_key is UserClass.ADMIN for user in users.get_all_users())
    _say(f"Removed {name}." + (" The images stay, and the name stays taken." if keeps_name else ""))
    if not has_admin:
        warn("There is no admin now. To add one: pixyproxy user add NAME --class admin")


@image_commands.command("copy", cls=Command)
def copy_images(
    source: Annotated[
        str,
        typer.Option("--from", metavar="STORE", help="The store to copy from: a folder, or a URL like s3://BUCKET."),
    ],
    target: Annotated[
        str, typer.Option("--to", metavar="STORE", help="The store to copy to: a folder, or a URL like s3://BUCKET.")
    ],
    delete_source: Annotated[
        bool,
        typer.Option("--delete-source", help="Delete each from the first store once the copy is verified."),
    ] = False,
) -> None:
    """Copy the bytes of all images from one store into another.

    Each copy is compared with the hash in the database. Servers may keep serving. After an interruption, run the
    command again to continue. Images that are missing, damaged, or cannot be read, written or deleted are listed, and
    the exit status is 1.
    """
    from pixyproxy.cli.live import shown  # Servers need not load it.

    settings = _load_settings()
    counts: Counter[CopyOutcome] = Counter()
    with build_copying(settings, source, target, deletes_source=delete_source) as copying:
        for result in shown(copying.run(), copying.count_images(), "Copying images"):
            counts[result.outcome] += 1
            if result.outcome in _NOT_COPIED:
                _say(f"{result.outcome}: {result.guid}")
    _say(", ".join(f"{counts[outcome]:,} {outcome}" for outcome in CopyOutcome) + ".")
    if any(counts[outcome] for outcome in _NOT_COPIED):
        raise typer.Exit(1)


def salvage(guid: str, output: str) -> None:
    """Write what was kept aside for a generation to a new file, or to standard output if ``output`` is ``-``.

    The command itself is among those for generations.
    """
    settings = _load_settings()
    is_stdout = output == STDIO
    if is_stdout and sys.stdout.isatty():
        refuse("What is kept is not written to a terminal: redirect it to a file or a program.")
    try:
        kept = read_kept_answer(settings, guid)
    except InvalidFieldError as error:
        refuse(f"GUID: {error.violations[0].description}")
    except RecordNotFoundError as error:
        refuse(error.message, NOT_FOUND)
    if is_stdout:
        sys.stdout.buffer.write(kept.data)
        sys.stdout.buffer.flush()
    else:
        _write_new(output, kept.data)
    part = "the image" if kept.is_image else "the answer as it came"
    where = "" if is_stdout else f" as {printable(output)}"
    typer.echo(f"Saved {part}{where}: {len(kept.data):,} bytes, which look like {kept.kind}.", err=is_stdout)


def _write_new(path: str, data: bytes) -> None:
    try:
        # A Path would drop the slash at the end that names a folder.
        with open(path, "xb") as file:
            try:
                file.write(data)
                file.flush()
            except OSError:
                os.unlink(path)
                raise
    except FileExistsError:
        refuse(f"{printable(path)} exists already.")
    except OSError as error:
        refuse(f"{printable(path)} cannot be written: {error.strerror}.", FAILED)


def _load_settings(*, is_server: bool = False) -> Settings:
    settings = load_settings()
    protect_new_files(settings)
    if is_server:
        set_up_logging(settings.log_level, settings.log_format)
    else:
        set_up_logging("WARNING")
        let_all_be_written()
    for variable, meant in misspelt_settings().items():
        _logger.warning("%s is not a setting. Is %s meant?", variable, meant)
    return settings


@contextmanager
def _users(
    opened: Callable[[Settings], AbstractContextManager[Database]] = open_existing_database,
) -> Iterator[UserServiceInterface]:
    settings = _load_settings()
    with opened(settings) as database:
        yield build_users(settings, database)


def _parse_limit(option: str, text: str, lowest: int, highest: int, digits: int) -> int | None:
    """Read a limit, to be stored in units of the last of ``digits`` decimals."""
    if text in ("default", "unlimited"):
        return None if text == "default" else UNLIMITED
    try:
        number = Decimal(text)
        if lowest <= number <= highest and (value := number.scaleb(digits)) == value.to_integral_value():
            return int(value)
    except InvalidOperation:
        pass
    what = f"an amount with at most {digits} decimals" if digits else "a whole number"
    raise typer.BadParameter(
        f"{printable(text)!r} is not {what} from {lowest:,} to {highest:,}, default or unlimited.", param_hint=option
    )


def _read_password(from_stdin: bool) -> str:
    """Read a password; never from an argument, which process lists show."""
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif has_terminal():
        password = str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    else:
        raise ConfigurationError("There is no terminal to read the password from: use --password-stdin.")
    try:
        password.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError("The password is not text in UTF-8.") from error
    if 0 < len(password) < ADVISED_PASSWORD_LENGTH:
        warn(f"The password is short; at least {ADVISED_PASSWORD_LENGTH} characters are recommended.")
    return password


def _is_user(users: UserServiceInterface, name: str) -> bool:
    """Return whether a user exists, to be checked before a password is read."""
    return exact_key(name) in {exact_key(user.username) for user in users.get_all_users()}


def _make_first_user(users: UserServiceInterface) -> None:
    """Add an admin and print the password, if there never was a user."""
    if users.has_users():
        return
    password = secrets.token_urlsafe(12)
    # Printed before the user is added: if the password cannot be printed, the next start tries again.
    _say(f"first user: {_FIRST_USER}")
    _say(f"password: {password} (shown only now; change it with: pixyproxy user passwd {_FIRST_USER})")
    users.create_user(UserCreate(username=_FIRST_USER, password=SecretStr(password), class_key=UserClass.ADMIN))


def _say_listening(address: str) -> None:
    _say(f"listening on {address}")


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201
