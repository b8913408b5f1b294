"""TLS in front of Envoy, and between Envoy and the replicas."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.support.addresses import free_addresses
from tests.support.certificates import Authority
from tests.support.envoy import running_envoy
from tests.support.rest import RestClient
from tests.support.rpc import TIMEOUT
from tests.support.servers import RunningServer, image_stub, running_server
from tests.support.waiting import wait_until


@pytest.fixture
def authority() -> Authority:
    """Who has signed the certificate of the server."""
    return Authority()


@pytest.fixture
def server(authority: Authority, tmp_path: Path) -> Iterator[RunningServer]:
    with running_server(tmp_path / "server", authority.write(tmp_path).settings) as server:
        yield server


def _caller(address: str, authority: Authority) -> RestClient:
    return RestClient(address, tls=ssl.create_default_context(cadata=authority.pem.decode()))


def test_tls_on_both_sides(server: RunningServer, authority: Authority, tmp_path: Path) -> None:
    (address,) = free_addresses(1)
    with running_envoy(tmp_path / "envoy", address, [server.address] * 3, authority):
        caller = _caller(address, authority)
        wait_until(lambda: caller.get("/image").status == 200, TIMEOUT, "Envoy to find the server")
        credentials = grpc.ssl_channel_credentials(authority.pem)
        with grpc.secure_channel(address, credentials, options=(("grpc.enable_http_proxy", 0),)) as channel:
            image_stub(channel).ListImages(pb.ListImagesRequest(), timeout=TIMEOUT)
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            RestClient(address).get("/image")


def test_replicas_with_certificates_of_another_authority_get_no_calls(server: RunningServer, tmp_path: Path) -> None:
    (address,) = free_addresses(1)
    other = Authority()
    with running_envoy(tmp_path / "envoy", address, [server.address] * 3, other):
        assert _caller(address, other).get("/image").status == 503
