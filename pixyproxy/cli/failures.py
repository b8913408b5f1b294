"""Messages and exit statuses for failed calls."""

from __future__ import annotations

import math
import re
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import typer

from pixyproxy.cli import warn
from pixyproxy.cli.texts import printable, shell_quoted
from pixyproxy.client import (
    CredentialsError,
    GenerationOptions,
    InvalidRequestError,
    NotFoundError,
    OutcomeUnknownError,
    PixyProxyClientError,
    TryLaterError,
)

FAILED = 1
REFUSED = 2
NOT_FOUND = 3
TRY_LATER = 5
INTERRUPTED = 130
STATUSES: dict[type[PixyProxyClientError], int] = {
    InvalidRequestError: REFUSED,
    NotFoundError: NOT_FOUND,
    CredentialsError: 4,
    TryLaterError: TRY_LATER,
    OutcomeUnknownError: 6,
}

_TYPED_AS = {
    "prompt": "the prompt",
    "info.prompt": "--description",
    "data": "the file",
    "guid": "GUID",
    "tags": "--tag",
    "filename": "--filename",
    "visibility": "--visibility",
    "author": "--author",
    "created_after": "--after",
    "created_before": "--before",
    "request_id": "--request-id",
    **{
        f"options.{name}": f"--{name.removeprefix('output_').replace('_', '-')}" for name in GenerationOptions.__slots__
    },
    "states": "--state",
    "inputs": "GUID",
    "mask": "--mask",
    "mask.guid": "--mask",
    "start": "--since",
    "end": "--until",
    "group_by": "--by",
}
"""For each field of the API its argument or option."""
_INPUT = re.compile(r"inputs\[(\d+)\]")

# Patterns of gRPC's messages about connections; the first match applies.
_CONNECTION_FAILURES = (
    ("errors resolving|lookup failed|DNS", "The host name of {server} cannot be resolved. Check PIXYPROXY_SERVER."),
    (
        "certificate has expired|certificate is not yet valid",
        "The certificate of {server} is not valid now: it has expired, or is not valid yet, or this clock is wrong.",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "The certificate of {server} is not trusted. Set PIXYPROXY_CLIENT_CA to the certificate of the authority that "
        "signed it.",
    ),
    (
        "Hostname Verification Check|not in peer certificate",
        "The certificate of {server} is for another host name. Check PIXYPROXY_SERVER.",
    ),
    (
        "security handshaker",
        "PIXYPROXY_CLIENT_CA, PIXYPROXY_CLIENT_CERTIFICATE or PIXYPROXY_CLIENT_KEY is not a valid PEM file.",
    ),
    (
        "[Hh]andshake",
        "TLS with {server} fails. If the server serves plain text, set PIXYPROXY_CLIENT_TLS=false.",
    ),
    (
        "failed to connect.*(Socket closed|HTTP/2|reset)",
        "{server} does not answer as a PixyProxy server does. If it serves TLS, set PIXYPROXY_CLIENT_TLS=true, and if "
        "it requires a certificate, PIXYPROXY_CLIENT_CERTIFICATE and PIXYPROXY_CLIENT_KEY; otherwise check "
        "PIXYPROXY_SERVER.",
    ),
    (
        "failed to connect",
        "No server answers at {server}. Start one with pixyproxy serve, or set PIXYPROXY_SERVER to the address of one.",
    ),
    ("Deadline Exceeded", "{server} did not answer in time."),
    (
        "Socket closed|[Cc]onnection reset|Stream removed|Broken pipe|GOAWAY|[Pp]ing timeout",
        "The connection to {server} was lost before the answer was complete.",
    ),
)


def status_of(error: PixyProxyClientError) -> int:
    """Return the exit status for a failed call."""
    return next((status for kind, status in STATUSES.items() if isinstance(error, kind)), FAILED)


def explain(error: PixyProxyClientError, server: str) -> None:
    """Explain why a call to ``server`` failed."""
    if error.violations:
        for violation in error.violations:
            warn(printable(f"{_typed(violation.field)}: {violation.description}"))
    elif error.code == "UNIMPLEMENTED" and not error.reason:
        warn(f"{printable(server)} is not a PixyProxy server: it does not implement this call. Check PIXYPROXY_SERVER.")
    elif error.reason:
        field = error.metadata.get("field", "")
        warn(printable(error.message.replace(f"{field}:", f"{_typed(field)}:", 1) if field else error.message))
    else:
        warn(plain(error.message, server))
    if error.reason == "CREDENTIALS_INVALID":
        warn("Check PIXYPROXY_USER and PIXYPROXY_PASSWORD.")
    if error.retry_after is not None:
        warn(f"Try again in {math.ceil(error.retry_after)} s.")
    if error.request_id and status_of(error) == FAILED:
        warn(f"Call id, for a report: {printable(error.request_id)}")


def _typed(field: str) -> str:
    """Return the argument or option for a field of the API."""
    # What CreateGeneration is sent is a CreateImageRequest in the field `request`.
    field = field.removeprefix("request.")
    found = _INPUT.match(field)
    if found:
        return f"GUID {int(found[1]) + 1}"
    name = field.partition("[")[0]
    return _TYPED_AS.get(name) or _TYPED_AS.get(name.removeprefix("info."), field)


def plain(message: str, server: str) -> str:
    """Translate gRPC's messages about the connection to ``server``; return other messages unchanged."""
    for pattern, sentence in _CONNECTION_FAILURES:
        if re.search(pattern, message):
            return sentence.format(server=printable(server))
    return printable(message)


def creation_again(request_id: str, standard_input: str | None) -> str:
    """Return the command line that repeats the running command's request for an image.

    Args:
        request_id: the request id, or empty if the command line has it.
        standard_input: the prompt if it came from standard input, else None.
    """
    command, *arguments = sys.argv[1:]
    line = command_line(command, *(["--request-id", request_id] if request_id else []), *arguments)
    return line if standard_input is None else f"printf %s {shell_quoted(standard_input)} | {line}"


def command_line(*arguments: str) -> str:
    """Return a command line of this program for a shell, with the program as it was called."""
    program = [sys.argv[0]]
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        program = [sys.executable, "-m", "pixyproxy"]
    elif shutil.which(name) == sys.argv[0]:
        program = [name]
    return " ".join(map(shell_quoted, (*program, *arguments)))


def refuse(message: str, status: int = REFUSED) -> NoReturn:
    """End the program, by default because of a wrong argument or setting."""
    warn(message)
    raise typer.Exit(status)


def show_command_to_repeat(command: str, *, without: str = "paying twice") -> None:
    """Show the command that repeats a request, and say what does not happen then."""
    propose(f"To repeat the request without {without}, run:", command)


def propose(message: str, command: str) -> None:
    """Show a message, and beneath it the command that it proposes."""
    warn(message)
    typer.echo(f"  {command}", err=True)
