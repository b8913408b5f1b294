"""The promise that an image is generated once for each request id, whoever repeats the request, races or goes away."""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import People, asking
from tests.support.database_servers import DatabaseServer, fresh_database
from tests.support.image_client import SMALL, ImageClient
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT, refusal_of
from tests.support.servers import RunningServer, running_server
from tests.support.waiting import wait_until

_OTHER_PROMPT = f"a lighthouse that nobody has asked for {uuid.uuid4()}"


@pytest.fixture
def key() -> str:
    """A request id that was never used."""
    return str(uuid.uuid4())


def test_the_same_request_again_gives_the_same_image(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str, key: str
) -> None:
    first = artist.create(prompt, request_id=key, tags=["a", "b"])
    assert artist.create(prompt, request_id=key.upper(), tags=["a", "b"]) == first
    assert stand_in.count(prompt) == 1


def test_without_a_request_id_every_call_makes_an_image(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    assert artist.create(prompt).guid != artist.create(prompt).guid
    assert stand_in.count(prompt) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": _OTHER_PROMPT},
        {"tags": ["another"]},
        {"visibility": pb.VISIBILITY_PUBLIC},
        {"filename": "another.png"},
        {"options": pb.GenerationOptions(size="64x128")},
        {"options": pb.GenerationOptions(size="64x64", quality="low")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_same_key_for_another_request_is_refused(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str, change: dict[str, Any]
) -> None:
    request: dict[str, Any] = {"prompt": prompt, "request_id": str(uuid.uuid4()), "options": SMALL}
    artist.create(**request)
    refused = artist.refused(pb.CreateImageRequest(**(request | change)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert stand_in.count(prompt) == 1
    assert stand_in.count(_OTHER_PROMPT) == 0


def test_another_author_may_use_the_same_key(
    provider_server: RunningServer, artists: People, stand_in: RunningStandIn, prompt: str, key: str
) -> None:
    ann, bob = ImageClient(provider_server, artists.ann), ImageClient(provider_server, artists.bob)
    of_ann, of_bob = ann.create(prompt, request_id=key), bob.create(prompt, request_id=key)
    assert of_ann.guid != of_bob.guid
    assert (of_ann.author, of_bob.author) == (artists.ann.username, artists.bob.username)
    assert stand_in.count(prompt) == 2


def test_what_was_deleted_is_not_made_again(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str, key: str
) -> None:
    artist.delete(artist.create(prompt, request_id=key).guid)
    refused = artist.refused(pb.CreateImageRequest(prompt=prompt, request_id=key, options=SMALL))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")
    assert stand_in.count(prompt) == 1


# --- Races -----------------------------------------------------------------------------------------------------------


def _at_once(works: Sequence[Callable[[], pb.ImageDetail]]) -> list[pb.ImageDetail]:
    """Run all at the same moment, and return what each gave."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], pb.ImageDetail]) -> pb.ImageDetail:
        barrier.wait(TIMEOUT)
        return work()

    with ThreadPoolExecutor(len(works)) as executor:
        return list(executor.map(run, works))


def test_sixteen_callers_with_one_key_get_one_image(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str, key: str
) -> None:
    prompt += " [[fault:slow=0.3]]"
    images = _at_once([lambda: artist.create(prompt, request_id=key)] * 16)
    assert len({image.guid for image in images}) == 1
    assert images == [images[0]] * 16
    assert stand_in.count(prompt) == 1


def test_callers_that_race_with_different_requests_get_one_image_and_refusals(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str, key: str
) -> None:
    prompts = [f"{prompt} {number} [[fault:slow=0.2]]" for number in range(6)]

    def create(text: str) -> str:
        try:
            return artist.create(text, request_id=key).prompt
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code.name

    with ThreadPoolExecutor(len(prompts)) as executor:
        outcomes = list(executor.map(create, prompts))
    assert outcomes.count("ALREADY_EXISTS") == 5
    (winner,) = set(outcomes) - {"ALREADY_EXISTS"}
    assert [stand_in.count(text) for text in prompts] == [int(text == winner) for text in prompts]


def test_two_servers_on_one_database_work_as_one(
    mysql_server: DatabaseServer, stand_in: RunningStandIn, prompt: str, key: str, tmp_path: Path
) -> None:
    prompt += " [[fault:slow=0.3]]"
    with fresh_database(mysql_server) as url:
        settings = {
            **asking(stand_in),
            "PIXYPROXY_DATABASE_URL": url,
            "PIXYPROXY_IMAGE_STORE": str(tmp_path / "images"),
        }
        with running_server(tmp_path / "1", settings) as one, running_server(tmp_path / "2", settings) as other:
            first, second = (ImageClient(server, server.admin) for server in (one, other))

            racers = [lambda client=client: client.create(prompt, request_id=key) for client in (first, second)]
            images = _at_once(racers * 4)
            assert images == [images[0]] * 8
            assert stand_in.count(prompt) == 1
            assert first.content(images[0].guid) == second.content(images[0].guid)

            # A page token of one is good at the other.
            newer = [first.create(f"{prompt} {number}").guid for number in range(2)]
            page = first.page(page_size=1)
            assert [image.guid for image in page.images] == newer[1:]
            assert second.guids(page_size=5, page_token=page.next_page_token) == [newer[0], images[0].guid]


# --- Callers that go away --------------------------------------------------------------------------------------------


def _check_takes_longer(client: ImageClient, request: pb.CreateImageRequest, timeout: float) -> None:
    """Check that a request is not answered in time, whether the server or the client is the first to say so."""
    with pytest.raises(grpc.RpcError) as caught:
        client.stub.CreateImage(request, metadata=client.metadata, timeout=timeout)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_caller_that_cancels_finds_the_image_later(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str, key: str
) -> None:
    prompt += " [[fault:hold]]"
    request = pb.CreateImageRequest(prompt=prompt, request_id=key, options=SMALL)
    call = artist.stub.CreateImage.future(request, metadata=artist.metadata, timeout=TIMEOUT)
    wait_until(lambda: stand_in.count(prompt), TIMEOUT, "the submission")
    assert call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED
    stand_in.release(prompt)

    stored = wait_until(lambda: artist.guids(prompt=prompt.split()[2]), TIMEOUT, "the image to be stored all the same")
    made = artist.create(prompt, request_id=key)
    assert [made.guid] == stored
    assert stand_in.count(prompt) == 1


def test_a_caller_whose_deadline_passes_fetches_the_image_with_the_next_call(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str, key: str
) -> None:
    prompt += " [[fault:slow=1.2]]"
    artist.page()  # Sign in and connect beforehand.
    request = pb.CreateImageRequest(prompt=prompt, request_id=key, options=SMALL)
    _check_takes_longer(artist, request, 0.6)

    # Under way as it is, it is waited for.
    made = artist.create(prompt, request_id=key)
    assert artist.content(made.guid)[0].sha256 == made.sha256
    assert stand_in.count(prompt) == 1


def test_a_caller_without_a_key_that_cancels_finds_the_image_in_the_list(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    prompt += " [[fault:hold]]"
    call = artist.stub.CreateImage.future(
        pb.CreateImageRequest(prompt=prompt), metadata=artist.metadata, timeout=TIMEOUT
    )
    wait_until(lambda: stand_in.count(prompt), TIMEOUT, "the submission")
    call.cancel()
    stand_in.release(prompt)
    stored = wait_until(lambda: artist.guids(prompt=prompt.split()[2]), TIMEOUT, "the image to be stored all the same")
    assert len(stored) == 1
    assert stand_in.count(prompt) == 1


def test_more_generations_than_are_allowed_are_queued_and_twice_as_many_calls_refused(
    stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    held = f"{prompt} [[fault:hold]]"
    with running_server(tmp_path, asking(stand_in) | {"PIXYPROXY_MAX_GENERATIONS": "1"}) as server:
        artist = ImageClient(server, server.admin)
        artist.page()
        first, second = (pb.CreateImageRequest(prompt=text, options=SMALL) for text in (held, prompt))
        call = artist.stub.CreateImage.future(first, metadata=artist.metadata, timeout=TIMEOUT)
        wait_until(lambda: stand_in.count(held), TIMEOUT, "the submission")
        queued = artist.stub.CreateImage.future(second, metadata=artist.metadata, timeout=TIMEOUT)
        wait_until(lambda: server.generation_states(prompt) == ["queued"], TIMEOUT, "the second to be queued")
        refused = artist.refused(pb.CreateImageRequest(prompt=f"{prompt} third"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_BUSY")
        assert refused.retry_after
        assert not call.done()
        assert stand_in.count(prompt) == 0
        stand_in.release(held)
        assert call.result().image.prompt == held
        assert queued.result().image.prompt == prompt
        assert stand_in.count(prompt) == 1


def test_repeats_that_wait_for_a_generation_are_as_many_again(
    stand_in: RunningStandIn, prompt: str, key: str, tmp_path: Path
) -> None:
    held = f"{prompt} [[fault:hold]]"
    with running_server(tmp_path, asking(stand_in) | {"PIXYPROXY_MAX_GENERATIONS": "1"}) as server:
        artist = ImageClient(server, server.admin)
        artist.page()
        request = pb.CreateImageRequest(prompt=held, request_id=key, options=SMALL)
        calls = []
        for _ in range(3):
            calls.append(artist.stub.CreateImage.future(request, metadata=artist.metadata, timeout=TIMEOUT))
            wait_until(lambda: stand_in.count(held), TIMEOUT, "the submission")
        wait_until(lambda: any(call.done() for call in calls), TIMEOUT, "one of them to be refused")
        stand_in.release(held)
        reasons = [refusal_of(call).reason for call in calls if call.exception() is not None]
        assert reasons == ["TOO_BUSY"]
        assert len({call.result().image.guid for call in calls if call.exception() is None}) == 1
        assert stand_in.count(held) == 1


# --- Servers that crash ----------------------------------------------------------------------------------------------


def test_a_crash_leaves_nothing_to_be_paid_for_twice(
    stand_in: RunningStandIn, prompt: str, key: str, tmp_path: Path
) -> None:
    prompt += " [[fault:hang:times=1]]"
    request = pb.CreateImageRequest(prompt=prompt, request_id=key, options=SMALL)
    with running_server(tmp_path, asking(stand_in)) as server:
        artist = ImageClient(server, server.admin)
        call = artist.stub.CreateImage.future(request, metadata=artist.metadata, timeout=TIMEOUT)
        wait_until(lambda: stand_in.count(prompt), TIMEOUT, "the submission")
        server.kill()
        assert call.code() is grpc.StatusCode.UNAVAILABLE
    with running_server(tmp_path, asking(stand_in)) as server:
        artist = ImageClient(server, artist.login)
        # Until its lease runs out, another server might be at work on it.
        _check_takes_longer(artist, request, 1)
        _let_lease_run_out(tmp_path / "pixyproxy.db", key, "sent")
        for _ in range(2):
            refused = artist.refused(request)
            assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "OUTCOME_UNKNOWN")
        assert stand_in.count(prompt) == 1

        # A new request id is the caller's choice.
        artist.create(prompt, request_id=str(uuid.uuid4()))
        assert stand_in.count(prompt) == 2

        # Had the crash come a moment earlier, nothing would have been sent, and it would be begun again.
        _let_lease_run_out(tmp_path / "pixyproxy.db", key, "recorded")
        artist.create(prompt, request_id=key)
        assert stand_in.count(prompt) == 3


def _let_lease_run_out(path: Path, key: str, state: str) -> None:
    """Do what minutes of waiting would do, to a generation that a crash left in a state."""
    with closing(sqlite3.connect(path)) as connection, connection:
        changed = connection.execute(
            "UPDATE generations SET lease_expires_at = '2026-01-01 00:00:00.000000', state = ? WHERE request_id = ?",
            (state, key),
        )
        assert changed.rowcount == 1
