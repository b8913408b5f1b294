"""The calls of the generation service: what is refused, and what operators see of them."""

from __future__ import annotations

import inspect
import json
import re
import signal
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.resource.generation_servicer import GenerationServicer
from tests.integration.conftest import asking
from tests.support.generation_client import (
    CANCELLED,
    FAILED,
    QUEUED,
    SUBMITTED,
    SUCCEEDED,
    GenerationClient,
)
from tests.support.image_client import SMALL, ImageClient
from tests.support.metrics import METRICS_ON, scrape
from tests.support.openai_stand_in import RunningStandIn
from tests.support.otlp_receiver import running_receiver
from tests.support.rpc import TIMEOUT, Refusal, call_id_of, health_stub, refusal, refusal_of
from tests.support.servers import ANYBODY, RunningServer, basic, running_server
from tests.support.waiting import wait_until

_SERVICE = "pixyproxy.v1.GenerationService"
_GUID = "123e4567-e89b-42d3-a456-426614174000"
_TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


@pytest.fixture
def ann(provider_server: RunningServer) -> GenerationClient:
    """Somebody new."""
    return GenerationClient(provider_server, provider_server.new_login())


def _requests(guid: str = _GUID, request_id: str = "") -> dict[str, Any]:
    """A request to each method that names a generation."""
    key = {"request_id": request_id} if request_id else {"guid": guid}
    named = {"GetGeneration": gpb.GetGenerationRequest(**key), "WatchGeneration": gpb.WatchGenerationRequest(**key)}
    return named if request_id else {**named, "CancelGeneration": gpb.CancelGenerationRequest(guid=guid)}


def _states(*numbers: int) -> Any:
    return list(numbers)


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["CreateGeneration", "GetGeneration", "ListGenerations", "WatchGeneration", "CancelGeneration"]
)
def test_every_call_needs_credentials(ann: GenerationClient, method: str) -> None:
    request = getattr(gpb, f"{method}Request")()
    for metadata, reason in ((ANYBODY, "CREDENTIALS_MISSING"), (basic("nobody", "wrong"), "CREDENTIALS_INVALID")):
        refused = refusal(getattr(ann.stub, method), request, metadata)
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)


