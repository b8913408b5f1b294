"""The address of the client of a call, for limits by address.

gRPC has no PROXY protocol. Behind proxies, the client's address is in ``x-forwarded-for``.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import re
from collections.abc import Collection, Iterable
from typing import Literal
from urllib.parse import unquote

import grpc

UNIX: Literal["unix"] = "unix"
"""The address of every peer on a Unix socket."""

Proxies = Collection[ipaddress.IPv4Network | ipaddress.IPv6Network | Literal["unix"]]
Metadata = Iterable[tuple[str, str | bytes]]
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address | Literal["unix"]

_FORWARDED_FOR = "x-forwarded-for"
# [IPv6]:port, IPv4:port or an IPv6 address alone; ports are optional.
_HOST = re.compile(r"\[([^\[\]]+)\](?::\d+)?|([^:\[\]]+)(?::\d+)?|([^\[\]]+)")
# A site has at least a /64 network of IPv6, and can use any address in it.
_SITE_BITS = 64
_MAX_REMEMBERED = 1024

_logger = logging.getLogger(__name__)


class ClientAddresses:
    """Determines the clients of calls."""

    def __init__(self, trusted_proxies: Proxies) -> None:
        """Trust ``x-forwarded-for`` from these proxies only."""
        self._networks = [network for network in trusted_proxies if network != UNIX]
        self._trusts_unix = UNIX in trusted_proxies
        self._has_warned = False
        # Parsing an address takes longer than a hit in the credential cache.
        self._client_of = functools.lru_cache(_MAX_REMEMBERED)(self._find)

    def of(self, context: grpc.ServicerContext) -> str:
        """Return the address of a call's client."""
        return self.find(context.invocation_metadata(), context.peer())

    def find(self, metadata: Metadata, peer: str) -> str:
        """Return a client's address, without its port: IPv4, the /64 network of an IPv6 address, or ``unix``.

        Every proxy appends the address of its peer. So the client is the last address that is no trusted proxy; it may
        have made up those before. Without the header, or if it cannot be parsed, it is the peer of the connection.
        """
        # Of several such headers gRPC passes on the last one only.
        headers = (str(value) for key, value in metadata if key == _FORWARDED_FOR)
        return self._client_of(peer.rpartition(":")[0], ",".join(headers))

    def is_proxy(self, host: str) -> bool:
        """Tell whether an address is that of a trusted proxy."""
        address = _address_in(host)
        return address is not None and self._is_trusted(address)

    def _find(self, peer_host: str, forwarded_for: str) -> str:
        """Find a client by its peer, such as ``ipv4:10.0.0.1``, ``ipv6:%5B::1%5D`` or ``unix``, and by the header."""
        kind, _, host = unquote(peer_host).partition(":")
        # On a Unix socket, the client chooses the rest of the name.
        peer = client = (_address_in(host) if kind in ("ipv4", "ipv6") else None) or UNIX
        if self._is_trusted(peer):
            for text in filter(None, map(str.strip, reversed(forwarded_for.split(",")))):
                address = _address_in(text)
                if address is None:
                    self._warn_once(peer)
                    return _counted(peer)
                client = address
                if not self._is_trusted(client):
                    break
        return _counted(client)

    def _is_trusted(self, address: _Address) -> bool:
        if address == UNIX:
            return self._trusts_unix
        return any(address in network for network in self._networks)

    def _warn_once(self, peer: _Address) -> None:
        if not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "The proxy %s sends an %s without a valid address of the client; such calls count as the proxy's own. "
                "This is logged once.",
                peer,
                _FORWARDED_FOR,
            )


def _address_in(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an address with or without a port, or return None. The zone of an IPv6 address is dropped."""
    found = _HOST.fullmatch(text)
    if found is None:
        return None
    try:
        address = ipaddress.ip_address(found[found.lastindex or 0].partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _counted(address: _Address) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _SITE_BITS), strict=False))
    return str(address)
