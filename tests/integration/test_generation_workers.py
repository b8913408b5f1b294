"""Generation workers: what callers of all RPC workers get from them, and what becomes of requests when one dies."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import asking
from tests.support.connections import Connections
from tests.support.image_client import SMALL, ImageClient, without_placeholder
from tests.support.metrics import METRICS_ON, scrape
from tests.support.openai_stand_in import RunningStandIn
from tests.support.processes import ask_threads
from tests.support.rpc import TIMEOUT, refusal, refusal_of
from tests.support.servers import SERVE_ANEW, RunningServer, running_server
from tests.support.waiting import wait_until

_ROOT = Path(__file__).parents[2]
_GUID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
_TWO_RPC_WORKERS = {"PIXYPROXY_WORKERS": "2"}
_ENOUGH_TO_SUBMIT = 5.0
"""Seconds within which a request is submitted even on a machine that stands still for a while."""

if not hasattr(os, "memfd_create"):
    pytest.skip("a server has one process on this system", allow_module_level=True)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, stand_in: RunningStandIn) -> Iterator[RunningServer]:
    """A server whose generation worker lives on."""
    settings = _TWO_RPC_WORKERS | asking(stand_in) | {"PIXYPROXY_LOG_FORMAT": "json"}
    with running_server(tmp_path_factory.mktemp("several"), settings, command=SERVE_ANEW) as server:
        yield server


@pytest.fixture
def mortal(tmp_path: Path, stand_in: RunningStandIn) -> Iterator[RunningServer]:
    """A server of a test's own, whose generation worker may be killed; its leases last a moment."""
    command = (sys.executable, "-m", "tests.faults.crashing_server", "--lease", "1")
    settings = {"PYTHONPATH": str(_ROOT), "PIXYPROXY_MAX_GENERATIONS": "2"}
    with running_server(tmp_path, settings | _TWO_RPC_WORKERS | asking(stand_in), command=command) as server:
        yield server


def _request(prompt: str, request_id: str = "") -> pb.CreateImageRequest:
    return pb.CreateImageRequest(prompt=prompt, request_id=request_id, options=SMALL)


def _begin(server: RunningServer, request: pb.CreateImageRequest, stand_in: RunningStandIn) -> Any:
    """Begin a generation, and return the call when the provider is at work on it."""
    call = server.images.CreateImage.future(request, metadata=server.admin.metadata, timeout=TIMEOUT)
    wait_until(lambda: stand_in.count(request.prompt), TIMEOUT, "the submission")
    return call


def _kill_generation_worker(server: RunningServer) -> int:
    """Kill the generation worker, and return which one it was when there is another."""
    killed = server.generation_worker
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: server.generation_workers - {killed}, TIMEOUT, "another generation worker")
    return killed


def _maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


# --- What it is ------------------------------------------------------------------------------------------------------


def test_the_generation_worker_alone_has_the_provider_s_package_and_gives_way(several: RunningServer) -> None:
    ImageClient(several, several.admin).create()
    # What is written in Python is not mapped; what decodes its answers is.
    assert "_pybase64" in _maps(several.generation_worker)
    for worker in several.rpc_workers:
        assert "_pybase64" not in _maps(worker)
        assert {*ask_threads(worker, _nice_of)} == {_nice_of(0)}
        assert len(os.sched_getaffinity(worker)) == 1
    assert {*ask_threads(several.generation_worker, _nice_of)} == {min(19, _nice_of(0) + 10)}
    # Under SCHED_IDLE no lease would be renewed on a busy machine.
    assert {*ask_threads(several.generation_worker, os.sched_getscheduler)} == {os.SCHED_OTHER}
    assert os.sched_getaffinity(several.generation_worker) == os.sched_getaffinity(several.process.pid)


