"""The contract as tools get it, and the guard that keeps clients of the last release working."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_download_service_pb2 as dpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2 as upb

from tests.clients.projects import ROOT, SERVICE_CONFIG, require_tools, write_descriptor
from tests.support.grpcurl import grpcurl_folder
from tests.support.leaving_out import Required, leave_out
from tests.support.rpc import TIMEOUT

_PROTO = "protos/pixyproxy/v1/image_service.proto"
_BUF = "buf, which guards the contract"


# --- make descriptor -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def descriptor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make descriptor` writes."""
    path = tmp_path_factory.mktemp("descriptor") / "dist" / "pixyproxy.v1.binpb"
    write_descriptor(path)
    return path


def test_the_descriptor_needs_nothing_else(descriptor: Path) -> None:
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptor.read_bytes()).file
    names = [file.name for file in files]

    assert {"pixyproxy/v1/image_service.proto", "google/rpc/error_details.proto", "google/rpc/status.proto"} < {*names}
    for number, file in enumerate(files):
        assert set(file.dependency) <= set(names[:number])


def test_the_descriptor_keeps_the_comments(descriptor: Path) -> None:
    described = subprocess.run(
        [grpcurl_folder() / "grpcurl", "-protoset", descriptor, "describe", "pixyproxy.v1.GetImageContentRequest"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )

    assert "  // The first byte wanted." in described.stdout


# --- make lint-proto -------------------------------------------------------------------------------------------------


def lint_with(changes: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `make lint-proto` on a copy of the contract in which some texts are replaced by others."""
    require_tools(_BUF, "npm")
    shutil.copytree(ROOT / "protos", folder / "protos")
    for name in ("Makefile", "buf.yaml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "third_party", folder / "third_party")
    text = (folder / _PROTO).read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / _PROTO).write_text(text)
    linted = subprocess.run(["make", "lint-proto"], cwd=folder, capture_output=True, text=True, check=False)
    if "npm error" in linted.stderr:
        leave_out(_BUF, "npm cannot load it", Required.CLIENTS)
    return linted


def test_what_breaks_released_clients_does_not_pass(tmp_path: Path) -> None:
    changes = {
        "  bool not_modified = 6;\n": "",
        "int64 size_bytes = 4": "int32 size_bytes = 4",
        "VISIBILITY_PUBLIC = 2": "VISIBILITY_PUBLIC = 3",
    }
    linted = lint_with(changes, tmp_path)

    assert linted.returncode != 0
    for complaint in (
        'Previously present field "6" with name "not_modified" on message "ContentInfo" was deleted',
        'on message "ContentInfo" changed type from "int64" to "int32"',
        'Previously present enum value "2" on enum "Visibility" was deleted',
    ):
        assert complaint in linted.stdout


# --- the service config ----------------------------------------------------------------------------------------------


def test_what_grpc_repeats_is_what_may_be_repeated() -> None:
    (config,) = json.loads(SERVICE_CONFIG.read_text())["methodConfig"]
    services = [service for file in (pb, dpb, gpb, upb) for service in file.DESCRIPTOR.services_by_name.values()]
    once = {
        *(("ImageService", method) for method in ("CreateImage", "DeleteImage", "ImportImage")),
        ("GenerationService", "CreateGeneration"),
    }

    assert {(name["service"], name["method"]) for name in config["name"]} == {
        (service.full_name, method.name)
        for service in services
        for method in service.methods
        if (service.name, method.name) not in once
    }
    assert config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