def test_others_generations_are_not_found_as_if_they_were_not_there(
    provider_server: RunningServer, ann: GenerationClient, prompt: str
) -> None:
    started = ann.start(prompt, request_id=str(uuid.uuid4()))
    bob = GenerationClient(provider_server, provider_server.new_login())

    def seen(name: str, requests: dict[str, Any]) -> list[str]:
        """How each request is refused, but for the name that it gives."""
        told = []
        for method, request in requests.items():
            refused = bob.refused(method, request)
            assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "GENERATION_NOT_FOUND")
            assert refused.resource is not None
            assert (refused.resource.resource_type, refused.resource.resource_name) == ("pixyproxy.v1.Generation", name)
            told.append(repr(refused.as_seen).replace(name, "NAME"))
        return told

    nobody_s = str(uuid.uuid4())
    assert seen(started.guid, _requests(started.guid)) == seen(nobody_s, _requests(nobody_s))
    assert seen(started.request_id, _requests(request_id=started.request_id)) == seen(
        nobody_s, _requests(request_id=nobody_s)
    )
    assert bob.page().generations == []
    assert bob.page(author=started.author).generations == []
    admin = GenerationClient(provider_server, provider_server.admin)
    assert admin.get(started.guid).request_id == started.request_id


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("GetGeneration", gpb.GetGenerationRequest(), "key"),
        ("WatchGeneration", gpb.WatchGenerationRequest(), "key"),
        ("GetGeneration", gpb.GetGenerationRequest(guid=""), "guid"),
        ("GetGeneration", gpb.GetGenerationRequest(request_id=""), "request_id"),
        ("GetGeneration", gpb.GetGenerationRequest(guid="no guid"), "guid"),
        ("WatchGeneration", gpb.WatchGenerationRequest(request_id=_GUID + "\n"), "request_id"),
        ("CancelGeneration", gpb.CancelGenerationRequest(), "guid"),
        ("CancelGeneration", gpb.CancelGenerationRequest(guid="{" + _GUID + "}"), "guid"),
        ("CreateGeneration", gpb.CreateGenerationRequest(), "request.prompt"),
        ("ListGenerations", gpb.ListGenerationsRequest(page_size=-1), "page_size"),
        ("ListGenerations", gpb.ListGenerationsRequest(page_token="nonsense"), "page_token"),
        ("ListGenerations", gpb.ListGenerationsRequest(states=_states(QUEUED, 0)), "states[1]"),
        ("ListGenerations", gpb.ListGenerationsRequest(states=_states(QUEUED, FAILED, 7)), "states[2]"),
        ("ListGenerations", gpb.ListGenerationsRequest(states=_states(-1)), "states[0]"),
        ("ListGenerations", gpb.ListGenerationsRequest(author="a\nb"), "author"),
        ("ListGenerations", gpb.ListGenerationsRequest(created_after=Timestamp(nanos=-1)), "created_after"),
    ],
    ids=repr,
)
def test_a_request_that_breaks_a_rule_is_refused(ann: GenerationClient, method: str, request_: Any, field: str) -> None:
    refused = ann.refused(method, request_)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(refused.violations) == [field]
    assert ann.page().generations == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"options": pb.GenerationOptions(partial_images=4)}, "options.partial_images"),
        ({"options": pb.GenerationOptions(partial_images=-1)}, "options.partial_images"),
        ({"options": pb.GenerationOptions(partial_images=2**31 - 1)}, "options.partial_images"),
        # Formats that do not stream are no formats of ours.
        ({"options": pb.GenerationOptions(partial_images=1, output_format="gif")}, "options.output_format"),
        ({"options": pb.GenerationOptions(partial_images=1, output_format="svg")}, "options.output_format"),
        ({"options": pb.GenerationOptions(background="transparent", output_format="jpeg")}, "options.background"),
        ({"prompt": ""}, "prompt"),
        ({"tags": ["fine", ""]}, "tags[1]"),
        ({"request_id": "no guid"}, "request_id"),
    ],
    ids=repr,
)
def test_what_create_image_refuses_is_refused_here_too(
    ann: GenerationClient, prompt: str, fields: dict[str, Any], field: str
) -> None:
    request = pb.CreateImageRequest(**({"prompt": prompt} | fields))
    of_image = ImageClient(ann.server).stub.CreateImage.future(request, metadata=ann.metadata, timeout=TIMEOUT)
    assert list(refusal_of(of_image.exception()).violations) == [field]
    refused = ann.refused("CreateGeneration", gpb.CreateGenerationRequest(request=request))
    assert list(refused.violations) == [f"request.{field}"]
    assert ann.page().generations == []


@pytest.mark.parametrize(
    "fields", [{}, {"options": None}, {"options": pb.GenerationOptions(output_format="webp")}], ids=repr
)
def test_the_request_is_shown_as_it_was_sent(ann: GenerationClient, prompt: str, fields: dict[str, Any]) -> None:
    sent: dict[str, Any] = {
        "visibility": pb.VISIBILITY_PUBLIC,
        "tags": ["b", "a"],
        "filename": "a.png",
        "request_id": str(uuid.uuid4()),
    }
    started = ann.start(prompt, **sent, **fields)
    options = fields.get("options", pb.GenerationOptions(size="64x64"))
    assert started.request == pb.CreateImageRequest(prompt=prompt, options=options, **sent)
    assert ann.get(started.guid).request == started.request


def test_only_one_of_the_keys_counts_on_the_wire(ann: GenerationClient, prompt: str) -> None:
    started = ann.start(prompt, request_id=str(uuid.uuid4()))
    both = (
        gpb.GetGenerationRequest(guid=_GUID).SerializeToString()
        + gpb.GetGenerationRequest(request_id=started.request_id).SerializeToString()
    )
    call: Any = ann.server.channel.unary_unary(
        f"/{_SERVICE}/GetGeneration", response_deserializer=gpb.GetGenerationResponse.FromString
    )
    assert call(both, metadata=ann.metadata, timeout=TIMEOUT).generation.guid == started.guid


