"""TLS: who may connect, and a certificate that is renewed while the server runs."""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.support.certificates import Authority, CertificateFiles, secure_channel, write_key
from tests.support.rpc import TIMEOUT, health_stub
from tests.support.servers import RunningServer, environment, image_stub, run_command, running_server
from tests.support.waiting import wait_until

_SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Who signed the server's certificate."""
    return Authority()


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> CertificateFiles:
    """The certificate of a server."""
    return authority.write(tmp_path)


@pytest.fixture
def tls_server(files: CertificateFiles, tmp_path: Path) -> Iterator[RunningServer]:
    """A server that serves TLS beyond loopback."""
    with running_server(tmp_path, files.settings | {"PIXYPROXY_LISTEN": "0.0.0.0:0"}) as server:
        server.address = server.address.replace("0.0.0.0", "localhost")
        yield server


def _check(channel: grpc.Channel) -> int:
    answer = health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
    return int(answer.status)


def _is_refused(channel: grpc.Channel) -> bool:
    with pytest.raises(grpc.RpcError) as caught:
        _check(channel)
    return caught.value.code() is grpc.StatusCode.UNAVAILABLE


def _serial_shown(server: RunningServer, trusted: bytes) -> str:
    """The serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cadata=trusted.decode())
    context.set_alpn_protocols(["h2"])
    host, _, port = server.address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=TIMEOUT) as raw,
        context.wrap_socket(raw, server_hostname=host) as connection,
    ):
        shown = connection.getpeercert()
    assert shown is not None
    return str(shown["serialNumber"])


# --- Who may connect -------------------------------------------------------------------------------------------------


def test_a_whole_journey_over_tls(tls_server: RunningServer, authority: Authority) -> None:
    metadata = tls_server.admin.metadata
    with secure_channel(tls_server, authority.pem) as channel:
        stub = image_stub(channel)
        request = pb.CreateImageRequest(prompt="a lighthouse", options=pb.GenerationOptions(size="64x64"))
        made = stub.CreateImage(request, metadata=metadata, timeout=TIMEOUT).image
        chunks = stub.GetImageContent(pb.GetImageContentRequest(guid=made.guid), metadata=metadata, timeout=TIMEOUT)
        assert sum(len(chunk.data) for chunk in chunks) == made.size_bytes


def test_a_client_that_trusts_another_authority_does_not_connect(tls_server: RunningServer) -> None:
    with secure_channel(tls_server, Authority().pem) as channel:
        assert _is_refused(channel)


def test_plain_text_is_refused(tls_server: RunningServer) -> None:
    with tls_server.new_channel() as channel:
        assert _is_refused(channel)


@pytest.mark.parametrize(("version", "is_served"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_tls_versions(tls_server: RunningServer, authority: Authority, version: str, is_served: bool) -> None:
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    # So that this side would speak the old version, too.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    host, _, port = tls_server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT) as raw:
        if is_served:
            with context.wrap_socket(raw, server_hostname=host) as connection:
                assert connection.selected_alpn_protocol() == "h2"
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(raw, server_hostname=host)


def test_clients_must_show_a_certificate_where_that_is_set(
    authority: Authority, files: CertificateFiles, tmp_path: Path
) -> None:
    clients = Authority()
    client_ca = tmp_path / "clients.pem"
    client_ca.write_bytes(clients.pem)
    with running_server(tmp_path, files.settings | {"PIXYPROXY_TLS_CLIENT_CA": str(client_ca)}) as server:
        with secure_channel(server, authority.pem, clients.issue()) as channel:
            assert _check(channel) == _SERVING
        with secure_channel(server, authority.pem) as channel:
            assert _is_refused(channel)
        with secure_channel(server, authority.pem, Authority().issue()) as channel:
            assert _is_refused(channel)
        # Whose certificates count can be changed as well.
        others = Authority()
        client_ca.write_bytes(others.pem)
        with secure_channel(server, authority.pem, others.issue()) as channel:
            assert _check(channel) == _SERVING
        with secure_channel(server, authority.pem, clients.issue()) as channel:
            assert _is_refused(channel)


# --- Renewal ---------------------------------------------------------------------------------------------------------


def test_a_renewed_certificate_is_shown_to_new_connections(
    tls_server: RunningServer, authority: Authority, tmp_path: Path
) -> None:
    with secure_channel(tls_server, authority.pem) as channel:
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert next(watch).status == _SERVING
        before = _serial_shown(tls_server, authority.pem)

        authority.write(tmp_path)

        assert _serial_shown(tls_server, authority.pem) != before
        # Whoever was connected still is.
        assert _check(channel) == _SERVING
        assert watch.is_active()
    told = "The TLS files have changed: new connections get the new certificate."
    wait_until(lambda: told in tls_server.log, TIMEOUT, "the log to say so")


def test_the_old_certificate_is_kept_while_the_new_one_cannot_be_served_with(
    tls_server: RunningServer, authority: Authority, files: CertificateFiles
) -> None:
    before = _serial_shown(tls_server, authority.pem)
    certificates, key = authority.issue()

    files.certificate.write_bytes(certificates)  # Its key is still the old one's.
    assert [_serial_shown(tls_server, authority.pem) for _ in range(3)] == [before] * 3
    complaints = [line for line in tls_server.log_lines if " ERROR " in line]
    assert len(complaints) == 1, "once, not at each connection"
    assert "PIXYPROXY_TLS_KEY" in complaints[0]
    files.certificate.write_text("nonsense")
    assert _serial_shown(tls_server, authority.pem) == before
    files.certificate.unlink()
    assert _serial_shown(tls_server, authority.pem) == before

    files.certificate.write_bytes(certificates)
    write_key(files.key, key)
    assert _serial_shown(tls_server, authority.pem) != before


def test_a_certificate_that_is_swapped_by_a_link_is_noticed(authority: Authority, tmp_path: Path) -> None:
    """As Kubernetes renews what it mounts."""
    current = tmp_path / "current"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        authority.write(tmp_path / name)
    current.symlink_to("one")
    files = CertificateFiles(current / "certificate.pem", current / "key.pem")
    with running_server(tmp_path, files.settings) as server:
        before = _serial_shown(server, authority.pem)
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").replace(current)
        assert _serial_shown(server, authority.pem) != before


# --- What is wrong with the files ------------------------------------------------------------------------------------


def test_a_server_does_not_start_with_files_that_do_not_fit(authority: Authority, tmp_path: Path) -> None:
    files = authority.write(tmp_path)
    write_key(files.key, authority.issue()[1])
    done = run_command("serve", env=environment(tmp_path, files.settings))
    assert done.status == 1
    assert f"PIXYPROXY_TLS_KEY: {files.key} is not the key of the first certificate in" in done.stderr
    assert "Traceback" not in done.stderr
    assert "PRIVATE KEY" not in done.stderr


def test_an_operator_is_warned_of_what_can_be_served_with(authority: Authority, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    files = authority.write(tmp_path, not_before=now - timedelta(days=90), not_after=now - timedelta(days=1))
    files.key.chmod(0o644)
    with running_server(tmp_path, files.settings) as server:
        wait_until(lambda: "expired" in server.log, TIMEOUT, "the warning")
        assert "WARNING" in next(line for line in server.log_lines if "the certificate expired on" in line)
        wait_until(lambda: "all users of this machine can read the file" in server.log, TIMEOUT, "the other warning")
