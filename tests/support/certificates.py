"""Real certificates for tests of TLS, from authorities of their own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import grpc
import trustme

from tests.support.servers import RunningServer


@dataclass(frozen=True)
class CertificateFiles:
    """Where a server's certificate and key lie."""

    certificate: Path
    key: Path

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a server that shows them."""
        return {"PIXYPROXY_TLS_CERTIFICATE": str(self.certificate), "PIXYPROXY_TLS_KEY": str(self.key)}


class Authority:
    """Somebody who signs certificates, by way of an authority in between as they do in earnest."""

    def __init__(self) -> None:
        self._root = trustme.CA()
        self._between = self._root.create_child_ca()

    @property
    def pem(self) -> bytes:
        """The root's certificate."""
        return self._root.cert_pem.bytes()

    def issue(
        self,
        *,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        key_type: trustme.KeyType = trustme.KeyType.ECDSA,
    ) -> tuple[bytes, bytes]:
        """Return a certificate for this machine with the one of the authority in between, and its key."""
        issued = self._between.issue_cert(
            "localhost", "127.0.0.1", not_before=not_before, not_after=not_after, key_type=key_type
        )
        return b"".join(pem.bytes() for pem in issued.cert_chain_pems), issued.private_key_pem.bytes()

    def write(
        self, folder: Path, *, not_before: datetime | None = None, not_after: datetime | None = None
    ) -> CertificateFiles:
        """Issue a certificate and write it to files, over those of an earlier one."""
        certificates, key = self.issue(not_before=not_before, not_after=not_after)
        files = CertificateFiles(folder / "certificate.pem", folder / "key.pem")
        files.certificate.write_bytes(certificates)
        write_key(files.key, key)
        return files


def write_key(path: Path, key: bytes) -> None:
    """Write a key so that only its owner can read it."""
    path.touch(mode=0o600)
    path.write_bytes(key)


def secure_channel(server: RunningServer, trusted: bytes, shown: tuple[bytes, bytes] | None = None) -> grpc.Channel:
    """A further connection, which the caller closes.

    Args:
        server: whom to connect to.
        trusted: the root that the server's certificate must come from.
        shown: the client's certificate and key, or None to show none.
    """
    certificates, key = shown or (None, None)
    credentials = grpc.ssl_channel_credentials(trusted, key, certificates)
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
    return grpc.secure_channel(server.address, credentials, options=options)
