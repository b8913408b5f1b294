from __future__ import annotations

import socket

import pytest

from pixyproxy.generation.image_hosts import ImageHosts


def resolving_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)


# --- The setting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port", "is_included"),
    [
        ("", "images.example.com", 443, False),
        ("images.example.com", "images.example.com", 443, True),
        ("images.example.com", "images.example.com", 80, True),
        ("images.example.com", "images.example.com", 8443, False),
        ("images.example.com", "images.example.com.", 443, False),
        ("images.example.com", "more.images.example.com", 443, False),
        ("images.example.com", "example.com", 443, False),
        ("images.example.com:8443", "images.example.com", 8443, True),
        ("images.example.com:8443", "images.example.com", 443, False),
        ("images.example.com:443", "images.example.com", 443, True),
        ("Images.Example.COM", "images.example.com", 443, True),
        ("other.example, images.example.com:1 ,last", "images.example.com", 1, True),
        ("other.example, images.example.com:1 ,last", "last", 443, True),
        ("10.0.0.5:9000", "10.0.0.5", 9000, True),
        ("[2001:DB8:0::5]:9000", "2001:db8::5", 9000, True),
        ("[2001:db8::5]", "2001:db8::5", 443, True),
        ("a_b-c.d1", "a_b-c.d1", 443, True),
        ("images.example.com:65535", "images.example.com", 65_535, True),
        (f"{'a' * 63}.example", f"{'a' * 63}.example", 443, True),
    ],
)
def test_exact_hosts_and_ports_are_included(text: str, host: str, port: int, is_included: bool) -> None:
    assert ImageHosts.parse(text).includes(host, port) is is_included


@pytest.mark.parametrize(
    "text",
    [
        "https://images.example.com",
        "images.example.com/",
        "user@images.example.com",
        "*.example.com",
        ".example.com",
        "images.example.com.",
        "images..example.com",
        "-a.example",
        "a-.example",
        f"{'a' * 64}.example",
        "images.example.com:",
        "images.example.com:0",
        "images.example.com:65536",
        "images.example.com:http",
        "::1",
        "[::1",
        "[::g]",
        "[1.2.3.4]",
        "bücher.example",
        "a b",
        "a,,b",
        ",",
        " ",
    ],
)
def test_anything_else_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        ImageHosts.parse(text)


# --- Addresses -------------------------------------------------------------------------------------------------------

_PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:10.1.2.3",
    "::ffff:93.184.215.14",
    "64:ff9b::169.254.169.254",
    "64:ff9b::93.184.215.14",
    "64:ff9b:1::10.0.0.1",
    "2001::1",
    "2001:db8::1",
    "2002:a9fe:a9fe::1",
    "fc00::1",
    "fe80::1",
    "fe80::1%lo",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


@pytest.mark.parametrize("address", _PRIVATE)
def test_an_address_that_not_everybody_can_reach_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    resolving_to(monkeypatch, address)
    with pytest.raises(ValueError, match="not public"):
        ImageHosts.parse("images.example.com").resolve("images.example.com", 443)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_a_public_address_is_used(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    resolving_to(monkeypatch, address)
    assert ImageHosts().resolve("images.example.com", 443) == [address]


def test_only_the_public_ones_of_several_addresses_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving_to(monkeypatch, "10.0.0.1", "93.184.215.14", "::1", "1.1.1.1", "93.184.215.14")
    assert ImageHosts().resolve("images.example.com", 443) == ["93.184.215.14", "1.1.1.1"]


@pytest.mark.parametrize(
    ("listed", "is_used"),
    [("10.0.0.5", True), ("10.0.0.5:443", True), ("10.0.0.5:9000", False), ("10.0.0.6", False), ("[::1]", False)],
)
def test_a_private_address_is_used_where_it_is_listed_itself(
    monkeypatch: pytest.MonkeyPatch, listed: str, is_used: bool
) -> None:
    resolving_to(monkeypatch, "10.0.0.5")
    hosts = ImageHosts.parse(f"images.example.com,{listed}")
    if is_used:
        assert hosts.resolve("images.example.com", 443) == ["10.0.0.5"]
    else:
        with pytest.raises(ValueError, match="not public"):
            hosts.resolve("images.example.com", 443)


@pytest.mark.parametrize("written", ["2130706433", "0x7f.1", "127.1", "017700000001"])
def test_an_address_in_disguise_is_what_the_system_makes_of_it(written: str) -> None:
    with pytest.raises(ValueError, match="not public"):
        ImageHosts.parse(written).resolve(written, 80)


def test_a_name_that_does_not_resolve_is_an_error_of_the_system() -> None:
    with pytest.raises(socket.gaierror):
        ImageHosts().resolve("no-such-host.invalid", 443)