def _nice_of(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


def test_what_concerns_all_is_said_once(tmp_path: Path, stand_in: RunningStandIn) -> None:
    with running_server(tmp_path / "offline", _TWO_RPC_WORKERS) as server:
        # At its end the log is whole: lines are written a moment late.
        assert server.stop() == 0
        assert server.log.count("OPENAI_API_KEY is not set") == 1
    retiring = _TWO_RPC_WORKERS | asking(stand_in) | {"PIXYPROXY_MODEL": "stand-in-retiring"}
    with running_server(tmp_path / "retiring", retiring) as server:
        wait_until(lambda: "shuts down the model" in server.log, TIMEOUT, "the warning")
        ImageClient(server, server.admin).create()
        assert server.log.count("shuts down the model") == 1


# --- What callers see ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "moderation_blocked:stage=output:categories=violence,self-harm",
        "429:code=insufficient_quota",
        "429:retry-after=3000",
        "400:param=size:code=invalid_value",
        "401",
        "404",
        "502",
        "504",
        "drop",
        "not_an_image",
    ],
)
def test_callers_are_told_the_same_as_by_a_single_process(
    several: RunningServer, provider_server: RunningServer, prompt: str, fault: str
) -> None:
    told = []
    for server in (several, provider_server):
        ImageClient(server, server.admin).create()  # so that no circuit opens
        told.append(refusal(server.images.CreateImage, _request(f"{prompt} [[fault:{fault}]]"), server.admin.metadata))
    # Of maps the order of the bytes means nothing.
    one, other = (
        replace(refused, call_id="", details=[], message=_GUID.sub("GUID", refused.message)) for refused in told
    )
    assert one == other


def test_what_is_wrong_with_a_request_is_told(several: RunningServer, prompt: str) -> None:
    client = ImageClient(several, several.admin)
    request_id = str(uuid.uuid4())
    client.create(prompt, request_id=request_id)
    assert client.refused(_request(f"{prompt} other", request_id)).reason == "REQUEST_ID_REUSED"
    # Together with the server's defaults.
    options = pb.GenerationOptions(background="transparent", output_format="jpeg", size="64x64")
    violated = client.refused(pb.CreateImageRequest(prompt=prompt, options=options)).violations
    assert violated.keys() == {"options.background"}


