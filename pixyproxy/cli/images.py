"""The commands that call a server: create, edit, get, list, search, fetch, update, delete and health."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from datetime import datetime
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, cast

import typer

from pixyproxy.cli import has_terminal, warn
from pixyproxy.cli.client_settings import (
    VARIABLES,
    ClientSettings,
    credentials_path,
    load_client_settings,
    load_terminal_settings,
)
from pixyproxy.cli.failures import (
    FAILED,
    INTERRUPTED,
    REFUSED,
    TRY_LATER,
    command_line,
    creation_again,
    explain,
    plain,
    status_of,
)
from pixyproxy.cli.help import Command
from pixyproxy.cli.texts import file_name, json_line, json_of, lines_of, local_time, printable
from pixyproxy.client import (
    TLS,
    ContentInfo,
    CredentialsError,
    Filters,
    ImageDetail,
    NotFoundError,
    PixyProxyClient,
    PixyProxyClientError,
    Rendition,
    TryLaterError,
    Visibility,
)
from pixyproxy.core.exceptions import ConfigurationError

if TYPE_CHECKING:
    from pixyproxy.cli.live import Line

_STDIO = "-"
# More pixels than an image takes on a terminal.
_SHOWN_RENDITION: Rendition = 1024
_LARGEST_PAGE = 200
_SHOWN_AT_ONCE = 50
_HEALTH_TIMEOUT = 5.0
_ANSWER_TIMEOUT = 2.0
_NOT_SIGNED_IN = "You are not signed in and see public images only: set PIXYPROXY_USER and PIXYPROXY_PASSWORD."

app = typer.Typer(rich_markup_mode=None, add_completion=False)


class _Command(Command):
    variables = tuple((name, default, text) for name, (default, text) in VARIABLES.items())


def _parse_time(text: str | datetime) -> datetime:
    """Parse a date or a time, in the local time zone by default."""
    if isinstance(text, datetime):
        return text
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is not a date or time like 2026-11-21 or 2026-11-21T14:30.") from None


Guid = Annotated[str, typer.Argument(metavar="GUID", help="The image's guid, as list shows it.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON with the field names of the API.")]
Show = Annotated[bool, typer.Option("--show", help="Show the image on the terminal.")]
ShowAll = Annotated[bool, typer.Option("--show", help="Show the images on the terminal.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG", help="A tag; repeat the option for more.", show_default=False),
]
Author = Annotated[str, typer.Option(metavar="USER", help="Only images by this user.", show_default=False)]
FilenamePart = Annotated[
    str, typer.Option(metavar="TEXT", help="Only images with this text in the filename.", show_default=False)
]
Pixels = Annotated[
    Literal["256", "512", "1024", "2048"] | None,
    typer.Option(
        "--rendition", help="A small WebP copy with at most so many pixels across and down.", show_default=False
    ),
]
WhoSees = Literal["private", "public"]
Sees = Annotated[
    WhoSees | None, typer.Option("--visibility", help="Only private or only public images.", show_default=False)
]
After = Annotated[
    datetime | None,
    typer.Option(parser=_parse_time, metavar="TIME", help="Only images made after this time.", show_default=False),
]
Before = Annotated[
    datetime | None,
    typer.Option(parser=_parse_time, metavar="TIME", help="Only images made before this time.", show_default=False),
]
Model = Annotated[str, typer.Option(metavar="MODEL", help="The provider's model.")]
Size = Annotated[str, typer.Option(metavar="SIZE", help="auto, or WIDTHxHEIGHT in pixels.")]
Quality = Annotated[str, typer.Option(metavar="QUALITY", help="auto, low, medium, high, xhigh or max.")]
OutputFormat = Annotated[str, typer.Option("--format", metavar="FORMAT", help="png, webp or jpeg.")]
Background = Annotated[str, typer.Option(metavar="BACKGROUND", help="auto, opaque or transparent.")]
Moderation = Annotated[str, typer.Option(metavar="MODERATION", help="auto or low.")]
Compression = Annotated[
    int | None,
    typer.Option(min=0, max=100, metavar="N", help="The compression of webp or jpeg, 0 to 100.", show_default=False),
]
InputFidelity = Annotated[str, typer.Option(metavar="FIDELITY", help="How closely to match input images: low or high.")]
PartialImages = Annotated[
    int, typer.Option(min=0, max=3, metavar="N", help="Show N partial images, 0 to 3; each costs some tokens.")
]
Public = Annotated[bool, typer.Option("--public", help="Make the image public.")]
Filename = Annotated[str, typer.Option(metavar="NAME", help="A filename; by default it is made from the prompt.")]
RequestId = Annotated[str, typer.Option(metavar="UUID", help="Repeat the request with this id, without paying twice.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="PATH", help="Save it as this file, or into this folder.")
]
Limit = Annotated[int, typer.Option(min=1, metavar="N", help="The most images to list.")]
All = Annotated[bool, typer.Option("--all", help="List all images.")]


# --- The commands ----------------------------------------------------------------------------------------------------


@app.command(cls=_Command)
def create(
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
    tag: Tags = None,
    public: Public = False,
    filename: Filename = "",
    model: Model = "",
    size: Size = "",
    quality: Quality = "",
    output_format: OutputFormat = "",
    background: Background = "",
    moderation: Moderation = "",
    compression: Compression = None,
    input_fidelity: InputFidelity = "",
    partial_images: PartialImages = 0,
    request_id: RequestId = "",
    output: Output = None,
    force: Force = False,
    show: Show = False,
    as_json: AsJson = False,
) -> None:
    """Make an image from a prompt.

    It takes seconds to minutes, depending on the provider. Options default to those of the server.
    """
    options = _given(
        model=model,
        size=size,
        quality=quality,
        output_format=output_format,
        background=background,
        moderation=moderation,
        output_compression=compression,
        input_fidelity=input_fidelity,
        partial_images=partial_images,
    ) | _described(tag, public, filename, request_id)
    _make(prompt, options, like=like, output=output, force=force, show=show, as_json=as_json)


@app.command(cls=_Command)
def edit(
    images: Annotated[
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
    tag: Tags = None,
    public: Public = False,
    filename: Filename = "",
    model: Model = "",
    size: Size = "",
    quality: Quality = "",
    output_format: OutputFormat = "",
    background: Background = "",
    compression: Compression = None,
    partial_images: PartialImages = 0,
    request_id: RequestId = "",
    output: Output = None,
    force: Force = False,
    show: Show = False,
    as_json: AsJson = False,
) -> None:
    """Make an image from other images and a prompt.

    It takes seconds to minutes, depending on the provider. Options default to those of the server.
    """
    options = _given(
        inputs=images,
        mask=mask,
        model=model,
        size=size,
        quality=quality,
        output_format=output_format,
        background=background,
        output_compression=compression,
        input_fidelity=input_fidelity,
        partial_images=partial_images,
    ) | _described(tag, public, filename, request_id)
    _make(prompt, options, output=output, force=force, show=show, as_json=as_json)


def _make(
    prompt: str | None,
    options: dict[str, Any],
    *,
    like: str = "",
    output: Path | None,
    force: bool,
    show: bool,
    as_json: bool,
) -> None:
    """Have an image made, print it, and save and show it if that is asked for.

    Args:
        prompt: what to draw, ``-`` for standard input, or None for that of ``like``.
        options: those of CreateOptions that are given.
        like: the guid of an image to take the prompt and other options from, or "".
        output: where to save it, or None.
        force: whether to replace an existing file.
        show: whether to show it in the terminal.
        as_json: whether to print JSON.
    """
    from pixyproxy.cli.generations import generate

    if prompt is None and not like:
        _refuse("Give a prompt, or an image with --like.")
    if output is not None:
        _refuse_bad_target(output, force)
    standard_input = _read_prompt() if prompt == _STDIO else None
    if standard_input is not None:
        prompt = standard_input
    given_id = options["request_id"]
    options["request_id"] = key = given_id or str(uuid.uuid4())
    with _client(must_sign_in=True) as client:
        again = creation_again("" if given_id else key, standard_input)
        with _explaining_how_to_repeat(client, again):
            if like:
                prompt, options = _like(client, like, prompt, options)
            if "mask" in options:
                options["mask"] = _mask_of(client, options["mask"], key)
            image = generate(
                client,
                again,
                _shower("--partial-images") if options.get("partial_images") else None,
                prompt or "",
                **options,
            )
        _print_image(image, as_json)
        if output is not None:
            path = output / file_name(image) if output.is_dir() else output
            # Not this command: it would create another image.
            again = command_line("fetch", image.guid, "--output", str(path), *(["--force"] if force else []))
            _save(client, image.guid, path, again, force=force)
            if not as_json:
                typer.echo(f"saved as    {printable(str(path))}")
        if show:
            _show_image(client, image.guid)


@app.command(cls=_Command)
def get(guid: Guid, show: Show = False, as_json: AsJson = False) -> None:
    """Show the details of an image."""
    with _client() as client:
        _print_image(client.get_image(guid), as_json)
        if show:
            _show_image(client, guid)


@app.command("list", cls=_Command)
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


@app.command(cls=_Command)
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


@app.command(cls=_Command)
def fetch(
    guid: Guid,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The file, or the folder for it; - writes to standard output.",
            show_default=False,
        ),
    ] = "",
    pixels: Pixels = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Save an image's bytes as a file.

    By default it is saved in the current folder under the image's filename. A download that was interrupted continues
    where it stopped. The whole file is verified.
    """
    rendition = _rendition(pixels)
    if output == _STDIO:
        _write_to_stdout(guid, rendition)
        return
    target = Path(output or ".")
    _refuse_bad_target(target, force)
    with _client() as client:
        path = target / file_name(client.get_image(guid), rendition) if target.is_dir() else target
        info = _save(client, guid, path, command_line(*sys.argv[1:]), force=force, rendition=rendition)
    if as_json:
        typer.echo(json_line({"file": str(path)} | asdict(info)))
    else:
        typer.echo(f"Saved {printable(str(path))}: {info.size_bytes:,} bytes, verified.")