def test_page_tokens_of_others_and_of_other_questions_are_refused(ann: GenerationClient, prompt: str) -> None:
    for number in range(3):
        ann.start(f"{prompt} {number}")
    page = ann.page(page_size=1)
    assert page.next_page_token
    assert len(ann.page(page_size=200, page_token=page.next_page_token).generations) == 2
    bob = GenerationClient(ann.server, ann.server.new_login())
    images = ImageClient(ann.server).stub
    asked: list[Callable[[], Refusal]] = [
        lambda: bob.refused("ListGenerations", gpb.ListGenerationsRequest(page_token=page.next_page_token)),
        lambda: ann.refused(
            "ListGenerations", gpb.ListGenerationsRequest(page_token=page.next_page_token, states=_states(1))
        ),
        lambda: refusal(images.ListImages, pb.ListImagesRequest(page_token=page.next_page_token), ann.metadata),
    ]
    for ask in asked:
        assert list(ask().violations) == ["page_token"]


def test_what_is_submitted_is_not_cancelled(ann: GenerationClient, stand_in: RunningStandIn, prompt: str) -> None:
    prompt += " [[fault:hold]]"
    started = ann.start(prompt)
    ann.wait_for(started.guid, SUBMITTED)
    request = gpb.CancelGenerationRequest(guid=started.guid)
    for _ in range(2):
        refused = ann.refused("CancelGeneration", request)
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ALREADY_SUBMITTED")
    stand_in.release(prompt)
    ann.wait_for(started.guid, SUCCEEDED)
    assert ann.refused("CancelGeneration", request).reason == "ALREADY_SUBMITTED"


def test_a_call_id_of_another_request_is_refused(ann: GenerationClient, prompt: str) -> None:
    request_id = str(uuid.uuid4())
    started = ann.start(prompt, request_id=request_id)
    # What is added to a request makes it another one only where it is set.
    assert ann.start(prompt, request_id=request_id, options=pb.GenerationOptions(size="64x64")).guid == started.guid
    others: list[dict[str, Any]] = [
        {"tags": ["other"]},
        {"options": pb.GenerationOptions(size="64x64", partial_images=1)},
    ]
    for fields in others:
        same: dict[str, Any] = {"prompt": prompt, "request_id": request_id, "options": SMALL}
        request = pb.CreateImageRequest(**(same | fields))
        refused = ann.refused("CreateGeneration", gpb.CreateGenerationRequest(request=request))
        assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


def test_too_many_watches_are_refused_as_too_many_streams(
    tmp_path: Path, stand_in: RunningStandIn, prompt: str
) -> None:
    prompt += " [[fault:hold]]"
    with running_server(tmp_path, asking(stand_in) | {"PIXYPROXY_MAX_STREAMS": "2"}) as server:
        client = GenerationClient(server, server.admin)
        started = client.start(prompt)
        watches = [client.watch(started.guid) for _ in range(2)]
        for watch in watches:
            watch.next()
        refused = client.refused("WatchGeneration", gpb.WatchGenerationRequest(guid=started.guid))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_BUSY")
        assert client.get(started.guid).state in (QUEUED, SUBMITTED)
        stand_in.release(prompt)
        assert {watch.to_the_end()[-1] for watch in watches} == {SUCCEEDED}


# --- What became of it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code", "reason", "metadata"),
    [
        ("moderation_blocked:categories=violence", "FAILED_PRECONDITION", "PROMPT_REFUSED", {"categories": "violence"}),
        ("400:param=size", "INVALID_ARGUMENT", "INVALID_FIELD", {"field": "options.size"}),
        ("429:code=insufficient_quota", "RESOURCE_EXHAUSTED", "PROVIDER_QUOTA", {}),
        ("502", "UNAVAILABLE", "PROVIDER_UNAVAILABLE", {}),
        ("drop", "FAILED_PRECONDITION", "OUTCOME_UNKNOWN", {}),
        ("stream_end=1", "FAILED_PRECONDITION", "OUTCOME_UNKNOWN", {}),
    ],
)
def test_the_error_is_the_one_that_create_image_returns(
    ann: GenerationClient, prompt: str, fault: str, code: str, reason: str, metadata: dict[str, str]
) -> None:
    ann.wait_for(ann.start(prompt).guid, SUCCEEDED)  # so that no circuit opens
    started = ann.start(f"{prompt} [[fault:{fault}]]", partial_images=2)
    ended = ann.watch(started.guid)
    ended.to_the_end()
    error = ended.generations[-1].error
    assert (error.code, error.reason) == (code, reason)
    assert error.message
    assert metadata.items() <= dict(error.metadata).items()
    assert prompt not in str(error)
    assert error.HasField("retry_after") is False


