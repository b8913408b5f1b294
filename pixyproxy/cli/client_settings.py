"""What the commands that ask a server are told by the environment, and by the file of credentials.

Not by pydantic-settings, as the server is: loading it takes as long as everything else that such a command does.
"""

from __future__ import annotations

import netrc
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pixyproxy.core.exceptions import ConfigurationError

VARIABLES = {
    "PIXYPROXY_SERVER": ("127.0.0.1:50051", "The server to ask, as host:port."),
    "PIXYPROXY_USER": ("", "Whom to sign in as."),
    "PIXYPROXY_PASSWORD": ("", "That user's password, where it is neither in the file of credentials nor to be typed."),
    "PIXYPROXY_CLIENT_TLS": ("", "true or false; by default true, but for a server on this machine."),
    "PIXYPROXY_CLIENT_CA": ("", "The file of certificates that vouch for the server, in place of the usual ones."),
    "PIXYPROXY_CLIENT_CERTIFICATE": ("", "The file of your own certificate, where the server asks for one."),
    "PIXYPROXY_CLIENT_KEY": ("", "The file of that certificate's key."),
    "PIXYPROXY_CLIENT_ALLOW_PLAINTEXT": ("false", "Let the password cross the network in plain text."),
}
"""Of each variable its default, and what it means."""

_SWITCHES = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_OTHERS_MAY = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class ClientSettings:
    """Which server to ask, how, and as whom.

    Attributes:
        server: host:port.
        username: whom to sign in as, or None.
        password: that user's password, or None where it is not known.
        tls: whether to encrypt; None leaves it to the address.
        ca_file: what vouches for the server, or None for the usual authorities.
        certificate_file: the client's own certificate, or None.
        key_file: its key, or None.
        allow_plaintext: whether the password may cross the network in plain text.
    """

    server: str
    username: str | None
    password: str | None
    tls: bool | None
    ca_file: Path | None
    certificate_file: Path | None
    key_file: Path | None
    allow_plaintext: bool

    def __repr__(self) -> str:
        return f"ClientSettings({self.server!r})"  # And no password.


@dataclass(frozen=True)
class TerminalSettings:
    """What the terminal says of itself.

    Attributes:
        is_plain: whether it wants no colours and nothing that moves.
        picture_protocol: how it shows pictures, "kitty" or "iterm2"; empty where it says of neither.
    """

    is_plain: bool
    picture_protocol: str


def load_client_settings() -> ClientSettings:
    """Read the environment and the file of credentials.

    Raises:
        ConfigurationError: a variable or the file is wrong.
    """
    given = {name: value for name in VARIABLES if (value := os.environ.get(name))}
    server = given.get("PIXYPROXY_SERVER", VARIABLES["PIXYPROXY_SERVER"][0])
    username, password = given.get("PIXYPROXY_USER"), given.get("PIXYPROXY_PASSWORD")
    if password is not None and username is None:
        raise ConfigurationError("PIXYPROXY_PASSWORD: needs PIXYPROXY_USER beside it.")
    if password is None:
        username, password = _from_file(server, username)
    return ClientSettings(
        server=server,
        username=username,
        password=password,
        tls=_switch(given, "PIXYPROXY_CLIENT_TLS"),
        ca_file=_path(given, "PIXYPROXY_CLIENT_CA"),
        certificate_file=_path(given, "PIXYPROXY_CLIENT_CERTIFICATE"),
        key_file=_path(given, "PIXYPROXY_CLIENT_KEY"),
        allow_plaintext=_switch(given, "PIXYPROXY_CLIENT_ALLOW_PLAINTEXT") or False,
    )


def load_terminal_settings() -> TerminalSettings:
    """Read what the terminal says of itself in the environment."""
    term, program = os.environ.get("TERM", ""), os.environ.get("TERM_PROGRAM", "")
    protocol = ""
    # Inside a multiplexer the terminal's own variables still stand there, but pictures do not get through.
    if not term.startswith(("screen", "tmux")) and "TMUX" not in os.environ:
        if term in ("xterm-kitty", "xterm-ghostty") or program in ("ghostty", "WezTerm"):
            protocol = "kitty"
        elif program == "iTerm.app":
            protocol = "iterm2"
    return TerminalSettings(is_plain=bool(os.environ.get("NO_COLOR")) or term == "dumb", picture_protocol=protocol)


def credentials_path() -> Path:
    """Return where the file of credentials is looked for."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pixyproxy" / "credentials"


def _from_file(server: str, username: str | None) -> tuple[str | None, str | None]:
    """Find who is to sign in on a server, and with which password, in the form of a .netrc file."""
    path = credentials_path()
    try:
        mode = path.stat().st_mode
    except OSError:
        return username, None
    # Windows has no such modes; a user's folder is that user's alone.
    if sys.platform != "win32" and mode & _OTHERS_MAY:
        raise ConfigurationError(f"{path}: others may read it; say chmod 600 {path}")
    try:
        hosts = netrc.netrc(str(path)).hosts
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        # No cause is chained: its message may hold a password.
        raise ConfigurationError(f"{path}: cannot be read; it must have the form of a .netrc file.") from None
    login, _, password = hosts.get(server) or hosts.get(server.rpartition(":")[0]) or ("", "", "")
    if not login or not password or username not in (None, login):
        return username, None
    return login, password


def _switch(given: Mapping[str, str], name: str) -> bool | None:
    if name not in given:
        return None
    try:
        return _SWITCHES[given[name].lower()]
    except KeyError:
        raise ConfigurationError(f"{name}: must be true or false.") from None


def _path(given: Mapping[str, str], name: str) -> Path | None:
    return Path(given[name]) if name in given else None
