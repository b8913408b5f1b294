"""Starting, watching and stopping a server."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.resource.methods import POLICIES
from tests.integration.conftest import asking
from tests.support.image_client import SMALL, ImageClient
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT, call_id_of, health_stub, raw_stream, raw_unary, refusal
from tests.support.servers import ANYBODY, Metadata, RunningServer, basic, environment, run_command, running_server
from tests.support.waiting import wait_until

_SERVICE = "pixyproxy.v1.ImageService"
_GENERATION_SERVICE = "pixyproxy.v1.GenerationService"
_DOWNLOAD_SERVICE = "pixyproxy.v1.ImageDownloadService"
_USAGE_SERVICE = "pixyproxy.v1.UsageService"
_HEALTH_SERVICES = ("", _SERVICE, _DOWNLOAD_SERVICE, _GENERATION_SERVICE, _USAGE_SERVICE)
_LONG_NAME = 2**20
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_CREDENTIALS: list[Metadata] = [ANYBODY, basic("nobody", "a wrong password"), (("authorization", "nonsense"),)]


# --- Health, reflection, channelz ------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", _CREDENTIALS, ids=["nobody", "wrong", "nonsense"])
def test_health_needs_no_credentials_and_looks_at_none(server: RunningServer, metadata: Metadata) -> None:
    stub = health_stub(server.channel)
    for service in _HEALTH_SERVICES:
        answer, call = stub.Check.with_call(
            health_pb2.HealthCheckRequest(service=service), metadata=metadata, timeout=TIMEOUT
        )
        assert answer.status == _SERVING
        assert call_id_of(call)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=service), metadata=metadata, timeout=TIMEOUT)
        assert next(watch).status == _SERVING
        watch.cancel()
    request = health_pb2.HealthListRequest()  # type: ignore[attr-defined]  # not in the stubs
    listed = stub.List(request, metadata=metadata, timeout=TIMEOUT).statuses
    assert {service: answer.status for service, answer in listed.items()} == dict.fromkeys(_HEALTH_SERVICES, _SERVING)


def test_health_knows_no_other_service(server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health_stub(server.channel).Check(health_pb2.HealthCheckRequest(service="another"), timeout=TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_watching_services_that_do_not_exist_takes_no_memory(server: RunningServer) -> None:
    before, names = server.rss, 128
    for number in range(names):
        name = str(number).ljust(_LONG_NAME, "x")
        watch = health_stub(server.channel).Watch(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()
    # gRPC itself holds some of the last requests for a while.
    wait_until(lambda: server.rss - before < names * _LONG_NAME / 4, TIMEOUT, "memory to be given back")


def test_bytes_that_are_no_health_check(server: RunningServer) -> None:
    for method in ("Check", "List", "Watch"):
        refused = refusal(raw_unary(server.channel, f"/grpc.health.v1.Health/{method}"), b"\xff")
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


def test_reflection_tells_what_is_served(server: RunningServer) -> None:
    database = ProtoReflectionDescriptorDatabase(server.channel)
    assert set(database.get_services()) == {
        _SERVICE,
        _DOWNLOAD_SERVICE,
        _GENERATION_SERVICE,
        _USAGE_SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    file = database.FindFileContainingSymbol(_SERVICE)
    assert [method.name for method in file.service[0].method] == [
        "CreateImage",
        "ImportImage",
        "GetImage",
        "ListImages",
        "GetImageContent",
        "BatchGetThumbnails",
        "UpdateImage",
        "DeleteImage",
    ]
    file = database.FindFileContainingSymbol(_GENERATION_SERVICE)
    assert [method.name for method in file.service[0].method] == [
        "CreateGeneration",
        "GetGeneration",
        "ListGenerations",
        "WatchGeneration",
        "CancelGeneration",
    ]


@pytest.mark.parametrize("metadata", _CREDENTIALS, ids=["nobody", "wrong", "nonsense"])
def test_reflection_needs_no_credentials_and_looks_at_none(server: RunningServer, metadata: Metadata) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([asked]), metadata=metadata, timeout=TIMEOUT)
    assert _SERVICE in {service.name for service in answer.list_services_response.service}


def test_channelz_is_served_only_when_asked_for(server: RunningServer, tmp_path: Path) -> None:
    asked = channelz_pb2.GetServersRequest()
    stub: Any = channelz_pb2_grpc.ChannelzStub(server.channel)
    refused = refusal(stub.GetServers, asked)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNIMPLEMENTED, "METHOD_UNKNOWN")
    with running_server(tmp_path, {"PIXYPROXY_CHANNELZ": "true"}) as open_server:
        stub = channelz_pb2_grpc.ChannelzStub(open_server.channel)
        assert len(stub.GetServers(asked, timeout=TIMEOUT).server) == 1
        _check_that_every_method_with_a_policy_is_served(open_server)


def _check_that_every_method_with_a_policy_is_served(server: RunningServer) -> None:
    for method in POLICIES:
        refused = refusal(raw_stream(server.channel, method), b"\xff", server.admin.metadata)
        assert (method, refused.reason) == (method, "MALFORMED_REQUEST")


def test_every_method_that_reflection_tells_of_has_a_policy(server: RunningServer) -> None:
    database = ProtoReflectionDescriptorDatabase(server.channel)
    served = {
        f"/{service.full_name}/{method.name}"
        for service in map(DescriptorPool(database).FindServiceByName, database.get_services())
        for method in service.methods
    }
    assert served == {name for name in POLICIES if "channelz" not in name}


# --- The port --------------------------------------------------------------------------------------------------------


def test_port_0_is_told_as_the_real_one(server: RunningServer) -> None:
    host, _, port = server.address.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


def test_a_second_server_on_the_port_does_not_start(server: RunningServer, tmp_path: Path) -> None:
    done = run_command("serve", env=environment(tmp_path, {"PIXYPROXY_LISTEN": server.address}))
    assert done.status == 1
    assert f"pixyproxy: PIXYPROXY_LISTEN: cannot listen on {server.address}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "listening" not in done.stdout
    # Nobody is shown a password of a server that did not come to be.
    assert "password" not in done.stdout


def test_a_server_on_ipv6(tmp_path: Path) -> None:
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with running_server(tmp_path, {"PIXYPROXY_LISTEN": "[::1]:0"}) as server:
        assert server.address.startswith("[::1]:")
        assert ImageClient(server, server.admin).create().author == "admin"


def _has_ipv6() -> bool:
    path = Path("/proc/net/if_inet6")
    return path.exists() and "00000000000000000000000000000001" in path.read_text(encoding="ascii")


# --- The end ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def held(prompt: str) -> str:
    """A prompt whose image comes when the stand-in is told to release it."""
    return f"{prompt} [[fault:hold]]"


def _begin(artist: ImageClient, prompt: str, stand_in: RunningStandIn) -> Any:
    """Begin a call, and return it when the provider is at work on it."""
    request = pb.CreateImageRequest(prompt=prompt, options=SMALL)
    call = artist.stub.CreateImage.future(request, metadata=artist.metadata, timeout=TIMEOUT)
    wait_until(lambda: stand_in.count(prompt), TIMEOUT, "the submission")
    return call


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_call_is_finished_before_the_end(
    stand_in: RunningStandIn, tmp_path: Path, held: str, number: signal.Signals
) -> None:
    with running_server(tmp_path, asking(stand_in)) as server:
        artist = ImageClient(server, server.admin)
        call = _begin(artist, held, stand_in)
        server.process.send_signal(number)
        # New calls are turned away, in a way that says that another server may take them.
        wait_until(lambda: _is_turned_away(server), TIMEOUT, "new calls to be turned away")
        assert server.process.poll() is None
        stand_in.release(held)
        assert call.result().image.prompt == held
        assert server.process.wait(TIMEOUT) == 0
        assert server.log_lines[-1].endswith("Stopped.")


def _is_turned_away(server: RunningServer) -> bool:
    try:
        with server.new_channel() as channel:
            health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
    except grpc.RpcError as error:
        # What comes in at the very moment of the end, gRPC cancels.
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return True
        raise
    return False


def test_who_watches_is_told_of_the_end(stand_in: RunningStandIn, tmp_path: Path, held: str) -> None:
    with running_server(tmp_path, asking(stand_in) | {"PIXYPROXY_DRAIN_TIMEOUT": "5"}) as server:
        watches: list[Iterator[health_pb2.HealthCheckResponse]] = []
        for service in ("", _SERVICE, _GENERATION_SERVICE, _USAGE_SERVICE):
            watch = health_stub(server.channel).Watch(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
            assert next(watch).status == _SERVING
            watches.append(watch)
        call = _begin(ImageClient(server, server.admin), held, stand_in)
        server.terminate()
        assert [next(watch).status for watch in watches] == [_NOT_SERVING] * len(watches)
        stand_in.release(held)
        assert call.result().image.prompt == held
        # Whoever goes on watching does not keep it beyond its time.
        assert server.process.wait(TIMEOUT) == 0


def test_what_is_under_way_when_the_time_is_over_is_stored_all_the_same(
    stand_in: RunningStandIn, tmp_path: Path, held: str
) -> None:
    with running_server(tmp_path, asking(stand_in) | {"PIXYPROXY_DRAIN_TIMEOUT": "0.2"}) as server:
        call = _begin(ImageClient(server, server.admin), held, stand_in)
        server.terminate()
        assert call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        stand_in.release(held)
        assert server.process.wait(TIMEOUT) == 0
    with running_server(tmp_path, asking(stand_in)) as server:
        artist = ImageClient(server, server.admin)
        (image,) = artist.page().images
        assert image.prompt == held
        assert artist.content(image.guid)[0].sha256 == image.sha256
    assert stand_in.count(held) == 1


def test_a_second_signal_ends_it_at_once(stand_in: RunningStandIn, tmp_path: Path, held: str) -> None:
    with running_server(tmp_path, asking(stand_in)) as server:
        _begin(ImageClient(server, server.admin), held, stand_in)
        server.terminate()
        wait_until(lambda: "Draining" in server.log, TIMEOUT, "the first signal to be heard")
        server.terminate()
        assert server.process.wait(TIMEOUT) == -signal.SIGTERM


def test_a_server_that_does_nothing_ends_at_once(tmp_path: Path) -> None:
    with running_server(tmp_path, {"PIXYPROXY_DRAIN_TIMEOUT": "3600"}) as server:
        ImageClient(server).page()
        assert server.stop() == 0


# --- The command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], ["serve", "db", "user"]),
        (["serve", "--help"], ["listening on HOST:PORT"]),
        (["user", "add", "--help"], ["--class", "--password-stdin"]),
    ],
    ids=str,
)
def test_help(tmp_path: Path, arguments: list[str], said: list[str]) -> None:
    done = run_command(*arguments, env=environment(tmp_path))
    assert (done.status, done.stderr) == (0, "")
    assert [word for word in said if word not in done.stdout] == []
    assert list(tmp_path.iterdir()) == [], "help makes nothing"


def test_the_installed_command(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("pixyproxy")
    done = subprocess.run([command, "nonsense"], env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nonsense" in done.stderr
