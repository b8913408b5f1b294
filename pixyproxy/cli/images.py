"""The commands that ask a server: create, get, list, search, fetch, update, delete and health."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from pixyproxy.cli import warn
from pixyproxy.cli.client_settings import (
    VARIABLES,
    ClientSettings,
    credentials_path,
    load_client_settings,
    load_terminal_settings,
)
from pixyproxy.cli.texts import file_name, json_line, json_of, lines_of, local_time, printable
from pixyproxy.client import (
    TLS,
    ContentInfo,
    CredentialsError,
    Filters,
    ImageDetail,
    InvalidRequestError,
    NotFoundError,
    OutcomeUnknownError,
    PixyProxyClient,
    PixyProxyClientError,
    TryLaterError,
    Visibility,
)
from pixyproxy.core.exceptions import ConfigurationError

_FAILED = 1
_REFUSED = 2
_NOT_FOUND = 3
_CREDENTIALS = 4
_TRY_LATER = 5
_OUTCOME_UNKNOWN = 6
_INTERRUPTED = 130
_STATUSES: dict[type[PixyProxyClientError], int] = {
    InvalidRequestError: _REFUSED,
    NotFoundError: _NOT_FOUND,
    CredentialsError: _CREDENTIALS,
    TryLaterError: _TRY_LATER,
    OutcomeUnknownError: _OUTCOME_UNKNOWN,
}
_STDIO = "-"
_LARGEST_PAGE = 200
_HEALTH_TIMEOUT = 5.0

app = typer.Typer(rich_markup_mode=None, add_completion=False)


class WhoSees(StrEnum):
    """Who may read an image, as it is typed."""

    PRIVATE = "private"
    PUBLIC = "public"


def _environment_help() -> str:
    """List all variables; click leaves a paragraph that begins with a backspace as it is."""
    lines = ["\b", "Environment variables:"]
    for variable, (default, description) in VARIABLES.items():
        lines += [f"  {variable}{f'={default}' if default else ''}", f"      {description}"]
    return "\n".join(lines)


def _parse_time(text: str | datetime) -> datetime:
    """Read a date or a time, by the clock here where it names no zone."""
    if isinstance(text, datetime):
        return text
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is no date or time, such as 2026-11-21 or 2026-11-21T14:30.") from None


_EPILOG = _environment_help()

Guid = Annotated[str, typer.Argument(help="The image's guid.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, with the names of the API.")]
Show = Annotated[bool, typer.Option("--show", help="Show the picture on the terminal.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="A tag; say it again for more.", show_default=False)]
Author = Annotated[str, typer.Option(help="Only images by this user.", show_default=False)]
FilenamePart = Annotated[str, typer.Option(help="Only images with this in their filename.", show_default=False)]
Sees = Annotated[
    WhoSees | None, typer.Option("--visibility", help="Only private or only public ones.", show_default=False)
]
After = Annotated[
    datetime | None,
    typer.Option(parser=_parse_time, metavar="TIME", help="Only images made after that time.", show_default=False),
]
Before = Annotated[
    datetime | None,
    typer.Option(parser=_parse_time, metavar="TIME", help="Only images made before that time.", show_default=False),
]
Limit = Annotated[int, typer.Option(min=1, help="The most images to list.")]
All = Annotated[bool, typer.Option("--all", help="List all, however many they are.")]


# --- The commands ----------------------------------------------------------------------------------------------------


@app.command(epilog=_EPILOG)
def create(
    prompt: Annotated[str, typer.Argument(help="What to draw; - reads it from standard input.", show_default=False)],
    tag: Tags = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it.")] = False,
    filename: Annotated[str, typer.Option(help="A name for it; made from the prompt where there is none.")] = "",
    model: Annotated[str, typer.Option(help="The provider's model.")] = "",
    size: Annotated[str, typer.Option(help="auto, or WIDTHxHEIGHT.")] = "",
    quality: Annotated[str, typer.Option(help="auto, low, medium, high, xhigh or max.")] = "",
    output_format: Annotated[str, typer.Option("--format", help="png, webp or jpeg.")] = "",
    background: Annotated[str, typer.Option(help="auto, opaque or transparent.")] = "",
    request_id: Annotated[
        str, typer.Option(help="Ask again for an image that was asked for before, without paying twice.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save it as this file, or into this folder.")
    ] = None,
    force: Force = False,
    show: Show = False,
    as_json: AsJson = False,
) -> None:
    """Make an image from a prompt.

    It takes as long as the provider takes, seconds to minutes. Options that are not given take the server's defaults.
    """
    if output is not None:
        _refuse_bad_target(output, force)
    text = _read_prompt() if prompt == _STDIO else prompt
    key = request_id or str(uuid.uuid4())
    with _client(must_sign_in=True) as client:
        with _told_how_to_ask_again(key), _spinner("Making the image"):
            image = client.create_image(
                text,
                tags=tag or (),
                visibility=Visibility.PUBLIC if public else Visibility.PRIVATE,
                filename=filename,
                model=model,
                size=size,
                quality=quality,
                output_format=output_format,
                background=background,
                request_id=key,
            )
        _print_image(image, as_json)
        if output is not None:
            path = output / file_name(image) if output.is_dir() else output
            _save(client, image.guid, path, force=force)
            if not as_json:
                typer.echo(f"saved as    {printable(str(path))}")
        if show:
            _show_picture(client, image.guid)


@app.command(epilog=_EPILOG)
def get(guid: Guid, show: Show = False, as_json: AsJson = False) -> None:
    """Show what is known of an image."""
    with _client() as client:
        _print_image(client.get_image(guid), as_json)
        if show:
            _show_picture(client, guid)


@app.command("list", epilog=_EPILOG)
def list_(
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
    """List images, newest first."""
    filters = _filters(tag, author, filename, visibility, after, before)
    _list_images(filters, None if is_all else limit, as_json)


@app.command(epilog=_EPILOG)
def search(
    words: Annotated[list[str], typer.Argument(help="Words of the prompt; of the last one the beginning is enough.")],
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


@app.command(epilog=_EPILOG)
def fetch(
    guid: Guid,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", help="The file, or the folder for it; - writes to standard output.", show_default=False
        ),
    ] = "",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Save an image's bytes as a file.

    By default it goes into the folder that you are in, under the image's own name. A download that broke off goes on
    where it stopped, and is checked when it is whole.
    """
    if output == _STDIO:
        _write_to_stdout(guid)
        return
    target = Path(output or ".")
    _refuse_bad_target(target, force)
    with _client() as client:
        path = target / file_name(client.get_image(guid)) if target.is_dir() else target
        info = _save(client, guid, path, force=force)
    if as_json:
        typer.echo(json_line({"file": str(path)} | asdict(info)))
    else:
        typer.echo(f"Saved {printable(str(path))}: {info.size_bytes:,} bytes, checked.")


