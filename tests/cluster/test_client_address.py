"""Clients behind a real balancer with the configuration that ships: whom failed sign-ins are counted for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.cluster.fleet import Balancer
from tests.faults.tcp_proxy import tcp_proxy
from tests.support.addresses import free_addresses
from tests.support.envoy import running_envoy
from tests.support.haproxy import running_haproxy
from tests.support.image_client import SMALL
from tests.support.rpc import TIMEOUT, refusal
from tests.support.servers import Login, Metadata, RunningServer, image_stub, running_server
from tests.support.waiting import wait_until

_ATTACKER, _USER = "127.0.0.2", "127.0.0.3"
_MAX_FAILURES = 3


@dataclass(frozen=True)
class Site:
    """A server behind a balancer."""

    server: RunningServer
    balancer: str

    @contextlib.contextmanager
    def images_from(self, address: str) -> Iterator[Any]:
        """The image service, as somebody at another address reaches it."""
        host, _, port = self.balancer.rpartition(":")
        with (
            tcp_proxy(host, int(port), address) as client,
            grpc.insecure_channel(f"127.0.0.1:{client.port}", options=(("grpc.enable_http_proxy", 0),)) as channel,
        ):
            yield image_stub(channel)


@pytest.fixture(params=[running_haproxy, running_envoy], ids=["haproxy", "envoy"])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    run_balancer: Balancer = request.param
    (balancer,) = free_addresses(1)
    settings = {"PIXYPROXY_TRUSTED_PROXIES": "127.0.0.1", "PIXYPROXY_MAX_FAILED_SIGN_INS": str(_MAX_FAILURES)}
    with (
        running_server(tmp_path / "server", settings) as server,
        run_balancer(tmp_path / "balancer", balancer, [server.address] * 3),
    ):
        site = Site(server, balancer)
        with site.images_from(_USER) as images:
            wait_until(lambda: _is_served(images), TIMEOUT, "the balancer to find the server")
        yield site


def _is_served(images: Any) -> bool:
    try:
        images.ListImages(pb.ListImagesRequest(), timeout=TIMEOUT)
    except grpc.RpcError:
        return False
    return True


def _spoofed(login: Login, address: str) -> Metadata:
    return *login.metadata, ("x-forwarded-for", address)


def test_failures_of_one_client_do_not_count_for_another(site: Site) -> None:
    login = site.server.new_login()
    wrong = Login(login.username, "a wrong password")

    with site.images_from(_ATTACKER) as images:
        # Whatever the attacker says of where it comes from.
        for claim in ("198.51.100.1", _USER, "127.0.0.1"):
            refused = refusal(images.ListImages, pb.ListImagesRequest(), _spoofed(wrong, claim))
            assert refused.reason == "CREDENTIALS_INVALID"
        for metadata in (wrong.metadata, login.metadata, _spoofed(login, "198.51.100.2"), _spoofed(login, "nonsense")):
            assert refusal(images.ListImages, pb.ListImagesRequest(), metadata).reason == "TOO_MANY_SIGN_INS"

    with site.images_from(_USER) as images:
        request = pb.CreateImageRequest(prompt="behind a balancer", options=SMALL)
        image = images.CreateImage(request, metadata=_spoofed(login, _ATTACKER), timeout=TIMEOUT).image
        messages = images.GetImageContent(
            pb.GetImageContentRequest(guid=image.guid), metadata=login.metadata, timeout=TIMEOUT
        )
        assert sum(len(message.data) for message in messages) == image.size_bytes
    assert "x-forwarded-for" not in site.server.log
