"""Databases that are away, or in the way, and disks that are full; and that all is well again afterwards."""

from __future__ import annotations

import resource
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import asking
from tests.support.database_servers import DatabaseKind, PrivateServer, fresh_database, private_server
from tests.support.image_client import SMALL, ImageClient, without_placeholder
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT, refusal_of
from tests.support.servers import RunningServer, running_server
from tests.support.waiting import wait_until

_WHILE_AWAY = "while it is away"


@pytest.fixture(scope="module", params=[DatabaseKind.MYSQL, DatabaseKind.MARIADB])
def own_database(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    """A database server that the tests stop as they like."""
    with private_server(request.param) as database:
        yield database


@pytest.fixture(scope="module")
def dependent(
    own_database: PrivateServer, stand_in: RunningStandIn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server on that database."""
    with fresh_database(own_database) as url:
        settings = {**asking(stand_in), "PIXYPROXY_DATABASE_URL": url, "PIXYPROXY_DATABASE_TIMEOUT": "1"}
        with running_server(tmp_path_factory.mktemp("dependent"), settings) as server:
            yield server


def _requests(guid: str) -> list[object]:
    return [
        pb.GetImageRequest(guid=guid),
        pb.ListImagesRequest(),
        pb.GetImageContentRequest(guid=guid),
        pb.UpdateImageRequest(guid=guid, filename="x.png"),
        pb.DeleteImageRequest(guid=guid),
        pb.CreateImageRequest(prompt=_WHILE_AWAY, options=SMALL),
    ]


def test_a_database_that_is_stopped_and_started_again(
    own_database: PrivateServer, dependent: RunningServer, stand_in: RunningStandIn
) -> None:
    client = ImageClient(dependent, dependent.admin)
    made = client.create()
    own_database.stop()
    try:
        for caller in (client, ImageClient(dependent)):
            for request in _requests(made.guid)[: 6 if caller is client else 3]:
                refused = caller.refused(request)
                assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
                assert refused.retry_after
                assert "mysql" not in refused.message.lower()
        # Not of all submissions, which may be of other servers.
        assert stand_in.count(_WHILE_AWAY) == 0, "nothing is asked for that could not be written down"
    finally:
        own_database.start()
    wait_until(lambda: _is_served(client, made.guid), TIMEOUT, "the service to resume")
    assert client.get(made.guid) == made
    assert client.content(made.guid)[0].sha256 == made.sha256


def test_a_database_that_does_not_answer_is_not_waited_for_long(
    own_database: PrivateServer, dependent: RunningServer
) -> None:
    client = ImageClient(dependent, dependent.admin)
    made = client.create()
    own_database.freeze()
    try:
        refused = client.refused(pb.GetImageRequest(guid=made.guid), timeout=20)
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    finally:
        own_database.thaw()
    # Whoever asks while another one still finds out that it is back is refused once more.
    wait_until(lambda: _is_served(client, made.guid), TIMEOUT, "the service to resume")
    assert client.get(made.guid) == made


def _is_served(client: ImageClient, guid: str) -> bool:
    try:
        client.get(guid)
    except grpc.RpcError as error:
        if refusal_of(error).reason == "DATABASE_UNAVAILABLE":
            return False
        raise
    return True


def test_an_image_that_comes_while_the_database_is_away_is_not_lost(
    own_database: PrivateServer, dependent: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    client = ImageClient(dependent, dependent.admin)
    prompt += " [[fault:slow=1]]"
    request = pb.CreateImageRequest(prompt=prompt, options=SMALL, request_id=str(uuid.uuid4()))
    files = dependent.image_files()
    call = client.stub.CreateImage.future(request, metadata=client.metadata, timeout=TIMEOUT)
    wait_until(lambda: stand_in.count(prompt), TIMEOUT, "the submission")
    own_database.stop()
    try:
        wait_until(lambda: dependent.image_files() - files, TIMEOUT, "the bytes to be stored")
        refused = client.refused(pb.ListImagesRequest())
        assert refused.reason == "DATABASE_UNAVAILABLE"
    finally:
        own_database.start()
    # The caller is told of the image, or where to find it; never that there is none.
    assert call.code() is grpc.StatusCode.OK or refusal_of(call.exception()).reason == "DATABASE_UNAVAILABLE"
    # It is committed by itself, and found with or without the request id.
    (guid,) = wait_until(lambda: client.guids(prompt=prompt.split()[2]), TIMEOUT, "the image to be committed")
    made = without_placeholder(client.stub.CreateImage(request, metadata=client.metadata, timeout=TIMEOUT).image)
    assert made == client.get(guid)
    assert client.content(guid)[0].sha256 == made.sha256
    assert stand_in.count(prompt) == 1


def test_a_writer_in_the_way_is_a_conflict(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        client = ImageClient(server, server.admin)
        made = client.create()
        with closing(sqlite3.connect(tmp_path / "pixyproxy.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            refused = client.refused(pb.UpdateImageRequest(guid=made.guid, tags=["a"]))
            assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "CONFLICT")
            # Readers are not in its way.
            assert client.get(made.guid) == made
            other.execute("ROLLBACK")
        assert list(client.update(made.guid, tags=["a"]).tags) == ["a"]


def test_changes_at_the_same_time_all_succeed(any_server: RunningServer) -> None:
    client = ImageClient(any_server, any_server.admin)
    made = client.create()
    barrier = threading.Barrier(4)
    failures: list[Exception] = []

    def change(number: int) -> None:
        barrier.wait(TIMEOUT)
        try:
            for round_ in range(5):
                client.update(made.guid, tags=[f"by {number}", f"{round_}"])
        except grpc.RpcError as error:
            failures.append(error)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert failures == []
    image = client.get(made.guid)
    assert list(image.tags)[1] == "4"
    assert client.guids(tags=list(image.tags), guid=made.guid) == [made.guid]


def test_a_full_disk(stand_in: RunningStandIn, prompt: str, tmp_path: Path) -> None:
    with running_server(tmp_path, asking(stand_in)) as server:
        client = ImageClient(server, server.admin)
        pid = server.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        # No file may grow beyond this, which to the writer looks like a disk that is full.
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (2 * 1024 * 1024, limits[1]))
        request = pb.CreateImageRequest(prompt=f"{prompt} [[fault:large=3000000]]")
        call = client.stub.CreateImage.future(request, metadata=client.metadata, timeout=TIMEOUT)
        waits = "cannot be stored yet; retrying for"
        wait_until(lambda: waits in server.log, TIMEOUT, "the image to wait")
        assert client.guids() == []
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        made = call.result().image
        assert made.size_bytes == 3_000_000
        assert stand_in.count(request.prompt) == 1
        wait_until(lambda: len(server.stored_files()) == 1, TIMEOUT, "what was half-written to be removed")
        assert client.content(made.guid)[0].sha256 == made.sha256