@app.command(cls=_Command)
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
        _refuse("--tag and --no-tags exclude each other.")
    if filename is None and not tag and not no_tags and visibility is None:
        _refuse("Nothing to change: use --filename, --tag, --no-tags or --visibility.")
    with _client(must_sign_in=True) as client:
        image = client.update_image(
            guid, filename=filename, tags=[] if no_tags else tag, visibility=_visibility(visibility)
        )
    _print_image(image, as_json)


@app.command(cls=_Command)
def delete(
    guid: Guid, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False
) -> None:
    """Delete an image for good."""
    if not yes and not sys.stdin.isatty():
        _refuse("There is no terminal to ask for confirmation at: use --yes.")
    with _client(must_sign_in=True) as client:
        if not yes:
            image = client.get_image(guid)
            typer.confirm(f'Delete {guid}, "{printable(image.prompt)[:60]}", for good?', abort=True, err=True)
        client.delete_image(guid)
    typer.echo(f"Deleted {printable(guid)}.")


@app.command(cls=_Command)
def health() -> None:
    """Check whether a server is serving (exit status 0 or 5)."""
    with _client() as client:
        is_serving = client.is_serving(timeout=_HEALTH_TIMEOUT)
    typer.echo("serving" if is_serving else "not serving")
    if not is_serving:
        raise typer.Exit(TRY_LATER)