def test_callers_of_all_rpc_workers_with_one_request_id_get_one_image(
    several: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    prompt += " [[fault:slow=0.5]]"
    request = _request(prompt, str(uuid.uuid4()))
    with Connections(several) as connections, ThreadPoolExecutor(16) as pool:
        stubs = list(connections.one_to_each().values())
        made = pool.map(
            lambda number: stubs[number % 2].CreateImage(request, metadata=several.admin.metadata, timeout=TIMEOUT),
            range(16),
        )
        assert len({answer.image.guid for answer in made}) == 1
    assert stand_in.count(prompt) == 1


@pytest.mark.parametrize("goes", ["by cancelling", "at its deadline"])
def test_what_was_submitted_is_stored_when_the_caller_goes(
    several: RunningServer, stand_in: RunningStandIn, prompt: str, goes: str
) -> None:
    request = _request(f"{prompt} [[fault:hold]]", str(uuid.uuid4()))
    timeout = _ENOUGH_TO_SUBMIT if goes == "at its deadline" else TIMEOUT
    call = several.images.CreateImage.future(request, metadata=several.admin.metadata, timeout=timeout)
    wait_until(lambda: stand_in.count(request.prompt), TIMEOUT, "the submission")
    if goes == "by cancelling":
        call.cancel()
    else:
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # On a machine that stands still for a moment, the client's own clock ends the call, without details.
        assert rpc_status.from_call(call) is None or refusal_of(call).reason == "PROVIDER_TIMEOUT"
    stand_in.release(request.prompt)
    made = several.images.CreateImage(request, metadata=several.admin.metadata, timeout=TIMEOUT).image
    assert made.prompt == request.prompt
    assert stand_in.count(request.prompt) == 1


def test_what_is_queued_is_never_submitted_when_the_caller_goes(
    tmp_path: Path, stand_in: RunningStandIn, prompt: str
) -> None:
    settings = _TWO_RPC_WORKERS | asking(stand_in) | {"PIXYPROXY_IMAGES_PER_MINUTE": "1"}
    with running_server(tmp_path, settings | METRICS_ON) as server:
        client = ImageClient(server, server.admin)
        client.create()
        waiting = server.images.CreateImage.future(_request(prompt), metadata=client.metadata)
        wait_until(lambda: scrape(server).total("pixyproxy_pacing_waiting") == 1, TIMEOUT, "it to be queued")
        assert server.generation_states(prompt) == ["queued"]
        waiting.cancel()
        wait_until(lambda: scrape(server).total("pixyproxy_pacing_waiting") == 0, TIMEOUT, "it to leave the queue")
        wait_until(lambda: server.generation_states(prompt) == ["failed"], TIMEOUT, "its end")
    assert stand_in.count(prompt) == 0


def test_the_generation_worker_s_log_lines_carry_the_call_s_id(
    several: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    request = _request(f"{prompt} [[fault:401]]")
    refused = refusal(several.images.CreateImage, request, several.admin.metadata)

    def lines() -> dict[str, dict[str, Any]]:
        parsed = [json.loads(line) for line in several.log_lines]
        return {line["message"]: line for line in parsed if line["request_id"] == refused.call_id}

    wait_until(lambda: len(lines()) >= 4, TIMEOUT, "its lines")
    (of_worker,) = (line for text, line in lines().items() if text.startswith("The image provider refused"))
    assert of_worker["thread"] != lines()["REQUEST START"]["thread"]
    assert prompt not in "".join(several.log_lines)


def test_the_generation_worker_s_log_lines_in_text(mortal: RunningServer, prompt: str) -> None:
    refused = refusal(mortal.images.CreateImage, _request(f"{prompt} [[fault:401]]"), mortal.admin.metadata)
    line = wait_until(
        lambda: [line for line in mortal.lines_of(refused.call_id) if "The image provider refused" in line],
        TIMEOUT,
        "the generation worker's line",
    )[0]
    assert re.fullmatch(rf"\S+ \S+ \w+ {re.escape(refused.call_id)} \[\d+\] \[\w+:\d+\] The image provider .*", line)


def test_the_generation_worker_s_numbers_are_shown_with_all_others(
    tmp_path: Path, stand_in: RunningStandIn, prompt: str
) -> None:
    with running_server(tmp_path, _TWO_RPC_WORKERS | METRICS_ON | asking(stand_in)) as server:
        held = f"{prompt} [[fault:hold]]"
        call = _begin(server, _request(held), stand_in)
        shown = scrape(server)
        assert shown.total("pixyproxy_generation_slots") == 128
        assert shown.total("pixyproxy_generations_under_way") == 1
        assert {str(pid) for pid in (server.generation_worker, *server.rpc_workers)} <= shown.labels(
            "process_resident_memory_bytes", "pid"
        )
        stand_in.release(held)
        call.result()
        wait_until(lambda: scrape(server).total("pixyproxy_generations_under_way") == 0, TIMEOUT, "its end")
        shown = scrape(server)
        assert shown.total("pixyproxy_generations_total", outcome="made") == 1
        assert shown.total("pixyproxy_provider_requests_total", outcome="made") == 1
        # What is held by one that dies goes with it.
        _kill_generation_worker(server)
        wait_until(lambda: scrape(server).total("pixyproxy_generation_slots") == 128, TIMEOUT, "the next one")


# --- When it dies ----------------------------------------------------------------------------------------------------


def test_a_request_without_an_id_is_never_submitted_twice(
    mortal: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    request = _request(f"{prompt} [[fault:hang:times=1]]")
    call = _begin(mortal, request, stand_in)
    killed = _kill_generation_worker(mortal)
    assert call.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal_of(call).reason == "OUTCOME_UNKNOWN"
    # The next one works, and has all slots.
    for _ in range(2):
        ImageClient(mortal, mortal.admin).create()
    assert stand_in.count(request.prompt) == 1
    assert f"Generation worker 0 (process {killed}) has died. Signal 9" in mortal.log


def test_a_request_with_an_id_is_never_submitted_twice(
    mortal: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    request = _request(f"{prompt} [[fault:hang:times=1]]", str(uuid.uuid4()))
    call = _begin(mortal, request, stand_in)
    _kill_generation_worker(mortal)
    # Its outcome is unknown as soon as there is a worker in the place of the dead one.
    assert refusal_of(call).reason == "OUTCOME_UNKNOWN"
    assert stand_in.count(request.prompt) == 1


def test_other_calls_go_on_without_a_generation_worker(
    mortal: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    made = ImageClient(mortal, mortal.admin).create()
    worker = mortal.stop_generation_worker()
    try:
        with Connections(mortal) as connections:
            for stub in connections.one_to_each().values():
                got = stub.GetImage(pb.GetImageRequest(guid=made.guid), metadata=mortal.admin.metadata, timeout=TIMEOUT)
                assert without_placeholder(got.image) == made
                call = stub.CreateImage.future(_request(prompt), metadata=mortal.admin.metadata, timeout=1)
                assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # What nobody waits for any more is not submitted.
        wait_until(lambda: set(mortal.generation_states(prompt)) == {"failed"}, TIMEOUT, "the requests to be given up")
        client = ImageClient(mortal, mortal.admin)
        client.update(made.guid, ["tags"], tags=["changed"])
        client.delete(made.guid)
    finally:
        os.kill(worker, signal.SIGCONT)
    ImageClient(mortal, mortal.admin).create()
    assert stand_in.count(prompt) == 0


def test_a_killed_rpc_worker_leaves_its_generations_to_the_generation_worker(
    mortal: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    request = _request(f"{prompt} [[fault:hold]]", str(uuid.uuid4()))
    with Connections(mortal) as connections:
        (killed, stub), *_ = connections.one_to_each().items()
        call = stub.CreateImage.future(request, metadata=mortal.admin.metadata, timeout=TIMEOUT)
        wait_until(lambda: stand_in.count(request.prompt), TIMEOUT, "the submission")
        os.kill(killed, signal.SIGKILL)
        assert call.code() is grpc.StatusCode.UNAVAILABLE
    stand_in.release(request.prompt)
    made = ImageClient(mortal, mortal.admin).create(request.prompt, request_id=request.request_id)
    assert made.prompt == request.prompt
    assert stand_in.count(request.prompt) == 1


def test_a_generation_worker_leaves_signals_to_the_supervisor(
    mortal: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    worker = mortal.generation_worker
    held = f"{prompt} [[fault:hold]]"
    call = _begin(mortal, _request(held), stand_in)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker, number)
    stand_in.release(held)
    assert call.result().image.prompt.startswith(prompt)
    assert mortal.generation_worker == worker


def test_a_generation_outlasts_the_drain_of_its_rpc_worker(
    tmp_path: Path, stand_in: RunningStandIn, prompt: str
) -> None:
    settings = _TWO_RPC_WORKERS | asking(stand_in) | {"PIXYPROXY_DRAIN_TIMEOUT": "0.2"}
    request = _request(f"{prompt} [[fault:hold]]", str(uuid.uuid4()))
    with running_server(tmp_path, settings) as server:
        call = _begin(server, request, stand_in)
        server.terminate()
        assert call.code() is not grpc.StatusCode.OK
        stand_in.release(request.prompt)
        assert server.process.wait(TIMEOUT) == 0
    with running_server(tmp_path, settings) as server:
        answer = server.images.CreateImage(request, metadata=server.admin.metadata, timeout=TIMEOUT)
        assert answer.image.prompt == request.prompt
    assert stand_in.count(request.prompt) == 1
