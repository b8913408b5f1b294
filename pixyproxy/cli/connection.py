"""How commands call the server in the settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import typer

from pixyproxy.cli import OUTPUT_ERRORS, has_terminal, let_all_be_written, warn
from pixyproxy.cli.client_settings import VARIABLES, ClientSettings, credentials_path, load_client_settings
from pixyproxy.cli.failures import FAILED, explain, refuse, status_of
from pixyproxy.cli.help import Command
from pixyproxy.cli.texts import printable
from pixyproxy.client import (
    CredentialsError,
    NotFoundError,
    PixyProxyClient,
    PixyProxyClientError,
    TryLaterError,
)
from pixyproxy.core.exceptions import ConfigurationError

_ANSWER_TIMEOUT = 2.0
NOT_SIGNED_IN = "You are not signed in and see public images only: set PIXYPROXY_USER and PIXYPROXY_PASSWORD."


class ServerCommand(Command):
    """A command that calls a server."""

    variables = tuple((name, default, text) for name, (default, text) in VARIABLES.items())


class ServerClient(PixyProxyClient):
    """A client of the server in the settings.

    Attributes:
        server: host:port.
        is_signed_in: whether calls have credentials.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self.server = settings.server
        self.is_signed_in = settings.username is not None
        super().__init__(
            settings.server,
            username=settings.username,
            password=settings.password,
            tls=settings.tls,
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
def connect(*, must_sign_in: bool = False) -> Iterator[ServerClient]:
    """Yield a client of the server in the settings; errors end the program with their status."""
    let_all_be_written()
    try:
        settings = load_client_settings()
    except ConfigurationError as error:
        refuse(error.message)
    try:
        settings = _with_credentials(settings, must_sign_in=must_sign_in)
        with _new_client(settings) as client:
            yield client
    except PixyProxyClientError as error:
        explain(error, settings.server)
        if isinstance(error, NotFoundError) and settings.username is None:
            warn(NOT_SIGNED_IN)
        raise typer.Exit(status_of(error)) from error
    except UnicodeEncodeError:
        refuse("An argument is not text in the encoding of this terminal.")
    except OSError as error:
        if error.errno in OUTPUT_ERRORS:
            raise
        refuse(printable(str(error)), FAILED)


def _new_client(settings: ClientSettings) -> ServerClient:
    try:
        return ServerClient(settings)
    except UnicodeEncodeError:
        # Its message quotes a character, which may be one of the password.
        refuse("The username or the password is not text in UTF-8. Check PIXYPROXY_USER and PIXYPROXY_PASSWORD.")
    except ValueError as error:
        refuse(printable(str(error)).replace("allow_plaintext", "set PIXYPROXY_CLIENT_ALLOW_PLAINTEXT=true"))
    except OSError as error:
        refuse(
            f"{printable(str(error.filename))} cannot be read: {error.strerror}. Check PIXYPROXY_CLIENT_CA, "
            "PIXYPROXY_CLIENT_CERTIFICATE and PIXYPROXY_CLIENT_KEY.",
            FAILED,
        )


def _with_credentials(settings: ClientSettings, *, must_sign_in: bool) -> ClientSettings:
    """Ask at the terminal for missing credentials, if they are needed."""
    username, password = settings.username, settings.password
    if username is None and must_sign_in and sys.stdin.isatty():
        username = str(typer.prompt("Username", err=True))
    if username is None:
        if must_sign_in:
            raise CredentialsError(
                f"This command needs credentials: set PIXYPROXY_USER and PIXYPROXY_PASSWORD, or write "
                f"{credentials_path()}."
            )
        return settings
    if password is None:
        password = _ask_password(printable(username), printable(settings.server))
    return replace(settings, username=username, password=password)


def _ask_password(username: str, server: str) -> str:
    import getpass

    if not has_terminal():
        raise CredentialsError(
            f"There is no password for user {username}: set PIXYPROXY_PASSWORD, or write {credentials_path()}."
        )
    return getpass.getpass(f"Password of {username} at {server}: ")
