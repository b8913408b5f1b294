"""The settings of the commands that call a server, from the environment and the credentials file.

They are not read with pydantic-settings, as the server's are: importing it would double the run time of such a command.
"""

from __future__ import annotations

import netrc
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pixyproxy.client import TLS
from pixyproxy.core.exceptions import ConfigurationError

VARIABLES = {
    "PIXYPROXY_SERVER": ("127.0.0.1:50051", "The server, as host:port."),
    "PIXYPROXY_USER": ("", "The username."),
    "PIXYPROXY_PASSWORD": ("", "The password, if it is neither in the credentials file nor to be typed."),
    "PIXYPROXY_CLIENT_TLS": ("", "Use TLS: true or false; by default true, except for a server on this machine."),
    "PIXYPROXY_CLIENT_CA": ("", "A PEM file of CA certificates for the server, in place of the system's."),
    "PIXYPROXY_CLIENT_CERTIFICATE": ("", "A PEM file of the client's certificate, if the server requires one."),
    "PIXYPROXY_CLIENT_KEY": ("", "A PEM file of that certificate's key."),
    "PIXYPROXY_CLIENT_ALLOW_PLAINTEXT": ("false", "Send the password in plain text over the network."),
}
"""For each variable its default and description."""

_SWITCHES = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_OTHERS_MAY = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class ClientSettings:
    """The server and the credentials.

    Attributes:
        server: host:port.
        username: the username, or None.
        password: the password, or None if it is not known.
        tls: whether to use TLS, or its files; None decides by the address.
        allow_plaintext: whether the password may be sent in plain text over the network.
    """

    server: str
    username: str | None
    password: str | None
    tls: TLS | bool | None
    allow_plaintext: bool

    def __repr__(self) -> str:
        return f"ClientSettings({self.server!r})"  # And no password.


def load_client_settings() -> ClientSettings:
    """Read the environment and the credentials file.

    Raises:
        ConfigurationError: a variable or the file is wrong.
    """
    given = {name: value for name in VARIABLES if (value := os.environ.get(name))}
    server = given.get("PIXYPROXY_SERVER", VARIABLES["PIXYPROXY_SERVER"][0])
    username, password = given.get("PIXYPROXY_USER"), given.get("PIXYPROXY_PASSWORD")
    if password is not None and username is None:
        raise ConfigurationError("PIXYPROXY_PASSWORD: needs PIXYPROXY_USER, too.")
    if password is None:
        username, password = _from_file(server, username)
    return ClientSettings(
        server=server,
        username=username,
        password=password,
        tls=_tls(given),
        allow_plaintext=_switch(given, "PIXYPROXY_CLIENT_ALLOW_PLAINTEXT") or False,
    )


def is_plain_terminal() -> bool:
    """Return whether to use neither colours nor progress bars."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def image_protocol() -> str:
    """Return "kitty" or "iterm2"; empty if the terminal is not known to support either."""
    term, program = os.environ.get("TERM", ""), os.environ.get("TERM_PROGRAM", "")
    # A terminal multiplexer passes on the terminal's variables, but no images.
    if term.startswith(("screen", "tmux")) or "TMUX" in os.environ:
        return ""
    if term in ("xterm-kitty", "xterm-ghostty") or program in ("ghostty", "WezTerm"):
        return "kitty"
    return "iterm2" if program == "iTerm.app" else ""


def credentials_path() -> Path:
    """Return the path of the credentials file."""
    # Unlike Path.home, this leaves the ~ as it is where a user of the system has no home.
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "pixyproxy" / "credentials"


def _from_file(server: str, username: str | None) -> tuple[str | None, str | None]:
    """Read the username and password for a server from the credentials file, a .netrc file."""
    path = credentials_path()
    try:
        mode = path.stat().st_mode
    except OSError:
        return username, None
    # Windows has no such modes; other users have no access to a user's folder.
    if sys.platform != "win32" and mode & _OTHERS_MAY:
        raise ConfigurationError(f"{path}: other users may read it; run chmod 600 {path}")
    try:
        hosts = netrc.netrc(str(path)).hosts
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        # No cause is chained: its message may hold a password.
        raise ConfigurationError(f"{path}: cannot be read; it must have the form of a .netrc file.") from None
    login, _, password = hosts.get(server) or hosts.get(server.rpartition(":")[0]) or ("", "", "")
    if not login or not password or username not in (None, login):
        return username, None
    return login, password


def _tls(given: Mapping[str, str]) -> TLS | bool | None:
    is_used = _switch(given, "PIXYPROXY_CLIENT_TLS")
    names = ("PIXYPROXY_CLIENT_CA", "PIXYPROXY_CLIENT_CERTIFICATE", "PIXYPROXY_CLIENT_KEY")
    if is_used is False or given.keys().isdisjoint(names):
        return is_used
    try:
        return TLS(*(Path(given[name]) if name in given else None for name in names))
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def _switch(given: Mapping[str, str], name: str) -> bool | None:
    if name not in given:
        return None
    try:
        return _SWITCHES[given[name].lower()]
    except KeyError:
        raise ConfigurationError(f"{name}: must be true or false.") from None