# --- The connection --------------------------------------------------------------------------------------------------


class _Client(PixyProxyClient):
    """A client of the server in the settings.

    Attributes:
        server: host:port.
        is_signed_in: whether calls have credentials.
    """

    def __init__(self, settings: ClientSettings, username: str | None, password: str | None) -> None:
        self.server = settings.server
        self.is_signed_in = username is not None
        tls: TLS | bool | None = settings.tls
        if tls is not False and (settings.ca_file or settings.certificate_file or settings.key_file):
            tls = TLS(settings.ca_file, settings.certificate_file, settings.key_file)
        super().__init__(
            settings.server,
            username=username,
            password=password,
            tls=tls,
            allow_plaintext=settings.allow_plaintext,
            # Scripts see only the final error.
            on_unreachable=self._warn_of_no_answer if sys.stderr.isatty() else None,
        )

    def is_answered(self) -> bool:
        """Return whether the server answers now."""
        try:
            self.is_serving(timeout=_ANSWER_TIMEOUT)
        except (TryLaterError, KeyboardInterrupt):  # A second Ctrl-C must not hide the message for the first.
            return False
        except PixyProxyClientError:
            pass  # An error of the server is an answer, too.
        return True

    def _warn_of_no_answer(self) -> None:
        warn(f"No answer from {printable(self.server)}; trying again for some seconds.")


