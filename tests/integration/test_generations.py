"""Generations on several servers: started on one, watched on another, cancelled on a third, and outliving them all."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_status import rpc_status
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import asking
from tests.integration.windows import SMALL_WINDOW
from tests.support.database_servers import DatabaseServer, fresh_database
from tests.support.generation_client import (
    CANCELLED,
    FAILED,
    OUTCOME_UNKNOWN,
    QUEUED,
    SUBMITTED,
    SUCCEEDED,
    GenerationClient,
    Watch,
    generation_stub,
)
from tests.support.image_client import ImageClient, without_placeholder
from tests.support.openai_stand_in import RunningStandIn, Submission, make_partial
from tests.support.rpc import TIMEOUT, Refusal, call_id_of, refusal_of
from tests.support.servers import RunningServer, running_server
from tests.support.waiting import wait_until

_ROOT = Path(__file__).parents[2]
_ONE_SLOT = {"PIXYPROXY_MAX_GENERATIONS": "1"}
_WATCHERS = 200


@pytest.fixture(scope="module")
def shared(
    mysql_server: DatabaseServer, stand_in: RunningStandIn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The settings of servers on one database and one image folder, each of which submits one request at a time."""
    with fresh_database(mysql_server) as url:
        yield {
            **asking(stand_in),
            **_ONE_SLOT,
            "PIXYPROXY_DATABASE_URL": url,
            "PIXYPROXY_IMAGE_STORE": str(tmp_path_factory.mktemp("images")),
        }