# --- Operators -------------------------------------------------------------------------------------------------------


def test_health_and_reflection_know_the_service(provider_server: RunningServer) -> None:
    health = health_stub(provider_server.channel).Check(
        health_pb2.HealthCheckRequest(service=_SERVICE), timeout=TIMEOUT
    )
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(provider_server.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=_SERVICE),
    ]
    listed, described = stub.ServerReflectionInfo(iter(asked), timeout=TIMEOUT)
    assert _SERVICE in [service.name for service in listed.list_services_response.service]
    assert described.file_descriptor_response.file_descriptor_proto


def _check_log(server: RunningServer, call: Any, method: str, code: str) -> None:
    request_id = call_id_of(call)
    lines = server.wait_for_end_of(request_id)
    line = inspect.unwrap(getattr(GenerationServicer, method)).__code__.co_firstlineno
    begin = rf"{_TIME} INFO {re.escape(request_id)} \[\d+\] \[{method}:{line}\]"
    assert re.fullmatch(rf"{begin} REQUEST START", lines[0])
    assert re.fullmatch(rf"{begin} REQUEST END {code} \d+\.\d ms", lines[-1])


def test_every_call_is_logged_counted_and_traced(tmp_path: Path, stand_in: RunningStandIn, prompt: str) -> None:
    prompt += " [[fault:hold]]"
    with running_receiver(tmp_path) as receiver:
        settings = (
            asking(stand_in)
            | METRICS_ON
            | {
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
                "OTEL_BSP_SCHEDULE_DELAY": "100",
                "PIXYPROXY_IMAGES_PER_MINUTE": "1",
            }
        )
        with running_server(tmp_path / "server", settings) as server:
            client = GenerationClient(server, server.admin)
            started, queued = client.start(prompt), client.start(f"{prompt} queued")
            client.wait_for(started.guid, SUBMITTED)
            for method, request in (
                ("CreateGeneration", gpb.CreateGenerationRequest(request=queued.request)),
                ("GetGeneration", gpb.GetGenerationRequest(guid=started.guid)),
                ("ListGenerations", gpb.ListGenerationsRequest()),
                ("CancelGeneration", gpb.CancelGenerationRequest(guid=queued.guid)),
            ):
                _, call = getattr(client.stub, method).with_call(request, metadata=client.metadata, timeout=TIMEOUT)
                _check_log(server, call, method, "OK")
            refused = client.refused("CancelGeneration", gpb.CancelGenerationRequest(guid=started.guid))
            assert "REQUEST END FAILED_PRECONDITION" in server.wait_for_end_of(refused.call_id)[-1]
            stand_in.release(prompt)
            watch = client.watch(started.guid)
            watch.to_the_end()
            _check_log(server, watch.call, "WatchGeneration", "OK")

            counted = scrape(server)
            methods = {
                f"{_SERVICE}/{method.name}" for method in gpb.DESCRIPTOR.services_by_name["GenerationService"].methods
            }
            for name in methods:
                service, _, method = name.partition("/")
                labels = {"grpc_service": service, "grpc_method": method, "grpc_code": "OK"}
                assert counted.total("grpc_server_handled_total", **labels) > 0, name
            wait_until(lambda: methods <= {span["name"] for span in receiver.spans}, TIMEOUT, "the spans")
            assert prompt not in server.log
            assert prompt not in json.dumps(receiver.spans, default=str)


def test_provider_is_asked_to_stream_by_a_setting(tmp_path: Path, stand_in: RunningStandIn, prompt: str) -> None:
    with running_server(tmp_path, asking(stand_in) | {"PIXYPROXY_STREAM_PROVIDER": "true"}) as server:
        client = GenerationClient(server, server.admin)
        watch = client.watch(client.start(f"{prompt} [[fault:stream_unasked]]").guid)
        assert [event for event in watch.to_the_end() if event not in (QUEUED, SUBMITTED)] == [SUCCEEDED]
        image = ImageClient(server, server.admin).create(prompt)
    assert watch.generations[-1].image.usage.total_tokens > 0
    assert image.usage.total_tokens > 0
    for text in (prompt, f"{prompt} [[fault:stream_unasked]]"):
        [sent] = stand_in.submissions(text)["requests"]
        assert (sent["stream"], sent["partial_images"]) == (True, 0)


