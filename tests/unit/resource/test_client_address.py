"""Who the client of a call is, as a real server finds out over real connections."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import grpc
import pytest

from pixyproxy.resource.client_address import UNIX, ClientAddresses, Proxies
from tests.support.rpc import TIMEOUT, raw_unary

_METHOD = "/test.Addresses/Mine"

AddressOf = Callable[..., str]


class _Service(grpc.GenericRpcHandler):
    """Answers each call with its client's address."""

    def __init__(self, addresses: ClientAddresses) -> None:
        self._addresses = addresses

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        def mine(request: bytes, context: grpc.ServicerContext) -> bytes:
            return self._addresses.of(context).encode()

        return grpc.unary_unary_rpc_method_handler(mine)


@pytest.fixture
def address_of(tmp_path: Path) -> Iterator[AddressOf]:
    """Serve on an address while some proxies are trusted, call with headers, and return who the client was."""
    with ExitStack() as stack:

        def ask(trusted: Proxies, *headers: str | bytes, listen: str = "127.0.0.1:0") -> str:
            server = grpc.server(stack.enter_context(ThreadPoolExecutor(1)))
            stack.callback(lambda: server.stop(None).wait())
            server.add_generic_rpc_handlers((_Service(ClientAddresses(trusted)),))
            port = server.add_insecure_port(listen)
            server.start()
            target = listen if listen.startswith("unix:") else listen.replace(":0", f":{port}")
            channel = stack.enter_context(grpc.insecure_channel(target, options=(("grpc.enable_http_proxy", 0),)))
            metadata = tuple(("x-forwarded-for", header) for header in headers)
            return str(raw_unary(channel, _METHOD)(b"", metadata=metadata, timeout=TIMEOUT), "ascii")

        yield ask


_LOOPBACK = {ip_network("127.0.0.1")}


def test_without_trusted_proxies_it_is_the_peer(address_of: AddressOf) -> None:
    assert address_of((), "198.51.100.1") == "127.0.0.1"


@pytest.mark.parametrize(
    ("header", "client"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("198.51.100.1:50212", "198.51.100.1"),
        ("  198.51.100.1  ", "198.51.100.1"),
        ("192.0.2.7, 198.51.100.1", "198.51.100.1"),
        ("192.0.2.7,198.51.100.1,", "198.51.100.1"),
        ("garbage, 198.51.100.1", "198.51.100.1"),
        ("198.51.100.1, 127.0.0.1", "198.51.100.1"),
        ("192.0.2.7, 198.51.100.1, 127.0.0.1:80, 127.0.0.1", "198.51.100.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::9", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::9]", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::9]:443", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("[fe80::1%25eth0]:443", "fe80::/64"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("[::ffff:198.51.100.1]:443", "198.51.100.1"),
    ],
)
def test_trusted_proxy_names_the_client(address_of: AddressOf, header: str, client: str) -> None:
    assert address_of(_LOOPBACK, header) == client


def test_of_several_headers_the_last_counts(address_of: AddressOf) -> None:
    """gRPC hands on no other."""
    assert address_of(_LOOPBACK, "192.0.2.7, 192.0.2.8", "unknown", "192.0.2.9, 198.51.100.1") == "198.51.100.1"


def test_trusted_networks(address_of: AddressOf) -> None:
    trusted = {ip_network("127.0.0.0/8"), ip_network("2001:db8::/32")}
    assert address_of(trusted, "192.0.2.7, 198.51.100.1, 2001:db8::1, 127.9.9.9") == "198.51.100.1"


@pytest.mark.parametrize("headers", [(), ("",), (" , ",)])
def test_trusted_proxy_that_says_nothing_is_the_client(
    address_of: AddressOf, caplog: pytest.LogCaptureFixture, headers: tuple[str, ...]
) -> None:
    assert address_of(_LOOPBACK, *headers) == "127.0.0.1"
    assert caplog.records == []


@pytest.mark.parametrize(
    "header",
    [
        "unknown",
        "198.51.100.1, unknown",
        "198.51.100",
        "198.51.100.1.1",
        "198.51.100.1:http",
        "198.51.100.1:",
        "[198.51.100.1",
        "2001:db8::1]:443",
        "[2001:db8::1]443",
        "1:2:3:4:5:6:7:8:9",
        "%",
        "unix",
        "198.51.100.1 198.51.100.2",
        "198.51.100.1; 127.0.0.1",
        "for=198.51.100.1",
        "9" * 4000,
        "198.51.100.1, garbage, 127.0.0.1",
    ],
)
def test_where_a_trusted_proxy_says_nothing_readable_it_is_the_client(
    address_of: AddressOf, caplog: pytest.LogCaptureFixture, header: str
) -> None:
    with caplog.at_level(logging.WARNING):
        assert address_of(_LOOPBACK, header) == "127.0.0.1"
    (record,) = caplog.records
    assert "The proxy 127.0.0.1 sends an x-forwarded-for without a valid address" in record.getMessage()
    assert header not in record.getMessage()


def test_that_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    addresses = ClientAddresses(_LOOPBACK)
    with ExitStack() as stack, caplog.at_level(logging.WARNING):
        server = grpc.server(stack.enter_context(ThreadPoolExecutor(1)))
        stack.callback(lambda: server.stop(None).wait())
        server.add_generic_rpc_handlers((_Service(addresses),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
        for _ in range(3):
            raw_unary(channel, _METHOD)(b"", metadata=(("x-forwarded-for", "unknown"),), timeout=TIMEOUT)
    assert len(caplog.records) == 1


def test_peers_by_ipv6_are_their_network(address_of: AddressOf) -> None:
    assert address_of((), "198.51.100.1", listen="[::1]:0") == "::/64"
    assert address_of({ip_network("::1")}, "198.51.100.1", listen="[::1]:0") == "198.51.100.1"
    assert address_of({ip_network("::2")}, "198.51.100.1", listen="[::1]:0") == "::/64"


def test_ipv4_peers_of_an_ipv6_socket_are_ipv4(address_of: AddressOf) -> None:
    assert address_of(_LOOPBACK, "198.51.100.1", listen="[::ffff:127.0.0.1]:0") == "198.51.100.1"


def test_peers_on_a_unix_socket(address_of: AddressOf, tmp_path: Path) -> None:
    listen = f"unix:{tmp_path / 'socket'}"
    assert address_of((), "198.51.100.1", listen=listen) == "unix"
    assert address_of(_LOOPBACK, "198.51.100.1", listen=f"{listen}-2") == "unix"
    assert address_of({UNIX}, "198.51.100.1", listen=f"{listen}-3") == "198.51.100.1"


@pytest.mark.parametrize(
    ("host", "is_proxy"), [("10.0.0.7", True), ("::ffff:10.0.0.7", True), ("10.0.1.7", False), ("no address", False)]
)
def test_the_address_of_a_connection_is_a_proxy_s_or_not(host: str, is_proxy: bool) -> None:
    assert ClientAddresses({ip_network("10.0.0.0/24")}).is_proxy(host) is is_proxy
