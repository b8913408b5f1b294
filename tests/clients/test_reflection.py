"""Clients that know nothing of the API learn it from the server, by either name that reflection has."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2

from tests.support.grpcurl import grpcurl_folder
from tests.support.rpc import TIMEOUT
from tests.support.servers import RunningServer, running_server

_PACKAGES = ["grpc.reflection.v1", "grpc.reflection.v1alpha"]
_OURS = "pixyproxy.v1.ImageService"
_GENERATIONS = "pixyproxy.v1.GenerationService"
_DOWNLOADS = "pixyproxy.v1.ImageDownloadService"
_USAGE = "pixyproxy.v1.UsageService"
_SERVICES = [
    "grpc.health.v1.Health",
    *(f"{package}.ServerReflection" for package in _PACKAGES),
    _GENERATIONS,
    _DOWNLOADS,
    _OURS,
    _USAGE,
]
_METHODS = [
    "BatchGetThumbnails",
    "CreateImage",
    "DeleteImage",
    "GetImage",
    "GetImageContent",
    "ImportImage",
    "ListImages",
    "UpdateImage",
]


def ask(channel: grpc.Channel, package: str, kinds: Any = reflection_pb2, **question: str) -> Any:
    """Ask reflection under one of its names, with message types of its own or with v1alpha's."""
    method = channel.stream_stream(
        f"/{package}.ServerReflection/ServerReflectionInfo",
        request_serializer=kinds.ServerReflectionRequest.SerializeToString,
        response_deserializer=kinds.ServerReflectionResponse.FromString,
    )
    (answer,) = method(iter([kinds.ServerReflectionRequest(**question)]), timeout=TIMEOUT)
    return answer


def described(channel: grpc.Channel, package: str, symbol: str) -> descriptor_pool.DescriptorPool:
    """Return a pool of nothing but the files that describe a symbol."""
    answer = ask(channel, package, file_containing_symbol=symbol)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in answer.file_descriptor_response.file_descriptor_proto
    ]
    pool = descriptor_pool.DescriptorPool()
    # A file comes before those that it needs.
    for file in reversed(files):
        pool.Add(file)
    return pool


@pytest.mark.parametrize("package", _PACKAGES)
def test_both_names_list_what_is_served(server: RunningServer, package: str) -> None:
    answer = ask(server.channel, package, list_services="")

    assert [service.name for service in answer.list_services_response.service] == _SERVICES


@pytest.mark.parametrize("package", _PACKAGES)
def test_both_names_describe_the_api(server: RunningServer, package: str) -> None:
    service = described(server.channel, package, _OURS).FindServiceByName(_OURS)

    assert sorted(method.name for method in service.methods) == _METHODS


@pytest.mark.parametrize("package", _PACKAGES)
def test_each_describes_itself_so_that_a_client_can_be_made_of_it(server: RunningServer, package: str) -> None:
    name = f"{package}.ServerReflection"
    pool = described(server.channel, package, name)
    method = pool.FindServiceByName(name).methods_by_name["ServerReflectionInfo"]
    assert (method.input_type.file.package, method.output_type.file.package) == (package, package)

    class Kinds:
        ServerReflectionRequest = message_factory.GetMessageClass(method.input_type)
        ServerReflectionResponse = message_factory.GetMessageClass(method.output_type)

    answer = ask(server.channel, package, Kinds, list_services="")

    assert answer.DESCRIPTOR.full_name == f"{package}.ServerReflectionResponse"
    assert [service.name for service in answer.list_services_response.service] == _SERVICES


@pytest.mark.parametrize("package", _PACKAGES)
@pytest.mark.parametrize(
    "symbol",
    [
        f"{_OURS}.GetImage",
        "pixyproxy.v1.ImageDetail",
        "pixyproxy.v1.ImageDetail.guid",
        "pixyproxy.v1.ImportImageRequest.part",
        "pixyproxy.v1.Visibility",
        "pixyproxy.v1.VISIBILITY_PUBLIC",
    ],
)
def test_every_kind_of_symbol_is_found(server: RunningServer, package: str, symbol: str) -> None:
    assert described(server.channel, package, symbol).FindServiceByName(_OURS)


@pytest.mark.parametrize("package", _PACKAGES)
@pytest.mark.parametrize(
    "symbol", ["pixyproxy.v1.Nothing", f"{_OURS}.Nothing", f"{_OURS}.GetImage.guid", "Nothing", "", ".", "\N{SNOWMAN}"]
)
def test_what_is_not_there_is_not_found(server: RunningServer, package: str, symbol: str) -> None:
    answer = ask(server.channel, package, file_containing_symbol=symbol)

    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_grpcurl_describes_a_method(server: RunningServer) -> None:
    described_method = subprocess.run(
        [grpcurl_folder() / "grpcurl", "-plaintext", server.address, "describe", f"{_OURS}.GetImage"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert "rpc GetImage ( .pixyproxy.v1.GetImageRequest ) returns ( .pixyproxy.v1.GetImageResponse );" in (
        described_method.stdout
    )


def test_grpcurl_gets_along_with_v1(tmp_path: Path) -> None:
    # A server of its own: in a shared one's log, lines of calls before come some milliseconds late.
    with running_server(tmp_path) as server:
        listed = subprocess.run(
            [grpcurl_folder() / "grpcurl", "-plaintext", server.address, "list"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=True,
        )
    assert listed.stdout.splitlines() == _SERVICES
    # It asks by the name v1 first, and by the other one where that is refused.
    ends = [line for line in server.log_lines if "REQUEST END" in line]
    assert len(ends) == 1
    assert "[ServerReflectionInfo:" in ends[0]
    assert "REQUEST END OK" in ends[0]