def test_the_offline_generator_shows_partial_images(server: RunningServer) -> None:
    client = GenerationClient(server, server.new_login())
    watch = client.watch(client.start("an offline lighthouse", partial_images=3).guid)
    *before, last = watch.to_the_end()
    assert last == SUCCEEDED
    shown = [event for event in before if isinstance(event, tuple)]
    assert [index for index, _ in shown] == sorted(index for index, _ in shown)


def test_a_cancelled_generation_frees_the_queue(tmp_path: Path, stand_in: RunningStandIn, prompt: str) -> None:
    settings = asking(stand_in) | {"PIXYPROXY_MAX_QUEUED": "1", "PIXYPROXY_MAX_GENERATIONS": "1"}
    held = f"{prompt} [[fault:hold]]"
    with running_server(tmp_path, settings) as server:
        client = GenerationClient(server, server.admin)
        busy = client.start(held)
        client.wait_for(busy.guid, SUBMITTED)
        queued = client.start(prompt)
        request = gpb.CreateGenerationRequest(request=pb.CreateImageRequest(prompt=f"{prompt} too many"))
        refused = client.refused("CreateGeneration", request)
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_BUSY")
        assert refused.retry_after
        assert client.cancel(queued.guid).state == CANCELLED
        next_one = client.start(f"{prompt} next")
        stand_in.release(held)
        client.wait_for(next_one.guid, SUCCEEDED)
    assert stand_in.count(prompt) == 0


def test_old_requests_are_removed_where_a_setting_says_so(
    tmp_path: Path, stand_in: RunningStandIn, prompt: str
) -> None:
    settings = asking(stand_in) | {"PIXYPROXY_IMAGES_PER_MINUTE": "1"}
    with running_server(tmp_path, settings) as server:
        client = GenerationClient(server, server.admin)
        client.watch(client.start("the image of this minute").guid).to_the_end()
        cancelled = client.cancel(client.start(prompt, request_id=str(uuid.uuid4())).guid)
        with server.database() as database, database.transaction() as context:
            then = datetime.now(UTC) - timedelta(days=8)
            context.execute("UPDATE generations SET created_at = :then, updated_at = :then", {"then": then})
            context.commit()
    with running_server(tmp_path, settings | {"PIXYPROXY_GENERATION_RETENTION": "7"}) as server:
        client = GenerationClient(server, server.admin)
        kept = wait_until(
            lambda: found if not (found := client.get(cancelled.guid)).HasField("request") else None,
            TIMEOUT,
            "the request to be removed",
        )
        assert (kept.state, kept.request_id) == (CANCELLED, cancelled.request_id)
        [of_image] = client.page(states=[SUCCEEDED]).generations
        assert of_image.request.prompt == "the image of this minute"


def test_watches_do_not_keep_a_server_from_ending(stand_in: RunningStandIn, tmp_path: Path, prompt: str) -> None:
    settings = asking(stand_in) | {"PIXYPROXY_WORKERS": "1", "PIXYPROXY_DRAIN_TIMEOUT": "600"}
    held = f"{prompt} [[fault:hold]]"
    with running_server(tmp_path, settings) as server:
        ann = GenerationClient(server, server.new_login())
        watch = ann.watch(ann.start(held).guid)
        watch.until(SUBMITTED)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as ended:
            watch.to_the_end()
        stand_in.release(held)
        assert server.process.wait(TIMEOUT) == 0
    refused = refusal_of(ended.value)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")


def test_the_prompt_of_a_deleted_image_is_gone(server: RunningServer, prompt: str) -> None:
    login = server.new_login()
    ann = GenerationClient(server, login)
    generation = ann.wait_for(ann.start(prompt).guid, SUCCEEDED)
    assert generation.image.prompt == generation.request.prompt == prompt
    ImageClient(server, login).delete(generation.image_guid)
    left = ann.get(generation.guid)
    assert left.state == SUCCEEDED
    assert not left.HasField("image")
    assert not left.HasField("request")
