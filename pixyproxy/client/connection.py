"""The connection to a server: address, TLS and credentials."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc

# Plain text for a server on this machine must not go through a proxy.
_NO_PROXY = {"grpc.enable_http_proxy": 0}
_MS = 1000

ChannelOptions = Mapping[str, str | int]
"""Options of gRPC, such as ``grpc.primary_user_agent``, by their names."""
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TLS:
    """The files for TLS, in PEM.

    Attributes:
        ca_file: CA certificates for the server; None for the system's.
        certificate_file: the client's certificate chain, if the server requires one.
        key_file: the key of that certificate.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("A certificate needs its key, and a key its certificate.")


@dataclass(frozen=True, slots=True)
class Keepalive:
    """How broken connections are detected, also during a generation, when nothing is sent for minutes.

    Attributes:
        time: seconds without traffic after which the server is pinged; servers require at least 10.
        timeout: seconds after which a ping without an answer ends the connection.
    """

    time: float = 60.0
    timeout: float = 20.0


def tls_for(address: str, tls: TLS | bool | None) -> TLS | None:
    """Return the files for TLS, or None for plain text, which is the default for a server on this machine."""
    if tls is None:
        tls = not is_loopback(address)
    return (TLS() if tls else None) if isinstance(tls, bool) else tls


def channel_opener(
    module: Any, address: str, tls: TLS | None, keepalive: Keepalive, options: ChannelOptions
) -> Callable[[], Any]:
    """Read the files for TLS, and return the function that creates a channel, which connects at its first call.

    ``module`` is ``grpc`` or ``grpc.aio``. Without ``tls``, the channel uses plain text. ``options`` override the
    client's own.
    """
    chosen: dict[str, str | int] = {
        # A page of 200 prompts of 32,000 characters is longer than gRPC's 4 MiB.
        "grpc.max_receive_message_length": 64 * 1024 * 1024,
        "grpc.keepalive_time_ms": round(keepalive.time * _MS),
        "grpc.keepalive_timeout_ms": round(keepalive.timeout * _MS),
        # Without this, grpcio 1.85 waits a minute for a ping's answer, regardless of the keepalive timeout.
        "grpc.http2.ping_timeout_ms": round(keepalive.timeout * _MS),
        **({} if tls else _NO_PROXY),
        **options,
    }
    if tls is None:
        return partial(module.insecure_channel, address, tuple(chosen.items()))
    credentials = grpc.ssl_channel_credentials(
        _read(tls.ca_file), private_key=_read(tls.key_file), certificate_chain=_read(tls.certificate_file)
    )
    return partial(module.secure_channel, address, credentials, tuple(chosen.items()))


def sign_in(username: str | None, password: str | None) -> Metadata:
    """Return the metadata with HTTP Basic credentials; empty without credentials."""
    if username is None and password is None:
        return ()
    if not username or password is None:
        raise ValueError("A username needs a password, and a password needs a username.")
    if ":" in username:
        raise ValueError("A username must not contain a colon.")
    token = base64.b64encode(f"{username}:{password}".encode()).decode()
    return (("authorization", f"Basic {token}"),)


def is_loopback(address: str) -> bool:
    """Return whether an address, host:port, is on this machine.

    Raises:
        ValueError: it is not an address.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit()) or "/" in host:
        raise ValueError(f"The server's address must be host:port, such as 127.0.0.1:50051, not {address!r}.")
    if host == "localhost":
        return True
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    if ":" in host and not host.startswith("["):
        raise ValueError(f"An IPv6 address must be in brackets, such as [{ip}]:{port}, not {address!r}.")
    return ip.is_loopback


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
