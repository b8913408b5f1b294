"""A server whose images lie in an object store, behind a network where things go wrong."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import asking
from tests.support import faulty_http as http
from tests.support.faulty_http import Fault, FaultyHttp, faulty_http
from tests.support.image_client import SMALL, ImageClient
from tests.support.object_stores import RunningObjectStore, s3_env
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT
from tests.support.servers import environment, run_command, running_server
from tests.support.waiting import wait_until

LARGE = "[[fault:large=3000000]]"
_SILENCE = "2"
"""Seconds that the store may be silent: more than it takes on a busy machine, and soon over where it says nothing."""


@pytest.fixture(scope="module")
def network(s3_server: RunningObjectStore) -> Iterator[FaultyHttp]:
    with faulty_http(s3_server.port) as network:
        yield network


@pytest.fixture(scope="module")
def client(
    s3_server: RunningObjectStore,
    network: FaultyHttp,
    stand_in: RunningStandIn,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ImageClient]:
    settings = {
        **asking(stand_in),
        **s3_env(network.port),
        "PIXYPROXY_IMAGE_STORE": f"{s3_server.url}/{uuid.uuid4().hex}",
        "PIXYPROXY_IMAGE_STORE_TIMEOUT": _SILENCE,
    }
    with running_server(tmp_path_factory.mktemp("object-store"), settings) as server:
        yield ImageClient(server, server.admin)


@pytest.fixture(autouse=True)
def calm(network: FaultyHttp) -> Iterator[None]:
    yield
    network.recover()


def test_an_image_goes_in_and_out(client: ImageClient, prompt: str) -> None:
    made = client.create(f"{prompt} {LARGE}")

    info, data = client.content(made.guid)
    assert (info.sha256, len(data)) == (made.sha256, 3_000_000)
    assert client.content(made.guid, read_offset=1_000_000, read_limit=70_000)[1] == data[1_000_000:1_070_000]
    client.delete(made.guid)
    assert client.refused(pb.GetImageContentRequest(guid=made.guid)).reason == "IMAGE_NOT_FOUND"


@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        (http.flip, grpc.StatusCode.DATA_LOSS, "CONTENT_DAMAGED"),
        (http.shorten, grpc.StatusCode.DATA_LOSS, "CONTENT_DAMAGED"),
        (http.refuse(404, "NoSuchKey"), grpc.StatusCode.DATA_LOSS, "CONTENT_DAMAGED"),
        (http.refuse(503, "SlowDown"), grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE"),
        (http.be_silent, grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE"),
        (http.hang_up, grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE"),
        (http.refuse(403, "AccessDenied"), grpc.StatusCode.FAILED_PRECONDITION, "STORAGE_MISCONFIGURED"),
    ],
    ids=["flipped", "short", "missing", "503", "silent", "cut", "denied"],
)
def test_a_read_that_fails_says_why(
    client: ImageClient, network: FaultyHttp, prompt: str, fault: Fault, code: grpc.StatusCode, reason: str
) -> None:
    made = client.create(f"{prompt} {LARGE}")
    network.will(fault, "GET", made.guid)

    refused = client.refused(pb.GetImageContentRequest(guid=made.guid))

    assert (refused.code, refused.reason) == (code, reason)
    assert (refused.retry_after is not None) == (code is grpc.StatusCode.UNAVAILABLE)
    assert client.get(made.guid) == made
    network.recover()
    assert client.content(made.guid)[0].sha256 == made.sha256


def test_inputs_of_an_edit_are_read_from_the_store(client: ImageClient, stand_in: RunningStandIn, prompt: str) -> None:
    sources = [client.create(f"{number} {prompt} {LARGE}") for number in range(3)]
    inputs = [pb.ImageInput(guid=source.guid) for source in sources]
    made = client.create(prompt, inputs=inputs)
    assert list(made.source_guids) == [source.guid for source in sources]
    [sent] = stand_in.submissions(prompt)["requests"]
    assert [one["sha256"] for one in sent["image"]] == [source.sha256 for source in sources]


@pytest.mark.parametrize(
    ("fault", "code", "reason", "field"),
    [
        (http.flip, grpc.StatusCode.DATA_LOSS, "CONTENT_DAMAGED", "inputs[1]"),
        (http.shorten, grpc.StatusCode.DATA_LOSS, "CONTENT_DAMAGED", "inputs[1]"),
        (http.refuse(404, "NoSuchKey"), grpc.StatusCode.DATA_LOSS, "CONTENT_DAMAGED", "inputs[1]"),
        (http.refuse(503, "SlowDown"), grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE", None),
        (http.be_silent, grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE", None),
        (http.hang_up, grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE", None),
    ],
    ids=["flipped", "short", "missing", "503", "silent", "cut"],
)
def test_an_input_that_cannot_be_read_costs_nothing(
    client: ImageClient,
    network: FaultyHttp,
    stand_in: RunningStandIn,
    prompt: str,
    fault: Fault,
    code: grpc.StatusCode,
    reason: str,
    field: str | None,
) -> None:
    sources = [client.create(f"{number} {prompt} {LARGE}").guid for number in range(2)]
    request = pb.CreateImageRequest(
        prompt=prompt,
        request_id=str(uuid.uuid4()),
        options=SMALL,
        inputs=[pb.ImageInput(guid=guid) for guid in sources],
    )
    network.will(fault, "GET", sources[1])
    refused = client.refused(request)
    assert (refused.code, refused.reason, refused.metadata.get("field")) == (code, reason, field)
    assert stand_in.count(prompt) == 0
    network.recover()
    made = client.stub.CreateImage(request, metadata=client.metadata, timeout=TIMEOUT).image
    assert list(made.source_guids) == sources
    assert stand_in.count(prompt) == 1


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (http.refuse(507, "XMinioStorageFull"), "STORAGE_FULL"),
        (http.refuse(403, "AccessDenied"), "STORAGE_MISCONFIGURED"),
        (http.be_silent, "STORAGE_UNAVAILABLE"),
    ],
    ids=["full", "denied", "silent"],
)
def test_nothing_is_paid_for_that_could_not_be_kept(
    s3_server: RunningObjectStore,
    network: FaultyHttp,
    stand_in: RunningStandIn,
    tmp_path: Path,
    prompt: str,
    fault: Fault,
    reason: str,
) -> None:
    settings = {
        **asking(stand_in),
        **s3_env(network.port),
        "PIXYPROXY_IMAGE_STORE": s3_server.url,
        "PIXYPROXY_IMAGE_STORE_TIMEOUT": _SILENCE,
    }
    with running_server(tmp_path, settings) as server:
        client = ImageClient(server, server.admin)
        request = pb.CreateImageRequest(prompt=prompt, request_id=str(uuid.uuid4()), options=SMALL)
        network.will(fault, "PUT")
        assert client.refused(request).reason == reason
        assert stand_in.count(prompt) == 0

        network.recover()
        client.stub.CreateImage(request, metadata=client.metadata, timeout=TIMEOUT)
        assert stand_in.count(prompt) == 1


@pytest.mark.parametrize(
    "fault",
    [http.refuse(500), http.refuse(403, "ExpiredToken"), http.be_silent, http.lose_answer, http.pretend],
    ids=["500", "denied", "silent", "answer lost", "not written"],
)
def test_an_image_waits_for_a_store_that_is_away(
    client: ImageClient, network: FaultyHttp, stand_in: RunningStandIn, prompt: str, fault: Fault
) -> None:
    prompt += " [[fault:hold]]"
    request = pb.CreateImageRequest(prompt=prompt, request_id=str(uuid.uuid4()), options=SMALL)
    before = network.count("PUT")
    call = client.stub.CreateImage.future(request, metadata=client.metadata, timeout=TIMEOUT)
    wait_until(lambda: stand_in.count(prompt), TIMEOUT, "the submission")
    network.will(fault, "PUT")
    stand_in.release(prompt)
    # By then more has failed than the probe for room and the first manifest.
    wait_until(lambda: network.count("PUT") > before + 4, TIMEOUT, "the image to be refused")
    network.recover()

    made = call.result().image
    assert client.content(made.guid)[0].sha256 == made.sha256
    assert stand_in.count(prompt) == 1


def test_a_store_that_is_away_does_not_keep_a_server_from_starting(
    s3_server: RunningObjectStore, network: FaultyHttp, tmp_path: Path
) -> None:
    network.will(http.refuse(503), "GET")
    settings = {**s3_env(network.port), "PIXYPROXY_IMAGE_STORE": f"{s3_server.url}/{uuid.uuid4().hex}"}
    with running_server(tmp_path, settings | {"PIXYPROXY_IMAGE_STORE_TIMEOUT": _SILENCE}) as server:
        wait_until(lambda: "The object store failed" in server.log, TIMEOUT, "the warning")
        network.recover()
        client = ImageClient(server, server.admin)
        assert client.content(client.create().guid)[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "a-wrong-one"}, "s3://pictures cannot be used"),
        ({"PIXYPROXY_IMAGE_STORE": "s3://another-bucket"}, "NoSuchBucket"),
        ({"AWS_ALLOW_HTTP": "false"}, "s3://pictures cannot be used"),
        ({"PIXYPROXY_IMAGE_STORE": "s3://key:a-wrong-one@pictures"}, "must hold no credentials"),
    ],
    ids=["credentials", "bucket", "no TLS", "credentials in the URL"],
)
def test_a_server_does_not_start_with_a_store_that_refuses_it(
    s3_server: RunningObjectStore, tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    env = environment(tmp_path, {**s3_server.env, "PIXYPROXY_IMAGE_STORE": s3_server.url, **changes})

    done = run_command("serve", env=env)

    assert done.status == 1
    assert "PIXYPROXY_IMAGE_STORE: " in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "a-wrong-one" not in done.stderr


def test_azure(azure_server: RunningObjectStore, tmp_path: Path) -> None:
    with running_server(tmp_path, {**azure_server.env, "PIXYPROXY_IMAGE_STORE": azure_server.url}) as server:
        client = ImageClient(server, server.admin)
        made = client.create()
        assert client.content(made.guid)[0].sha256 == made.sha256
        client.delete(made.guid)