@contextmanager
def _client(*, must_sign_in: bool = False) -> Iterator[_Client]:
    """Yield a client of the server in the settings; errors end the program with their status."""
    _let_all_be_written()
    try:
        settings = load_client_settings()
    except ConfigurationError as error:
        _refuse(error.message)
    try:
        username, password = _credentials(settings, must_sign_in=must_sign_in)
        with _connected(settings, username, password) as client:
            yield client
    except PixyProxyClientError as error:
        explain(error, settings.server)
        if isinstance(error, NotFoundError) and settings.username is None:
            warn(_NOT_SIGNED_IN)
        raise typer.Exit(status_of(error)) from error
    except UnicodeEncodeError:
        _refuse("An argument is not text in the encoding of this terminal.")
    except BrokenPipeError:
        raise  # The reader of standard output has gone, which ends the program quietly.
    except OSError as error:
        warn(printable(str(error)))
        raise typer.Exit(FAILED) from error


def _connected(settings: ClientSettings, username: str | None, password: str | None) -> _Client:
    try:
        return _Client(settings, username, password)
    except ValueError as error:
        _refuse(printable(str(error)).replace("allow_plaintext", "set PIXYPROXY_CLIENT_ALLOW_PLAINTEXT=true"))
    except OSError as error:
        warn(
            f"{printable(str(error.filename))} cannot be read: {error.strerror}. Check PIXYPROXY_CLIENT_CA, "
            "PIXYPROXY_CLIENT_CERTIFICATE and PIXYPROXY_CLIENT_KEY."
        )
        raise typer.Exit(FAILED) from error


def _refuse(message: str) -> NoReturn:
    """End the program because of a wrong argument or setting."""
    warn(message)
    raise typer.Exit(REFUSED)


def _credentials(settings: ClientSettings, *, must_sign_in: bool) -> tuple[str | None, str | None]:
    """Return the credentials; ask at the terminal for missing ones, if they are needed."""
    username, password = settings.username, settings.password
    if username is None and must_sign_in and sys.stdin.isatty():
        username = str(typer.prompt("Username", err=True))
    if username is None:
        if must_sign_in:
            raise CredentialsError(
                f"This command needs credentials: set PIXYPROXY_USER and PIXYPROXY_PASSWORD, or write "
                f"{credentials_path()}."
            )
        return None, None
    if password is None:
        password = _ask_password(printable(username), printable(settings.server))
    return username, password


def _ask_password(username: str, server: str) -> str:
    import getpass

    if not has_terminal():
        raise CredentialsError(
            f"There is no password for user {username}: set PIXYPROXY_PASSWORD, or write {credentials_path()}."
        )
    return getpass.getpass(f"Password of {username} at {server}: ")


