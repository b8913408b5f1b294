"""What both clients do with generations: the test says what the server answers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.client import (
    AsyncPixyProxyClient,
    FieldViolation,
    Generation,
    GenerationCancelledError,
    GenerationState,
    ImageRequest,
    InvalidRequestError,
    NotFoundError,
    OutcomeUnknownError,
    PartialImage,
    PixyProxyClient,
    PixyProxyClientError,
    RetryPolicy,
    UnavailableError,
    Visibility,
)
from pixyproxy.core import exceptions as exc
from tests.support.client_kinds import MakeClient
from tests.support.scripted_server import Rpc, ScriptedServer, scripted_server
from tests.support.waiting import wait_until
from tests.unit.client.test_client import DETAIL, REQUEST_ID, TIMEOUT, Play, answer, cut, failure, refuse
from tests.unit.resource.fakes import GUID

KEY = "0d2f4f6e-7f9b-4b0e-9a53-5b0b4bb7e6ad"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def play(server: ScriptedServer, make_client: MakeClient) -> Iterator[Play]:
    with make_client(server.address, timeout=TIMEOUT, retry=RetryPolicy(first_backoff=0.01)) as client:
        yield Play(server, client)


def generation(state: str, **fields: Any) -> gpb.Generation:
    return gpb.Generation(guid=GUID, state=f"GENERATION_STATE_{state}", created_at=Timestamp(), **fields)


def in_state(state: str, **fields: Any) -> gpb.WatchGenerationResponse:
    return gpb.WatchGenerationResponse(generation=generation(state, **fields))


def partial_image(index: int, *parts: bytes) -> list[gpb.WatchGenerationResponse]:
    size = sum(map(len, parts))
    announced = gpb.PartialImage(index=index, content_type="image/png", size_bytes=size)
    return [
        gpb.WatchGenerationResponse(partial_image=announced),
        *(gpb.WatchGenerationResponse(data=part) for part in parts),
    ]


def send(rpc: Rpc, *messages: gpb.WatchGenerationResponse) -> None:
    rpc.send_initial_metadata(("x-request-id", REQUEST_ID))
    for message in messages:
        rpc.send(message)


def shown(event: Generation | PartialImage) -> Any:
    return (event.state.name, event.attempts) if isinstance(event, Generation) else (event.index, event.data)


# --- Single calls ----------------------------------------------------------------------------------------------------


def test_a_generation_is_read_whole(play: Play) -> None:
    call = play.begin(lambda: play.client.get_generation(GUID))
    request, rpc = play.take("GetGeneration")
    answer(
        rpc,
        gpb.GetGenerationResponse(
            generation=gpb.Generation(
                guid=GUID,
                request_id=KEY,
                author="ann",
                state=gpb.GENERATION_STATE_FAILED,
                request=pb.CreateImageRequest(
                    prompt="a castle",
                    tags=["a"],
                    visibility=pb.VISIBILITY_PUBLIC,
                    options=pb.GenerationOptions(size="64x64", partial_images=2),
                    inputs=[pb.ImageInput(guid="first"), pb.ImageInput(guid="second")],
                    mask=pb.ImageInput(guid="hole"),
                ),
                image_guid="another",
                created_at=Timestamp(seconds=1, nanos=5000),
                submitted_at=Timestamp(seconds=2),
                finished_at=Timestamp(seconds=3),
                attempts=4,
                error=gpb.GenerationError(
                    code="RESOURCE_EXHAUSTED",
                    reason="PROVIDER_RATE_LIMITED",
                    message="slowly",
                    metadata={"a": "b"},
                    retry_after=Duration(seconds=7),
                ),
            )
        ),
    )

    read = call.result(TIMEOUT)
    assert request == gpb.GetGenerationRequest(guid=GUID)
    assert (read.guid, read.request_id, read.author, read.image_guid, read.attempts) == (GUID, KEY, "ann", "another", 4)
    assert (read.state, read.image, read.prompt) == (GenerationState.FAILED, None, "a castle")
    assert read.request == ImageRequest(
        "a castle",
        ("a",),
        Visibility.PUBLIC,
        "",
        {"size": "64x64", "partial_images": 2},
        inputs=("first", "second"),
        mask="hole",
    )
    assert (read.created_at, read.submitted_at, read.finished_at) == (
        datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC),
        datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC),
        datetime(1970, 1, 1, 0, 0, 3, tzinfo=UTC),
    )
    assert read.error is not None
    assert (read.error.code, read.error.reason, read.error.message) == (
        "RESOURCE_EXHAUSTED",
        "PROVIDER_RATE_LIMITED",
        "slowly",
    )
    assert (read.error.metadata, read.error.retry_after) == ({"a": "b"}, 7)


def test_an_unknown_outcome_is_one_whatever_the_provider_did(play: Play) -> None:
    """Its request is never submitted again, so it is no error to try again after."""
    call = play.begin(lambda: play.client.get_generation(GUID))
    _, rpc = play.take("GetGeneration")
    unknown = generation("OUTCOME_UNKNOWN")
    unknown.error.MergeFrom(gpb.GenerationError(code="UNAVAILABLE", reason="PROVIDER_UNAVAILABLE", message="a GIF"))
    answer(rpc, gpb.GetGenerationResponse(generation=unknown))

    with pytest.raises(OutcomeUnknownError, match="a GIF") as raised:
        call.result(TIMEOUT).result()
    assert raised.value.reason == "PROVIDER_UNAVAILABLE"


def test_what_a_generation_has_not_is_none(play: Play) -> None:
    call = play.begin(lambda: play.client.get_generation(request_id=KEY))
    request, rpc = play.take("GetGeneration")
    answer(rpc, gpb.GetGenerationResponse(generation=generation("QUEUED")))

    read = call.result(TIMEOUT)
    assert request == gpb.GetGenerationRequest(request_id=KEY)
    assert (read.request, read.submitted_at, read.finished_at, read.image, read.error) == (None,) * 5
    assert (read.prompt, read.state.is_final) == ("", False)
    with pytest.raises(ValueError, match="not ended"):
        read.result()


@pytest.mark.parametrize("key", [{}, {"guid": GUID, "request_id": KEY}], ids=["neither", "both"])
def test_a_generation_has_one_key(play: Play, key: Any) -> None:
    for method in (play.client.get_generation, play.client.watch_generation):
        with pytest.raises(ValueError, match="its guid or by its request_id"):
            method(**key)


def test_a_generation_is_asked_for_again_with_the_same_request_id(play: Play) -> None:
    call = play.begin(lambda: play.client.create_generation("a castle", tags=["a"], size="64x64", partial_images=2))
    first, rpc = play.take("CreateGeneration")
    cut(rpc, was_taken=True)
    second, rpc = play.take("CreateGeneration")
    answer(rpc, gpb.CreateGenerationResponse(generation=generation("QUEUED")))

    assert call.result(TIMEOUT).state is GenerationState.QUEUED
    assert first == second
    assert uuid.UUID(first.request.request_id)
    first.request.request_id = ""
    assert first.request == pb.CreateImageRequest(
        prompt="a castle",
        tags=["a"],
        visibility=pb.VISIBILITY_PRIVATE,
        options=pb.GenerationOptions(size="64x64", partial_images=2),
    )


def test_a_creation_may_have_inputs(play: Play) -> None:
    for begin, method in (
        (play.client.create_image, "CreateImage"),
        (play.client.create_generation, "CreateGeneration"),
    ):
        call = play.begin(partial(begin, "a hat", inputs=["first", "second"], mask="hole", input_fidelity="high"))
        request, rpc = play.take(method)
        refuse(rpc, exc.ImageNotFoundError("second", "inputs[1]"))
        asked = request if method == "CreateImage" else request.request
        assert asked.inputs == [pb.ImageInput(guid="first"), pb.ImageInput(guid="second")]
        assert (asked.mask, asked.options.input_fidelity) == (pb.ImageInput(guid="hole"), "high")
        error = failure(call)
        assert isinstance(error, NotFoundError)
        assert (error.reason, error.metadata) == ("IMAGE_NOT_FOUND", {"field": "inputs[1]"})

    call = play.begin(lambda: play.client.create_image("a hat", inputs=[], mask=None))
    request, rpc = play.take("CreateImage")
    refuse(rpc, exc.ImageNotFoundError("second"))
    assert (list(request.inputs), request.HasField("mask")) == ([], False)
    failure(call)


def test_an_input_that_was_deleted_is_named_by_the_result(play: Play) -> None:
    ended = gpb.Generation(
        guid=GUID,
        state=gpb.GENERATION_STATE_FAILED,
        error=gpb.GenerationError(
            code="NOT_FOUND", reason="IMAGE_NOT_FOUND", message="inputs[1]: gone", metadata={"field": "inputs[1]"}
        ),
    )
    call = play.begin(lambda: play.client.get_generation(GUID))
    _, rpc = play.take("GetGeneration")
    answer(rpc, gpb.GetGenerationResponse(generation=ended))
    with pytest.raises(NotFoundError) as caught:
        call.result(TIMEOUT).result()
    assert (caught.value.message, caught.value.violations) == ("inputs[1]: gone", ())
    assert caught.value.metadata == {"field": "inputs[1]"}


def test_a_creation_may_ask_for_partial_images(play: Play) -> None:
    call = play.begin(lambda: play.client.create_image("a castle", partial_images=3))
    request, rpc = play.take("CreateImage")
    answer(rpc, pb.CreateImageResponse(image=DETAIL))
    assert call.result(TIMEOUT).guid == GUID
    assert request.options == pb.GenerationOptions(partial_images=3)


def test_what_was_refused_names_the_request_id(play: Play) -> None:
    call = play.begin(lambda: play.client.create_generation("a castle", request_id=KEY))
    refuse(play.take("CreateGeneration")[1], exc.RequestIdReusedError())
    assert failure(call).creation_request_id == KEY


def test_pages_of_generations_are_asked_for_as_they_are_needed(play: Play) -> None:
    generations = play.client.list_generations(
        page_size=2,
        states=[GenerationState.QUEUED, GenerationState.FAILED],
        author="ann",
        created_after=datetime(2026, 1, 1, tzinfo=UTC),
    )
    call = play.begin(lambda: [next(generations), next(generations)])
    first, rpc = play.take("ListGenerations")
    answer(rpc, gpb.ListGenerationsResponse(generations=[generation("QUEUED")] * 2, next_page_token="more"))
    assert len(call.result(TIMEOUT)) == 2
    assert not play.has_more("ListGenerations")

    rest = play.begin(lambda: list(generations))
    second, rpc = play.take("ListGenerations")
    answer(rpc, gpb.ListGenerationsResponse(generations=[generation("FAILED")]))
    assert [found.state for found in rest.result(TIMEOUT)] == [GenerationState.FAILED]
    assert (first.page_token, second.page_token) == ("", "more")
    assert first.states == [gpb.GENERATION_STATE_QUEUED, gpb.GENERATION_STATE_FAILED]
    assert (first.page_size, first.author, first.created_after.seconds) == (2, "ann", 1_767_225_600)
    with pytest.raises(ValueError, match="no time zone"):
        list(play.client.list_generations(created_before=datetime(2026, 1, 1)))


def test_a_cancellation_is_made_again_and_says_what_it_came_too_late_for(play: Play) -> None:
    call = play.begin(lambda: play.client.cancel_generation(GUID))
    cut(play.take("CancelGeneration")[1], was_taken=True)
    request, rpc = play.take("CancelGeneration")
    answer(rpc, gpb.CancelGenerationResponse(generation=generation("CANCELLED")))
    assert call.result(TIMEOUT).state is GenerationState.CANCELLED
    assert request == gpb.CancelGenerationRequest(guid=GUID)

    call = play.begin(lambda: play.client.cancel_generation(GUID))
    refuse(play.take("CancelGeneration")[1], exc.AlreadySubmittedError("no"))
    caught = failure(call)
    assert (type(caught), caught.reason) == (InvalidRequestError, "ALREADY_SUBMITTED")


# --- Results ---------------------------------------------------------------------------------------------------------


def ended_as(play: Play, ended: gpb.Generation) -> Any:
    call = play.begin(lambda: play.client.wait_for_generation(GUID))
    rpc = play.take("WatchGeneration")[1]
    send(rpc, in_state("QUEUED"), gpb.WatchGenerationResponse(generation=ended))
    rpc.end()
    return call


def test_the_result_of_a_generation_is_its_image(play: Play) -> None:
    assert ended_as(play, generation("SUCCEEDED", image=DETAIL)).result(TIMEOUT).guid == GUID


@pytest.mark.parametrize(
    ("ended", "kind", "reason"),
    [
        (generation("SUCCEEDED"), NotFoundError, "IMAGE_NOT_FOUND"),
        (generation("CANCELLED"), GenerationCancelledError, "GENERATION_CANCELLED"),
        (
            generation("FAILED", error=gpb.GenerationError(code="FAILED_PRECONDITION", reason="PROMPT_REFUSED")),
            InvalidRequestError,
            "PROMPT_REFUSED",
        ),
        (
            generation("FAILED", error=gpb.GenerationError(code="RESOURCE_EXHAUSTED", reason="PROVIDER_QUOTA")),
            PixyProxyClientError,
            "PROVIDER_QUOTA",
        ),
        (
            generation(
                "OUTCOME_UNKNOWN", error=gpb.GenerationError(code="FAILED_PRECONDITION", reason="OUTCOME_UNKNOWN")
            ),
            OutcomeUnknownError,
            "OUTCOME_UNKNOWN",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_result_of_a_generation_without_an_image_is_an_error(
    play: Play, ended: gpb.Generation, kind: type, reason: str
) -> None:
    caught = failure(ended_as(play, ended))
    assert (type(caught), caught.reason) == (kind, reason)


def test_the_error_of_a_generation_has_all_that_the_server_says_of_it(play: Play) -> None:
    error = gpb.GenerationError(
        code="UNAVAILABLE", reason="PROVIDER_UNAVAILABLE", message="away", retry_after=Duration(seconds=2)
    )
    caught = failure(ended_as(play, generation("FAILED", request_id=KEY, error=error)))
    assert type(caught) is UnavailableError
    assert (caught.message, caught.code, caught.retry_after) == ("away", "UNAVAILABLE", 2)
    assert caught.creation_request_id == KEY


def test_the_error_of_a_generation_names_the_field_that_the_provider_refuses(play: Play) -> None:
    error = gpb.GenerationError(
        code="INVALID_ARGUMENT", reason="INVALID_FIELD", message="too small", metadata={"field": "options.size"}
    )
    caught = failure(ended_as(play, generation("FAILED", error=error)))
    assert type(caught) is InvalidRequestError
    assert caught.violations == (FieldViolation("options.size", "too small"),)


# --- Watching --------------------------------------------------------------------------------------------------------


def test_a_watch_gives_states_and_whole_partial_images_as_they_come(play: Play) -> None:
    events = play.client.watch_generation(GUID)
    call = play.begin(lambda: shown(next(events)))
    request, rpc = play.take("WatchGeneration")
    assert request == gpb.WatchGenerationRequest(guid=GUID)
    send(rpc, in_state("QUEUED"))
    assert call.result(TIMEOUT) == ("QUEUED", 0)

    call = play.begin(lambda: [shown(next(events)) for _ in range(3)])
    for message in (in_state("SUBMITTED", attempts=1), *partial_image(0, b"ab", b"c"), *partial_image(1, b"d")):
        rpc.send(message)
    assert call.result(TIMEOUT) == [("SUBMITTED", 1), (0, b"abc"), (1, b"d")]

    rest = play.begin(lambda: [shown(event) for event in events])
    rpc.send(in_state("SUCCEEDED", attempts=1, image=DETAIL))
    rpc.end()
    assert rest.result(TIMEOUT) == [("SUCCEEDED", 1)]
    assert not play.has_more("WatchGeneration")


def test_a_watch_that_breaks_goes_on_without_repeating_anything(play: Play) -> None:
    call = play.begin(lambda: [shown(event) for event in play.client.watch_generation(request_id=KEY)])
    requests = []
    # In the middle of a partial image; without a word; before anything; in good order but too early.
    for messages in (
        [in_state("QUEUED"), in_state("SUBMITTED", attempts=1), *partial_image(0, b"a"), *partial_image(1, b"b", b"c")],
        [in_state("SUBMITTED", attempts=1), *partial_image(0, b"a"), *partial_image(1, b"b", b"c")],
    ):
        request, rpc = play.take("WatchGeneration")
        requests.append(request)
        send(rpc, *messages[:-1])
        rpc.end(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    request, rpc = play.take("WatchGeneration")
    cut(rpc, was_taken=False)
    request, rpc = play.take("WatchGeneration")
    send(rpc, *messages)
    rpc.end()
    request, rpc = play.take("WatchGeneration")
    send(rpc, in_state("QUEUED", attempts=1), in_state("SUBMITTED", attempts=2), in_state("SUCCEEDED", attempts=2))
    rpc.end()

    assert call.result(TIMEOUT) == [
        ("QUEUED", 0),
        ("SUBMITTED", 1),
        (0, b"a"),
        (1, b"bc"),
        ("QUEUED", 1),
        ("SUBMITTED", 2),
        ("SUCCEEDED", 2),
    ]
    assert requests == [gpb.WatchGenerationRequest(request_id=KEY)] * 2
    assert not play.has_more("WatchGeneration")


def test_a_break_after_the_final_state_is_no_error(play: Play) -> None:
    call = play.begin(lambda: [shown(event) for event in play.client.watch_generation(GUID)])
    rpc = play.take("WatchGeneration")[1]
    send(rpc, in_state("FAILED"))
    rpc.end(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    assert call.result(TIMEOUT) == [("FAILED", 0)]
    assert not play.has_more("WatchGeneration")


def test_a_watch_that_is_refused_is_not_made_again(play: Play) -> None:
    call = play.begin(lambda: list(play.client.watch_generation(GUID)))
    refuse(play.take("WatchGeneration")[1], exc.GenerationNotFoundError(GUID))
    caught = failure(call)
    assert (type(caught), caught.reason) == (NotFoundError, "GENERATION_NOT_FOUND")
    assert not play.has_more("WatchGeneration")


def test_a_watch_lasts_no_longer_than_its_timeout(play: Play) -> None:
    call = play.begin(lambda: list(play.client.watch_generation(GUID, timeout=3)))
    send(play.take("WatchGeneration")[1], in_state("QUEUED"))
    assert failure(call).code == "DEADLINE_EXCEEDED"
    assert not play.has_more("WatchGeneration")


def test_whoever_stops_reading_ends_the_call(server: ScriptedServer) -> None:
    with PixyProxyClient(server.address, timeout=TIMEOUT) as client:
        play = Play(server, client)
        call = play.begin(lambda: next(client.watch_generation(GUID)))
        rpc = play.take("WatchGeneration")[1]
        send(rpc, in_state("QUEUED"))
        call.result(TIMEOUT)
        wait_until(lambda: not rpc.is_active, TIMEOUT, "the call to end")


def test_a_cancelled_task_ends_its_watch(server: ScriptedServer) -> None:
    async def run() -> None:
        async with AsyncPixyProxyClient(server.address, timeout=TIMEOUT) as client:
            task = asyncio.create_task(client.wait_for_generation(GUID))
            rpc = await asyncio.to_thread(server.take, "WatchGeneration", TIMEOUT)
            send(rpc, in_state("QUEUED"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(wait_until, lambda: not rpc.is_active, TIMEOUT, "the call to end")

    asyncio.run(run())