@pytest.fixture(scope="module")
def three(shared: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RunningServer]]:
    """Three such servers."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(running_server(tmp_path_factory.mktemp(f"server-{number}"), shared))
            for number in range(3)
        ]


@pytest.fixture
def clients(three: list[RunningServer]) -> list[GenerationClient]:
    """The same caller on each of them."""
    login = three[0].new_login()
    return [GenerationClient(server, login) for server in three]


@contextlib.contextmanager
def _busy(clients: list[GenerationClient], stand_in: RunningStandIn) -> Iterator[list[gpb.Generation]]:
    """Let every server have submitted as much as it may, until the end."""
    prompts = [f"busy {uuid.uuid4()} [[fault:hold]]" for _ in clients]
    started = [clients[0].start(prompt) for prompt in prompts]
    for generation in started:
        clients[0].wait_for(generation.guid, SUBMITTED)
    try:
        yield started
    finally:
        for prompt in prompts:
            stand_in.release(prompt)
    for generation in started:
        clients[0].wait_for(generation.guid, SUCCEEDED)


def _partial(prompt: str, index: int) -> tuple[int, bytes]:
    """A partial image as a watcher sees it."""
    return index, make_partial(Submission({"prompt": prompt, "size": "64x64"}, {}), index)


# --- Across servers --------------------------------------------------------------------------------------------------


def test_a_generation_is_started_on_one_server_watched_on_another_and_cancelled_on_a_third(
    clients: list[GenerationClient], stand_in: RunningStandIn, prompt: str
) -> None:
    starter, watcher, canceller = clients
    with _busy(clients, stand_in):
        started = starter.start(prompt, request_id=str(uuid.uuid4()))
        watch = watcher.watch(started.guid)
        assert watch.next() == QUEUED
        cancelled = canceller.cancel(started.guid)
        assert watch.to_the_end() == [QUEUED, CANCELLED]
        assert watch.generations == [started, cancelled]
        # The same answer, wherever and however often.
        assert [client.cancel(started.guid) for client in clients] == [cancelled] * 3
        assert [client.get(request_id=started.request_id) for client in clients] == [cancelled] * 3
    assert stand_in.count(prompt) == 0
    assert (cancelled.state, cancelled.attempts, cancelled.HasField("submitted_at")) == (CANCELLED, 0, False)
    refused = ImageClient(starter.server).stub.CreateImage.future(
        started.request, metadata=starter.metadata, timeout=TIMEOUT
    )
    told = refusal_of(refused.exception())
    assert (told.code, told.reason) == (grpc.StatusCode.CANCELLED, "GENERATION_CANCELLED")


def test_watchers_on_all_servers_see_every_partial_image(
    clients: list[GenerationClient], stand_in: RunningStandIn, prompt: str
) -> None:
    prompt += " [[fault:hold=0,1,2,3]]"
    started = clients[0].start(prompt, partial_images=3)
    watches = [client.watch(started.guid) for client in clients]
    for watch in watches:
        watch.until(SUBMITTED)
    for index in range(3):
        stand_in.release(prompt)
        for watch in watches:
            assert watch.next() == _partial(prompt, index)
    stand_in.release(prompt)
    for watch in watches:
        assert [event for event in watch.to_the_end() if event != QUEUED] == [
            SUBMITTED,
            *(_partial(prompt, index) for index in range(3)),
            SUCCEEDED,
        ]
    image = watches[0].generations[-1].image
    stub, request = ImageClient(clients[0].server).stub, pb.GetImageRequest(guid=started.image_guid)
    found = stub.GetImage(request, metadata=clients[0].metadata, timeout=TIMEOUT).image
    assert without_placeholder(found) == image
    assert stand_in.count(prompt) == 1


def test_a_broken_watch_is_resumed_on_another_server_with_its_partial_images(
    clients: list[GenerationClient], stand_in: RunningStandIn, prompt: str
) -> None:
    prompt += " [[fault:hold=1,2]]"
    started = clients[0].start(prompt, partial_images=2)
    broken = clients[1].watch(started.guid)
    broken.until(_partial(prompt, 0))
    broken.call.cancel()
    with pytest.raises(grpc.RpcError):
        broken.to_the_end()

    resumed = clients[2].watch(started.guid)
    assert [resumed.next(), resumed.next()] == [SUBMITTED, _partial(prompt, 0)]
    stand_in.release(prompt)
    assert resumed.next() == _partial(prompt, 1)
    stand_in.release(prompt)
    assert resumed.next() == SUCCEEDED
    resumed.to_the_end()


@contextlib.contextmanager
def _fourth(
    shared: dict[str, str], clients: list[GenerationClient], prompt: str, folder: Path, **settings: str
) -> Iterator[tuple[RunningServer, Watch]]:
    """Run a fourth server, busy as the others are, and watch a queued generation there."""
    with running_server(folder, shared | settings) as server:
        held = clients[0].start(f"{prompt} [[fault:hold]]")
        clients[0].wait_for(held.guid, SUBMITTED)
        started = clients[0].start(prompt)
        watch = GenerationClient(server, server.admin).watch(started.guid)
        assert watch.next() == QUEUED
        yield server, watch


def test_a_server_that_dies_breaks_its_watches(
    shared: dict[str, str], clients: list[GenerationClient], stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    with _busy(clients, stand_in), _fourth(shared, clients, prompt, tmp_path) as (server, watch):
        server.kill()
        with pytest.raises(grpc.RpcError):
            watch.to_the_end()
        assert watch.call.code() is grpc.StatusCode.UNAVAILABLE
        stand_in.release(f"{prompt} [[fault:hold]]")
    assert clients[1].watch(watch.generations[0].guid).to_the_end()[-1] == SUCCEEDED


def test_a_server_that_is_told_to_end_breaks_its_watches(
    shared: dict[str, str], clients: list[GenerationClient], stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    with (
        _busy(clients, stand_in),
        _fourth(shared, clients, prompt, tmp_path, PIXYPROXY_DRAIN_TIMEOUT="1") as (server, watch),
    ):
        server.terminate()
        with pytest.raises(grpc.RpcError):
            watch.to_the_end()
        stand_in.release(f"{prompt} [[fault:hold]]")
        assert server.process.wait(TIMEOUT) == 0
        assert watch.call.code() is grpc.StatusCode.UNAVAILABLE
    assert clients[1].watch(watch.generations[0].guid).to_the_end()[-1] == SUCCEEDED


# --- Outliving servers -----------------------------------------------------------------------------------------------


def test_queued_generations_outlive_all_servers_and_run_once(
    mysql_server: DatabaseServer, stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    held, queued = ([f"{prompt} {number}{end}" for number in range(2)] for end in (" [[fault:hold]]", " queued"))
    command = (sys.executable, "-m", "tests.faults.crashing_server", "--lease", "1")
    with fresh_database(mysql_server) as url:
        settings = {
            **asking(stand_in),
            **_ONE_SLOT,
            "PYTHONPATH": str(_ROOT),
            "PIXYPROXY_DATABASE_URL": url,
            "PIXYPROXY_IMAGE_STORE": str(tmp_path / "images"),
        }
        with (
            running_server(tmp_path / "first", settings, command=command) as first,
            running_server(tmp_path / "second", settings, command=command) as second,
        ):
            client = GenerationClient(first, first.admin)
            submitted = [client.start(text) for text in held]
            for generation in submitted:
                client.wait_for(generation.guid, SUBMITTED)
            started = [client.start(text) for text in queued]
            assert {client.get(generation.guid).state for generation in started} == {QUEUED}
            first.kill()
            second.kill()
        assert [stand_in.count(text) for text in queued] == [0, 0]
        with running_server(tmp_path / "third", settings, command=command) as server:
            client = GenerationClient(server, server.admin)
            for generation in started:
                ended = client.wait_for(generation.guid, SUCCEEDED)
                assert ended.image.guid == generation.image_guid
            for generation in submitted:
                unknown = client.wait_for(generation.guid, OUTCOME_UNKNOWN)
                assert (unknown.error.code, unknown.error.reason) == ("FAILED_PRECONDITION", "OUTCOME_UNKNOWN")
                assert unknown.error.message
        for text in held:
            stand_in.release(text)
    assert [stand_in.count(text) for text in (*held, *queued)] == [1] * 4


# --- Watching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "state"),
    [("", SUCCEEDED), (" [[fault:moderation_blocked]]", FAILED), (" [[fault:502]]", OUTCOME_UNKNOWN)],
)
def test_a_watch_of_what_has_ended_shows_it_once(
    provider_server: RunningServer, prompt: str, fault: str, state: int
) -> None:
    client = GenerationClient(provider_server, provider_server.admin)
    client.watch(client.start(prompt).guid).to_the_end()
    started = client.start(prompt + fault, partial_images=1)
    client.watch(started.guid).to_the_end()
    watch = client.watch(started.guid)
    assert watch.to_the_end() == [state]
    assert watch.generations == [client.get(started.guid)]
    assert watch.generations[0].HasField("error") is (state != SUCCEEDED)


def test_a_watch_that_reaches_its_deadline_says_so(
    clients: list[GenerationClient], stand_in: RunningStandIn, prompt: str
) -> None:
    with _busy(clients, stand_in):
        started = clients[0].start(prompt)

        def watch() -> Refusal | None:
            call = clients[1].stub.WatchGeneration(
                gpb.WatchGenerationRequest(guid=started.guid), metadata=clients[1].metadata, timeout=1
            )
            with pytest.raises(grpc.RpcError):
                Watch(call).to_the_end()
            # On a machine that stands still for a moment, the client's own clock ends the call, without details.
            return None if rpc_status.from_call(call) is None else refusal_of(call)

        refused = wait_until(watch, TIMEOUT, "the server to say so first")
        assert (refused.code, refused.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "PROVIDER_TIMEOUT")
        assert clients[1].get(started.guid).state == QUEUED
    clients[1].watch(started.guid).to_the_end()


def test_many_watchers_of_one_generation_all_see_it_to_the_end(
    clients: list[GenerationClient], stand_in: RunningStandIn, prompt: str
) -> None:
    prompt += " [[fault:hold=0,1]]"
    started = clients[0].start(prompt, partial_images=1)
    watches = [clients[1].watch(started.guid) for _ in range(_WATCHERS)]
    for watch in watches:
        watch.until(SUBMITTED)
    for _ in range(2):
        stand_in.release(prompt)
    with ThreadPoolExecutor(20) as pool:
        ends = list(pool.map(lambda watch: watch.to_the_end()[-2:], watches))
    assert ends == [[_partial(prompt, 0), SUCCEEDED]] * _WATCHERS


def test_a_watcher_that_stalls_is_cut_off(tmp_path: Path, stand_in: RunningStandIn, prompt: str) -> None:
    prompt += " [[fault:hold=1:padded=12000000]]"
    with running_server(tmp_path, asking(stand_in) | {"PIXYPROXY_STALL_TIMEOUT": "3"}) as server:
        client = GenerationClient(server, server.admin)
        started = client.start(prompt, partial_images=1)
        with server.new_channel(*SMALL_WINDOW) as one, server.new_channel() as another:
            request = gpb.WatchGenerationRequest(guid=started.guid)
            stalled, reading = (
                Watch(generation_stub(channel).WatchGeneration(request, metadata=client.metadata, timeout=TIMEOUT))
                for channel in (one, another)
            )
            call = stalled.call
            next(call)
            reading.until(SUBMITTED)
            reading.next()
            wait_until(lambda: "REQUEST END" in "".join(server.lines_of(call_id_of(call))), TIMEOUT, "it to be cut off")
            *_, why, end = server.lines_of(call_id_of(call))
            assert why.endswith("The client read nothing for 3 s and was cut off.")
            assert "REQUEST END CANCELLED" in end
            # Who only waits for a change is not cut off, for whatever time.
            stand_in.release(prompt)
            assert reading.to_the_end()[-1] == SUCCEEDED