def _let_all_be_written() -> None:
    """Write characters that the terminal's encoding does not have as question marks."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


@contextmanager
def _explaining_how_to_repeat(client: _Client, command: str) -> Iterator[None]:
    """After an interruption or a temporary error, show the command that repeats the request."""
    try:
        yield
    except KeyboardInterrupt:
        if client.is_answered():
            warn("Interrupted. If the server has started to generate the image, it finishes and keeps it.")
        else:
            warn(f"Interrupted. No server answers at {printable(client.server)}.")
        _show_command_to_repeat(command)
        raise typer.Exit(INTERRUPTED) from None
    except TryLaterError as error:
        explain(error, client.server)
        _show_command_to_repeat(command)
        raise typer.Exit(status_of(error)) from error


def _show_command_to_repeat(command: str, *, without: str = "paying twice") -> None:
    warn(f"To repeat the request without {without}, run:")
    typer.echo(f"  {command}", err=True)


# --- The options of a new image --------------------------------------------------------------------------------------


def _described(tag: list[str] | None, public: bool, filename: str, request_id: str) -> dict[str, Any]:
    """Return what describes a new image and its request, by the names in CreateOptions."""
    return {
        "tags": tag or (),
        "visibility": Visibility.PUBLIC if public else Visibility.PRIVATE,
        "filename": filename,
        "request_id": request_id,
    }


def _given(**options: object) -> dict[str, Any]:
    """Return the options that the command line has, by their names in CreateOptions."""
    return {name: value for name, value in options.items() if value not in ("", None)}


def _like(client: _Client, guid: str, prompt: str | None, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the prompt and the options of an image, with what is given in place of them."""
    from pixyproxy.cli.like import NothingToTakeError, options_like

    image = client.get_image(guid)
    try:
        options = options_like(image, given)
    except NothingToTakeError as error:
        _refuse(f"The image {printable(image.guid)} {error}")
    return image.prompt if prompt is None else prompt, options


# --- Input and output -----------------------------------------------------------------------------------------------


def request_id_of(key: str, part: str) -> str:
    """Return the request id for a part of a command that has the id ``key``; the same each time."""
    try:
        return str(uuid.uuid5(uuid.UUID(key), part))
    except ValueError:
        _refuse("--request-id: must be a UUID of 36 characters.")


def _mask_of(client: _Client, mask: str, key: str) -> str:
    """Return the guid of a mask, which is imported if it is given as a file."""
    try:
        return str(uuid.UUID(mask))
    except ValueError:
        pass
    try:
        return client.import_image(Path(mask), request_id=request_id_of(key, "mask")).guid
    except OSError as error:
        _refuse(f"--mask: {printable(mask)} cannot be read: {error.strerror}.")


def _read_prompt() -> str:
    try:
        return sys.stdin.buffer.read().decode().rstrip("\r\n")
    except UnicodeDecodeError:
        _refuse("The prompt on standard input is not UTF-8.")


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


def _print_image(image: ImageDetail, as_json: bool) -> None:
    if as_json:
        typer.echo(json_line(json_of(image)))
    else:
        typer.echo("\n".join(lines_of(image)))


def _list_images(filters: Filters, limit: int | None, as_json: bool, *, show: bool = False) -> None:
    shower = _shower("--show") if show else None
    with _client() as client:
        images = client.list_images(page_size=min(limit or _LARGEST_PAGE, _LARGEST_PAGE), **filters)
        first = next(images, None)
        if first is None:
            if not as_json:
                warn("No images found." + (f" {_NOT_SIGNED_IN}" if not client.is_signed_in else ""))
            return
        listed = islice(chain([first], images), limit)
        _print_images(listed if shower is None else _shown(client, listed, shower), as_json)
        if limit is not None and sys.stderr.isatty() and next(images, None) is not None:
            warn("There are more; --limit or --all lists them.")


