"""The server's certificate, its key and the authorities of clients: read from PEM files, and checked."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from pixyproxy.core.exceptions import ConfigurationError

_CERTIFICATE = "PIXYPROXY_TLS_CERTIFICATE"
_KEY = "PIXYPROXY_TLS_KEY"
_CLIENT_CA = "PIXYPROXY_TLS_CLIENT_CA"
# ACME clients renew when a third of the lifetime is left; a fifth means that renewal fails.
_WARN_BEFORE = timedelta(days=14)
_WARN_SHARE = 0.2
_CURVES = ("secp256r1", "secp384r1")


@dataclass(frozen=True)
class TLSFiles:
    """The paths of the files.

    Attributes:
        certificate: the server's certificate, then the intermediate ones.
        key: its private key.
        client_ca: the roots of clients' certificates, or None if clients need no certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None

    def state(self) -> tuple[object, ...]:
        """Return a value that differs after a file has changed."""
        return tuple(_state_of(path) for path in (self.certificate, self.key, self.client_ca) if path is not None)


@dataclass(frozen=True)
class TLSIdentity:
    """The checked contents of the files, in PEM form.

    Attributes:
        certificates: the server's certificate and the intermediate ones.
        key: its private key.
        client_ca: the roots of clients' certificates, or None.
        begins_at: the start of the certificate's validity.
        expires_at: its end.
        is_key_open: whether all users of the machine can read the key.
    """

    certificates: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    begins_at: datetime
    expires_at: datetime
    is_key_open: bool

    def warnings(self, now: datetime) -> list[str]:
        """Return what an operator should fix, although the files are usable."""
        found = []
        if self.is_key_open:
            found.append(f"{_KEY}: all users of this machine can read the file; change its mode with chmod 640.")
        if now < self.begins_at:
            found.append(f"{_CERTIFICATE}: the certificate is not valid before {self.begins_at:%Y-%m-%d %H:%M} UTC.")
        if now >= self.expires_at:
            found.append(f"{_CERTIFICATE}: the certificate expired on {self.expires_at:%Y-%m-%d %H:%M} UTC.")
        elif now >= self.expires_at - min(_WARN_BEFORE, (self.expires_at - self.begins_at) * _WARN_SHARE):
            found.append(f"{_CERTIFICATE}: the certificate expires on {self.expires_at:%Y-%m-%d %H:%M} UTC.")
        return found


def load_identity(files: TLSFiles) -> TLSIdentity:
    """Read and check the files.

    Raises:
        ConfigurationError: a file cannot be read or has other contents, or the key does not fit the certificate; the
            message names the setting.
    """
    certificates, key = _read(_CERTIFICATE, files.certificate), _read(_KEY, files.key)
    client_ca = None if files.client_ca is None else _read(_CLIENT_CA, files.client_ca)
    first = _certificates_in(_CERTIFICATE, files.certificate, certificates)[0]
    _require_own_key(files, key, first)
    if files.client_ca is not None and client_ca is not None:
        _certificates_in(_CLIENT_CA, files.client_ca, client_ca)
    return TLSIdentity(
        certificates=certificates,
        key=key,
        client_ca=client_ca,
        begins_at=first.not_valid_before_utc,
        expires_at=first.not_valid_after_utc,
        is_key_open=bool(files.key.stat().st_mode & stat.S_IROTH),
    )


def _state_of(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{setting}: {path} cannot be read: {error.strerror}.") from error


def _certificates_in(setting: str, path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigurationError(f"{setting}: {path} holds no certificate in PEM form.") from error


def _require_own_key(files: TLSFiles, pem: bytes, certificate: x509.Certificate) -> None:
    # No cause is chained: it might contain parts of the key, and be logged.
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise ConfigurationError(
            f"{_KEY}: {files.key} is protected by a passphrase, which is not supported; store the key without one."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{_KEY}: {files.key} holds no private key in PEM form.") from None
    is_usual_curve = isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES
    if not (isinstance(key, rsa.RSAPrivateKey) or is_usual_curve):
        raise ConfigurationError(
            f"{_KEY}: {files.key} must be an RSA key, or an EC key on P-256 or P-384: gRPC clients support no others."
        )
    if key.public_key() != certificate.public_key():
        raise ConfigurationError(f"{_KEY}: {files.key} is not the key of the first certificate in {files.certificate}.")