@app.command(epilog=_EPILOG)
def update(
    guid: Guid,
    filename: Annotated[str | None, typer.Option(help="Its new name.", show_default=False)] = None,
    tag: Tags = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Take all its tags away.")] = False,
    visibility: Annotated[WhoSees | None, typer.Option(help="Who sees it.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Change an image's filename, tags or visibility. New tags take the place of all the old ones."""
    if tag and no_tags:
        raise typer.BadParameter("--tag and --no-tags do not go together.")
    if filename is None and not tag and not no_tags and visibility is None:
        raise typer.BadParameter("Say what to change: --filename, --tag, --no-tags or --visibility.")
    with _client(must_sign_in=True) as client:
        image = client.update_image(
            guid, filename=filename, tags=[] if no_tags else tag, visibility=_visibility(visibility)
        )
    _print_image(image, as_json)


@app.command(epilog=_EPILOG)
def delete(
    guid: Guid, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether you mean it.")] = False
) -> None:
    """Delete an image for good."""
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("Nobody is there to be asked: say --yes.")
    with _client(must_sign_in=True) as client:
        if not yes:
            image = client.get_image(guid)
            typer.confirm(f'Delete {guid}, "{printable(image.prompt)[:60]}", for good?', abort=True, err=True)
        client.delete_image(guid)
    typer.echo(f"Deleted {printable(guid)}.")


@app.command(epilog=_EPILOG)
def health() -> None:
    """Tell whether a server takes calls (exit status 0 or 5)."""
    with _client() as client:
        is_serving = client.is_serving(timeout=_HEALTH_TIMEOUT)
    typer.echo("serving" if is_serving else "not serving")
    if not is_serving:
        raise typer.Exit(_TRY_LATER)


# --- The connection --------------------------------------------------------------------------------------------------


@contextmanager
def _client(*, must_sign_in: bool = False) -> Iterator[PixyProxyClient]:
    """Give a client of the server that the environment names; what goes wrong ends the program with its status."""
    _let_all_be_written()
    try:
        settings = load_client_settings()
    except ConfigurationError as error:
        warn(error.message)
        raise typer.Exit(_REFUSED) from error
    try:
        username, password = _credentials(settings, must_sign_in=must_sign_in)
        with _connected(settings, username, password) as client:
            yield client
    except PixyProxyClientError as error:
        _explain(error)
        if isinstance(error, NotFoundError) and settings.username is None:
            warn("you are not signed in, and so see public images only")
        raise typer.Exit(_status_of(error)) from error
    except UnicodeEncodeError as error:
        warn("what was typed is no text in the encoding of this terminal")
        raise typer.Exit(_REFUSED) from error
    except BrokenPipeError:
        raise  # Whoever read standard output has gone; that ends the program quietly.
    except OSError as error:
        warn(printable(str(error)))
        raise typer.Exit(_FAILED) from error


def _connected(settings: ClientSettings, username: str | None, password: str | None) -> PixyProxyClient:
    try:
        tls: TLS | bool | None = settings.tls
        if tls is not False and (settings.ca_file or settings.certificate_file or settings.key_file):
            tls = TLS(settings.ca_file, settings.certificate_file, settings.key_file)
        return PixyProxyClient(
            settings.server,
            username=username,
            password=password,
            tls=tls,
            allow_plaintext=settings.allow_plaintext,
            # Scripts need no more than the end of it.
            on_unreachable=partial(_say_that_nobody_answers, settings) if sys.stderr.isatty() else None,
        )
    except ValueError as error:
        warn(str(error))
        raise typer.Exit(_REFUSED) from error


def _say_that_nobody_answers(settings: ClientSettings) -> None:
    warn(f"nobody answers at {printable(settings.server)}; trying again for some seconds")


def _credentials(settings: ClientSettings, *, must_sign_in: bool) -> tuple[str | None, str | None]:
    """Ask at the terminal for what of the credentials is missing, where they are needed."""
    username, password = settings.username, settings.password
    if username is None and must_sign_in and sys.stdin.isatty():
        username = str(typer.prompt("Username", err=True))
    if username is None:
        if must_sign_in:
            raise CredentialsError(f"Sign in for that: set PIXYPROXY_USER, or write {credentials_path()}.")
        return None, None
    if password is None:
        password = _ask_password(f"Password of {printable(username)} at {settings.server}: ")
    return username, password


def _ask_password(question: str) -> str:
    import getpass

    try:
        # Without a terminal `getpass` would read from standard input, and show what is typed.
        with open("CONIN$" if sys.platform == "win32" else "/dev/tty", "rb"):
            return getpass.getpass(question)
    except OSError as error:
        raise CredentialsError(
            f"There is no password: set PIXYPROXY_PASSWORD, or write {credentials_path()}."
        ) from error


def _let_all_be_written() -> None:
    """Let characters that the terminal's encoding does not have become question marks, and not end the program."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


# --- What goes wrong -------------------------------------------------------------------------------------------------


def _status_of(error: PixyProxyClientError) -> int:
    return next((status for kind, status in _STATUSES.items() if isinstance(error, kind)), _FAILED)


def _explain(error: PixyProxyClientError) -> None:
    warn(printable(error.message))
    if error.retry_after is not None:
        warn(f"try again in {error.retry_after:.0f} s")
    if error.request_id and _status_of(error) == _FAILED:
        warn(f"request id, for a report: {printable(error.request_id)}")


@contextmanager
def _told_how_to_ask_again(key: str) -> Iterator[None]:
    """Where nobody has waited for an image to the end, say how to get it."""
    try:
        yield
    except KeyboardInterrupt:
        warn("interrupted; an image that is being made is finished and kept at the server")
        _say_how_to_ask_again(key)
        raise typer.Exit(_INTERRUPTED) from None
    except TryLaterError as error:
        _explain(error)
        _say_how_to_ask_again(key)
        raise typer.Exit(_status_of(error)) from error


def _say_how_to_ask_again(key: str) -> None:
    warn("to get it, and not to pay twice, say the same once more with")
    warn(f"  pixyproxy create --request-id {key} …")


# --- What comes in and goes out --------------------------------------------------------------------------------------


def _read_prompt() -> str:
    try:
        return sys.stdin.buffer.read().decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise typer.BadParameter("Standard input is not UTF-8.") from None


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
    return None if who is None else Visibility[who.name]


def _print_image(image: ImageDetail, as_json: bool) -> None:
    if as_json:
        typer.echo(json_line(json_of(image)))
    else:
        typer.echo("\n".join(lines_of(image)))


def _list_images(filters: Filters, limit: int | None, as_json: bool) -> None:
    with _client() as client:
        images = client.list_images(page_size=min(limit or _LARGEST_PAGE, _LARGEST_PAGE), **filters)
        _print_images(islice(images, limit), as_json)
        if limit is not None and sys.stderr.isatty() and next(images, None) is not None:
            warn("there are more: --limit or --all lists them")


def _print_images(images: Iterable[ImageDetail], as_json: bool) -> None:
    """List images: as JSON, as a table for a terminal, or with tabs for other programs."""
    if as_json:
        for image in images:
            typer.echo(json_line(json_of(image)))
    elif sys.stdout.isatty():
        from pixyproxy.cli.table import print_table

        print_table(images, load_terminal_settings())
    else:
        for image in images:
            columns = (image.guid, local_time(image.created_at), image.visibility.name.lower(), image.author)
            typer.echo("\t".join(map(printable, (*columns, image.filename, image.prompt))))


def _refuse_bad_target(target: Path, force: bool) -> None:
    """Refuse, before anything is asked for, what cannot be written later."""
    if not target.is_dir() and not target.parent.is_dir():
        raise typer.BadParameter(f"There is no folder {printable(str(target.parent))}.")
    if not target.is_dir() and target.exists() and not force:
        raise typer.BadParameter(f"{printable(str(target))} is there already; --force overwrites it.")


def _save(client: PixyProxyClient, guid: str, path: Path, *, force: bool) -> ContentInfo:
    try:
        with _bar(printable(path.name)) as on_progress:
            return client.fetch_content(guid, path, overwrite=force, on_progress=on_progress)
    except FileExistsError:
        warn(f"{printable(str(path))} is there already; --force overwrites it")
        raise typer.Exit(_REFUSED) from None
    except KeyboardInterrupt:
        warn("interrupted; the same command goes on where this one stopped")
        raise typer.Exit(_INTERRUPTED) from None


def _write_to_stdout(guid: str) -> None:
    if sys.stdout.isatty():
        raise typer.BadParameter("An image's bytes are nothing for a terminal: send them into a file or a program.")
    with _client() as client, client.stream_content(guid) as stream:
        for chunk in stream:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def _show_picture(client: PixyProxyClient, guid: str) -> None:
    terminal = load_terminal_settings()
    if not sys.stdout.isatty() or terminal.is_plain or sys.stdout.encoding.lower() != "utf-8":
        warn("a picture is shown only on a terminal with colours and UTF-8")
        return
    try:
        from pixyproxy.cli import picture
    except ModuleNotFoundError:
        warn("a picture is shown only where Pillow is installed: pip install pillow")
        return

    with _spinner("Loading the picture"), client.stream_content(guid) as stream:
        data = b"".join(stream)
    picture.show(data, terminal)


def _spinner(words: str) -> AbstractContextManager[None]:
    terminal = load_terminal_settings()
    if terminal.is_plain or not sys.stderr.isatty():
        return nullcontext()
    from pixyproxy.cli.live import spinner

    return spinner(words)


def _bar(words: str) -> AbstractContextManager[Callable[[int, int], Any] | None]:
    terminal = load_terminal_settings()
    if terminal.is_plain or not sys.stderr.isatty():
        return nullcontext()
    from pixyproxy.cli.live import bar

    return bar(words)