def _shown(client: _Client, images: Iterator[ImageDetail], show: Callable[[bytes], None]) -> Iterator[ImageDetail]:
    """Yield images, each after it was shown. Thumbnails are requested for several at a time."""
    while page := list(islice(images, _SHOWN_AT_ONCE)):
        with _spinner("Loading thumbnails", client.server):
            thumbnails = {one.guid: one for one in client.get_thumbnails([image.guid for image in page])}
        for image in page:
            thumbnail = thumbnails[image.guid]
            if thumbnail.error:
                warn(f"The image {image.guid} cannot be shown: {printable(thumbnail.error)}")
            else:
                show(thumbnail.data)
            yield image


def _print_images(images: Iterable[ImageDetail], as_json: bool) -> None:
    """List images as JSON, as a table at a terminal, or separated by tabs for other programs."""
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
    """Refuse a path that cannot be written later."""
    folder = target if target.is_dir() else target.parent
    if not folder.is_dir():
        _refuse(f"There is no folder {printable(str(folder))}.")
    if folder != target and target.exists() and not force:
        _refuse(_exists(target))


def _exists(path: Path) -> str:
    return f"{printable(str(path))} exists already; --force overwrites it."


def _rendition(pixels: str | None) -> Rendition | None:
    return None if pixels is None else cast(Rendition, int(pixels))


def _save(
    client: _Client, guid: str, path: Path, again: str, *, force: bool, rendition: Rendition | None = None
) -> ContentInfo:
    """Save an image; ``again`` is the command that continues after an interruption."""
    try:
        with _bar(printable(path.name), client.server) as on_progress:
            return client.fetch_content(guid, path, overwrite=force, rendition=rendition, on_progress=on_progress)
    except FileExistsError:
        _refuse(_exists(path))
    except OSError as error:
        warn(
            f"{printable(str(path))} cannot be written: {error.strerror}. The server keeps the image. To save it, run:"
        )
        typer.echo(f"  {again}", err=True)
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        warn("Interrupted. To continue where it stopped, run:")
        typer.echo(f"  {again}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _write_to_stdout(guid: str, rendition: Rendition | None) -> None:
    if sys.stdout.isatty():
        _refuse("Image bytes are not written to a terminal: redirect them to a file or a program.")
    with _client() as client, client.stream_content(guid, rendition=rendition) as stream:
        for chunk in stream:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def _show_image(client: _Client, guid: str) -> None:
    show = _shower("--show")
    if show is None:
        return
    with (
        _spinner("Loading the image", client.server),
        client.stream_content(guid, rendition=_SHOWN_RENDITION) as stream,
    ):
        data = b"".join(stream)
    show(data)


def _shower(option: str) -> Callable[[bytes], None] | None:
    """Return what shows an image on this terminal; None, after a warning, if the terminal cannot."""
    terminal = load_terminal_settings()
    if not sys.stdout.isatty() or terminal.is_plain or sys.stdout.encoding.lower() != "utf-8":
        warn(f"{option} needs a terminal with colours and UTF-8.")
        return None
    try:
        from pixyproxy.cli import terminal_image
    except ModuleNotFoundError:
        warn(f"{option} needs Pillow: pip install pillow")
        return None
    return partial(terminal_image.show, terminal=terminal)


def _spinner(words: str, server: str) -> AbstractContextManager[Line | None]:
    if not _is_animated():
        return nullcontext()
    from pixyproxy.cli.live import spinner

    return spinner(words, partial(plain, server=server))


def _bar(words: str, server: str) -> AbstractContextManager[Callable[[int, int], Any] | None]:
    if not _is_animated():
        return nullcontext()
    from pixyproxy.cli.live import bar

    return bar(words, partial(plain, server=server))


def _is_animated() -> bool:
    return sys.stderr.isatty() and not load_terminal_settings().is_plain
