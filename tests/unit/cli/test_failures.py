"""What is told of a connection that fails, for what gRPC says about real ones."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from pixyproxy.cli.failures import plain
from pixyproxy.client import TLS, PixyProxyClient, RetryPolicy, UnavailableError
from tests.support.certificates import Authority

DAY = timedelta(days=1)
NOW = datetime.now(UTC)
AUTHORITY = Authority()


@contextmanager
def listening(credentials: grpc.ServerCredentials) -> Iterator[int]:
    """Serve nothing, but with TLS, and yield the port."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(None)


@pytest.mark.parametrize(
    ("authority", "validity", "host", "client_ca", "told"),
    [
        (Authority(), {}, "127.0.0.1", None, "The certificate of SERVER is not trusted"),
        (AUTHORITY, {}, "[::ffff:127.0.0.1]", None, "The certificate of SERVER is for another host name"),
        (AUTHORITY, {"not_before": NOW - 2 * DAY, "not_after": NOW - DAY}, "127.0.0.1", None, "it has expired"),
        (AUTHORITY, {"not_before": NOW + DAY}, "127.0.0.1", None, "is not valid yet"),
        (AUTHORITY, {}, "127.0.0.1", AUTHORITY.pem, "if it requires a certificate, PIXYPROXY_CLIENT_CERTIFICATE"),
    ],
    ids=["unknown", "other name", "expired", "not yet", "certificate required"],
)
def test_what_is_wrong_with_tls_is_told(
    authority: Authority, validity: Any, host: str, client_ca: bytes | None, told: str, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.pem)
    chain, key = authority.issue(**validity)
    credentials = grpc.ssl_server_credentials([(key, chain)], client_ca, client_ca is not None)
    with (
        listening(credentials) as port,
        PixyProxyClient(f"{host}:{port}", tls=TLS(tmp_path / "ca.pem"), retry=RetryPolicy(attempts=1)) as client,
        pytest.raises(UnavailableError) as failure,
    ):
        client.is_serving()
    assert told in plain(failure.value.message, "SERVER")
