"""Who is called, and what may be sent there."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixyproxy.client import TLS, PixyProxyClient
from pixyproxy.client.connection import is_loopback, tls_for


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:50051", True),
        ("127.9.9.9:1", True),
        ("[::1]:50051", True),
        ("localhost:50051", True),
        ("10.0.0.1:50051", False),
        ("[::]:50051", False),
        ("localhost.example.com:50051", False),
        ("images.internal:443", False),
    ],
)
def test_what_is_this_machine(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected
    assert tls_for(address, None) == (None if expected else TLS())


@pytest.mark.parametrize("address", ["", "localhost", ":50051", "localhost:", "localhost:http", "dns:///x:1", "1:²"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        PixyProxyClient(address)


@pytest.mark.parametrize("address", ["::1:50051", "::1:5005", "2001:db8::1:443"])
def test_an_ipv6_address_needs_brackets(address: str) -> None:
    """Without them, gRPC takes the port for a part of the address, and connects to another one."""
    with pytest.raises(ValueError, match=r"brackets, such as \[(::1|2001:db8::1)\]:\d+, not"):
        PixyProxyClient(address, username="ann", password="x")


def test_a_password_does_not_cross_a_network_in_plain_text_unless_that_is_said() -> None:
    with pytest.raises(ValueError, match="plain text"):
        PixyProxyClient("10.0.0.1:1", username="ann", password="x", tls=False)
    PixyProxyClient("10.0.0.1:1", username="ann", password="x", tls=False, allow_plaintext=True).close()
    PixyProxyClient("10.0.0.1:1", username="ann", password="x").close()
    PixyProxyClient("10.0.0.1:1", tls=False).close()


@pytest.mark.parametrize(("username", "password"), [("ann", None), (None, "x"), ("", "x"), ("a:b", "x")])
def test_credentials_that_are_none(username: str | None, password: str | None) -> None:
    with pytest.raises(ValueError, match="username"):
        PixyProxyClient(username=username, password=password)


def test_a_certificate_comes_with_its_key() -> None:
    with pytest.raises(ValueError, match="key"):
        TLS(certificate_file=Path(__file__))
