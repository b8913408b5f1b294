"""The hosts, besides the provider, from which generated images may be fetched, and the check of their addresses."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_ENTRY = re.compile(rf"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>{_LABEL}(?:\.{_LABEL})*))(?::(?P<port>[0-9]{{1,5}}))?")
_USUAL_PORTS = (80, 443)
_MAX_PORT = 65_535
# Python 3.11 takes it for global; some clouds serve credentials there.
_PROTOCOL_ASSIGNMENTS = ipaddress.IPv4Network("192.0.0.0/24")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Each of its addresses contains an IPv4 address, which a router may unpack.
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")


@dataclass(frozen=True)
class ImageHosts:
    """A set of hosts, each with a port, or without one for the usual ports of HTTP and HTTPS."""

    entries: frozenset[tuple[str, int | None]] = frozenset()

    @classmethod
    def parse(cls, text: str) -> ImageHosts:
        """Read comma-separated entries: a host name or an address, an IPv6 address in brackets, with or without a port.

        Raises:
            ValueError: an entry is something else.
        """
        return cls(frozenset(map(_parse, text.split(",")))) if text else cls()

    def includes(self, host: str, port: int) -> bool:
        """Return whether a host, a name in lower case or an address without brackets, is in the set with a port."""
        return (host, port) in self.entries or (port in _USUAL_PORTS and (host, None) in self.entries)

    def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host that may be connected to.

        Such an address can be reached from the whole internet, or is in the set itself.

        Raises:
            ValueError: there are only others.
            OSError: the name cannot be resolved.
        """
        found = dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, None))
        allowed = [address for address in found if _is_public(address) or self.includes(address, port)]
        if not allowed:
            raise ValueError("its address is not public, and not listed in PIXYPROXY_PROVIDER_IMAGE_HOSTS")
        return allowed


def _parse(entry: str) -> tuple[str, int | None]:
    found = _ENTRY.fullmatch(entry.strip().lower())
    if found is None:
        raise ValueError("not a host")
    port = None if found["port"] is None else int(found["port"])
    if port is not None and not 0 < port <= _MAX_PORT:
        raise ValueError("not a port")
    return str(ipaddress.IPv6Address(found["ipv6"])) if found["ipv6"] else found["name"], port


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        # Outside of this network there are also addresses that contain IPv4 addresses: IPv4-mapped ones, and NAT64.
        return address.is_global and address in _GLOBAL_UNICAST and address not in _SIX_TO_FOUR
    return address.is_global and not address.is_multicast and address not in _PROTOCOL_ASSIGNMENTS
