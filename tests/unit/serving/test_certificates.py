"""Certificates that fit, that nearly fit, and that do not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from pixyproxy.core.exceptions import ConfigurationError
from pixyproxy.serving.certificates import TLSFiles, load_identity
from tests.support.certificates import Authority, write_key

_NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> TLSFiles:
    written = authority.write(tmp_path, not_before=_NOW - timedelta(days=30), not_after=_NOW + timedelta(days=60))
    return TLSFiles(written.certificate, written.key, None)


def _refused(files: TLSFiles) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_identity(files)
    return caught.value.message


def _pem(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, encryption: KeySerializationEncryption | None = None
) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


@pytest.mark.parametrize("key_type", list(trustme.KeyType))
def test_what_fits_is_taken(files: TLSFiles, authority: Authority, key_type: trustme.KeyType) -> None:
    certificates, key = authority.issue(key_type=key_type)
    files.certificate.write_bytes(certificates)
    files.key.write_bytes(key)
    identity = load_identity(files)
    assert (identity.certificates, identity.key, identity.client_ca) == (certificates, key, None)
    assert "PRIVATE KEY" not in repr(identity)


@pytest.mark.parametrize("setting", ["PIXYPROXY_TLS_CERTIFICATE", "PIXYPROXY_TLS_KEY", "PIXYPROXY_TLS_CLIENT_CA"])
def test_a_file_that_is_not_there_or_holds_something_else(files: TLSFiles, tmp_path: Path, setting: str) -> None:
    other = tmp_path / "other.pem"
    paths = {
        "PIXYPROXY_TLS_CERTIFICATE": files.certificate,
        "PIXYPROXY_TLS_KEY": files.key,
        "PIXYPROXY_TLS_CLIENT_CA": files.certificate,
    }
    wrong = TLSFiles(*(paths | {setting: other}).values())
    assert _refused(wrong) == f"{setting}: {other} cannot be read: No such file or directory."
    other.write_text("-----BEGIN NOTHING-----")
    assert _refused(wrong).startswith(f"{setting}: {other} holds no ")


def test_a_key_with_a_passphrase(files: TLSFiles) -> None:
    files.key.write_bytes(_pem(ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"secret")))
    assert "passphrase" in _refused(files)


def test_a_key_of_another_certificate(files: TLSFiles, authority: Authority) -> None:
    write_key(files.key, authority.issue()[1])
    assert "is not the key of the first certificate" in _refused(files)


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP521R1())])
def test_a_key_that_clients_do_not_take(
    files: TLSFiles, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
) -> None:
    files.key.write_bytes(_pem(key))
    assert "gRPC clients support no others" in _refused(files)


@pytest.mark.parametrize(
    ("days", "warning"),
    [(-31, "is not valid before"), (0, None), (45, None), (47, "expires on"), (59, "expires on"), (60, "expired on")],
)
def test_warnings_of_the_time(files: TLSFiles, days: int, warning: str | None) -> None:
    warnings = load_identity(files).warnings(_NOW + timedelta(days=days))
    assert len(warnings) == (warning is not None)
    assert all(warning is not None and warning in text for text in warnings)


@pytest.mark.parametrize(("mode", "is_warned"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
def test_a_key_that_everybody_can_read(files: TLSFiles, mode: int, is_warned: bool) -> None:
    files.key.chmod(mode)
    assert any("all users" in warning for warning in load_identity(files).warnings(_NOW)) == is_warned
