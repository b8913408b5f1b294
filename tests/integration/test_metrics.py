"""Metrics: what a real server counts of what real clients do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.resource import statuses
from tests.integration.conftest import asking
from tests.support.certificates import Authority
from tests.support.image_client import SMALL, ImageClient, import_requests
from tests.support.image_files import encode
from tests.support.metrics import METRICS_ON, Scrape, metrics_url, scrape, scrape_url
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT, call_id_of, raw_unary, refusal
from tests.support.servers import RunningServer, basic, environment, image_stub, run_command, running_server
from tests.support.waiting import wait_until

_SERVICE = "pixyproxy.v1.ImageService"


@pytest.fixture
def metered(tmp_path: Path, stand_in: RunningStandIn) -> Iterator[RunningServer]:
    """A server of a test's own that counts from 0."""
    settings = METRICS_ON | asking(stand_in) | {"PIXYPROXY_MAX_FAILED_SIGN_INS": "2"}
    with running_server(tmp_path, settings) as server:
        yield server


def _handled(shown: Scrape, method: str, code: str) -> float:
    return shown.total("grpc_server_handled_total", grpc_service=_SERVICE, grpc_method=method, grpc_code=code)


def _wait_for(server: RunningServer, name: str, value: float, **labels: str) -> Scrape:
    """Scrape until a number is what it must become; it does so a moment after the client has its answer."""
    return wait_until(
        lambda: shown if (shown := scrape(server)).total(name, **labels) == value else None,
        TIMEOUT,
        f"{name} {labels} to be {value}",
    )


def test_calls_are_counted_by_method_and_code(metered: RunningServer, prompt: str) -> None:
    client = ImageClient(metered, metered.admin)
    made = client.create(prompt)
    for _ in range(3):
        client.get(made.guid)
    client.content(made.guid)
    imported = client.import_image(encode("png"))
    client.import_refused(import_requests(b"no image"))
    refusal(metered.images.GetImage, pb.GetImageRequest(guid=made.guid))
    refusal(metered.images.CreateImage, pb.CreateImageRequest(prompt=prompt))

    shown = _wait_for(metered, "grpc_server_handled_total", 1, grpc_code="UNAUTHENTICATED")
    assert _handled(shown, "GetImage", "OK") == 3
    assert _handled(shown, "GetImage", "NOT_FOUND") == 1
    assert _handled(shown, "GetImageContent", "OK") == 1
    assert _handled(shown, "CreateImage", "UNAUTHENTICATED") == 1
    assert _handled(shown, "ImportImage", "OK") == _handled(shown, "ImportImage", "INVALID_ARGUMENT") == 1
    assert shown.total("grpc_server_started_total") == shown.total("grpc_server_handled_total")
    assert shown.total("grpc_server_handling_seconds_count", grpc_method="GetImage") == 4
    assert shown.total("grpc_server_handling_seconds_sum", grpc_method="CreateImage") > 0
    assert shown.total("pixyproxy_errors_total", reason="IMAGE_NOT_FOUND") == 1
    written = made.size_bytes + imported.size_bytes
    assert shown.total("pixyproxy_store_bytes_total", direction="write") == written
    assert shown.total("pixyproxy_database_statement_seconds_count", operation="commit") > 0
    assert shown.total("pixyproxy_database_connection_use_seconds_total") > 0
    assert shown.total("process_resident_memory_bytes", pid=str(metered.process.pid)) > 2**20
    # One was sent, and both were read for their placeholders.
    _wait_for(metered, "pixyproxy_store_bytes_total", made.size_bytes + written, direction="read")


def test_calls_that_are_broken_off(metered: RunningServer, stand_in: RunningStandIn, prompt: str) -> None:
    prompt += " [[fault:hold]]"
    client = ImageClient(metered, metered.admin)
    call = client.stub.CreateImage.future(
        pb.CreateImageRequest(prompt=prompt, options=SMALL), metadata=client.metadata, timeout=TIMEOUT
    )
    wait_until(lambda: stand_in.count(prompt), TIMEOUT, "the submission")
    under_way = scrape(metered)
    assert under_way.total("pixyproxy_generations_under_way") == 1
    assert under_way.total("pixyproxy_provider_requests_under_way") == 1
    assert under_way.total("pixyproxy_generation_slots") == 64
    call.cancel()
    shown = _wait_for(metered, "grpc_server_handled_total", 1, grpc_code="CANCELLED")
    assert _handled(shown, "CreateImage", "CANCELLED") == 1
    stand_in.release(prompt)
    # The generation goes on, and is counted when it ends.
    _wait_for(metered, "pixyproxy_generations_total", 1, outcome="made")
    _wait_for(metered, "pixyproxy_generations_under_way", 0)


def test_whoever_makes_up_methods_makes_no_time_series(metered: RunningServer) -> None:
    for number in range(20):
        refusal(raw_unary(metered.channel, f"/pixyproxy.v1.ImageService/Made{number}"), b"")
        refusal(raw_unary(metered.channel, f"/made.Up{number}/Method"), b"")
    shown = _wait_for(metered, "grpc_server_handled_total", 40, grpc_method="unknown", grpc_code="UNIMPLEMENTED")
    counted = "grpc_server_handled_total"
    names = shown.labels(counted, "grpc_service") | shown.labels(counted, "grpc_method")
    assert "GetImage" in names
    assert not any("made" in name.lower() for name in names)


def test_whoever_makes_up_models_makes_no_time_series(metered: RunningServer, prompt: str) -> None:
    client = ImageClient(metered, metered.admin)
    client.create(prompt, options=pb.GenerationOptions(size="64x64", model="gpt-image-2"))
    for number in range(5):
        options = pb.GenerationOptions(size="64x64", model=f"made-up-{number}")
        client.refused(pb.CreateImageRequest(prompt=prompt, options=options))
    shown = _wait_for(metered, "pixyproxy_generations_total", 5, model="other")
    assert shown.labels("pixyproxy_generations_total", "model") == {"gpt-image-2", "other"}
    assert shown.total("pixyproxy_generations_total", outcome="ProviderModelUnknownError") == 5


def test_what_the_provider_does(metered: RunningServer, prompt: str) -> None:
    client = ImageClient(metered, metered.admin)
    made = client.create(prompt)
    client.create(f"{prompt} [[fault:503:times=1:retry-after-ms=1]]")
    client.refused(pb.CreateImageRequest(prompt=f"{prompt} [[fault:moderation_blocked]]"))

    shown = _wait_for(metered, "pixyproxy_generations_total", 1, outcome="PromptRefusedError")
    assert shown.total("pixyproxy_generations_total", outcome="made", model=made.model) == 2
    assert shown.total("pixyproxy_generation_seconds_count", model=made.model) == 2
    assert shown.total("pixyproxy_provider_requests_total") == 4
    assert shown.total("pixyproxy_provider_requests_total", outcome="ProviderUnavailableError") == 1
    assert shown.total("pixyproxy_provider_retries_total", error="ProviderUnavailableError") == 1
    assert shown.total("pixyproxy_generation_tokens_total", direction="output") == 2 * made.usage.output_tokens
    assert shown.total("pixyproxy_generation_tokens_total", direction="input") > 0


def test_a_provider_that_is_down(metered: RunningServer, prompt: str) -> None:
    client = ImageClient(metered, metered.admin)
    for _ in range(6):
        client.refused(pb.CreateImageRequest(prompt=f"{prompt} [[fault:503:retry-after-ms=1]]"))
    shown = _wait_for(metered, "pixyproxy_errors_total", 6, reason="PROVIDER_UNAVAILABLE")
    assert shown.total("pixyproxy_provider_circuits_open") == 1
    # The sixth was refused before it was recorded.
    assert shown.total("pixyproxy_generations_total", outcome="ProviderUnavailableError") == 5


def test_waiting_for_the_rate_limiter(tmp_path: Path, stand_in: RunningStandIn, prompt: str) -> None:
    with running_server(tmp_path, METRICS_ON | asking(stand_in) | {"PIXYPROXY_IMAGES_PER_MINUTE": "1"}) as server:
        client = ImageClient(server, server.admin)
        client.create(prompt)
        call = client.stub.CreateImage.future(pb.CreateImageRequest(prompt=prompt), metadata=client.metadata)
        _wait_for(server, "pixyproxy_pacing_waiting", 1)
        call.cancel()
        shown = _wait_for(server, "pixyproxy_pacing_waiting", 0)
        # The second was never submitted.
        assert shown.total("pixyproxy_pacing_wait_seconds_count") == 1


def test_sign_ins_that_fail(metered: RunningServer) -> None:
    for _ in range(4):
        refusal(metered.images.ListImages, pb.ListImagesRequest(), basic("nobody", "a wrong password"))
    refusal(metered.images.ListImages, pb.ListImagesRequest(), (("authorization", "nonsense"),))
    shown = _wait_for(metered, "pixyproxy_errors_total", 3, reason="CREDENTIALS_INVALID")
    assert shown.total("pixyproxy_errors_total", reason="TOO_MANY_SIGN_INS") == 2
    known = {rule.reason for rule in statuses.RULES.values()}
    assert shown.labels("pixyproxy_errors_total", "reason") <= known


def test_when_the_certificate_expires(tmp_path: Path, metered: RunningServer) -> None:
    name = "pixyproxy_tls_certificate_expires_timestamp_seconds"
    assert name not in scrape(metered).names
    files = Authority().write(tmp_path)
    with running_server(tmp_path / "tls", METRICS_ON | files.settings) as server:
        assert scrape(server).total(name) > 1_700_000_000


def test_metrics_need_nothing_of_the_service(metered: RunningServer) -> None:
    """Neither credentials nor gRPC; and they hold no secrets, nor anything that callers sent."""
    ImageClient(metered, metered.admin).create("a very private prompt")
    with urllib.request.urlopen(metrics_url(metered), timeout=TIMEOUT) as answer:
        text = answer.read().decode()
    assert "private" not in text
    assert metered.admin.username not in text


def test_metrics_are_off_unless_asked_for(server: RunningServer) -> None:
    assert "Serving metrics at" not in server.log
    script = "import sys, pixyproxy.cli; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_port_that_is_taken(server: RunningServer, tmp_path: Path) -> None:
    done = run_command("serve", env=environment(tmp_path, {"PIXYPROXY_METRICS_LISTEN": server.address}))
    assert done.status == 1
    assert "pixyproxy: PIXYPROXY_METRICS_LISTEN: cannot listen on 127.0.0.1, port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_machine_without_a_temporary_folder(tmp_path: Path) -> None:
    # As in a container whose file system is read-only.
    script = "import tempfile; tempfile.tempdir = '/dev/null'; from pixyproxy.cli import main; main()"
    program = [sys.executable, "-c", script]
    done = run_command("serve", env=environment(tmp_path, METRICS_ON), program=program)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "pixyproxy: PIXYPROXY_METRICS_LISTEN: the temporary folder for metrics cannot be created"
    )
    assert "Traceback" not in done.stderr


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with running_server(tmp_path / "server", METRICS_ON | {"TMPDIR": str(tmp_path)}) as server:
        ImageClient(server, server.admin).page()
        assert list(tmp_path.glob("pixyproxy-metrics-*/*.db"))
    assert list(tmp_path.glob("pixyproxy-metrics-*")) == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a server has one process on this system")
def test_a_process_that_has_written_nothing_yet_is_no_error(tmp_path: Path) -> None:
    with running_server(tmp_path / "server", METRICS_ON | {"TMPDIR": str(tmp_path)}) as server:
        (folder,) = tmp_path.glob("pixyproxy-metrics-*")
        (folder / f"gauge_liveall_{os.getpid()}.db").touch()
        (folder / f"counter_{os.getpid()}.db").touch()
        assert scrape(server).total("pixyproxy_generation_slots") > 0


def test_rpc_workers_are_shown_together_and_what_one_counted_outlives_it(tmp_path: Path) -> None:
    limit, calls = "pixyproxy_database_connections_limit", Counter[int]()

    def call_another() -> None:
        with server.new_channel() as channel:
            # Who comes to a process as it is killed is turned away, and comes again.
            _, call = image_stub(channel).ListImages.with_call(
                pb.ListImagesRequest(), timeout=TIMEOUT, wait_for_ready=True
            )
            calls[server.rpc_worker_of(call_id_of(call))] += 1

    def is_called(count: int) -> bool:
        call_another()
        return len(calls) == count

    with running_server(tmp_path, METRICS_ON | {"PIXYPROXY_WORKERS": "2"}) as server:
        wait_until(lambda: is_called(2), TIMEOUT, "calls to both RPC workers")
        before = _wait_for(server, "grpc_server_handled_total", calls.total(), grpc_method="ListImages")
        assert set(map(str, calls)) <= before.labels("process_open_fds", "pid")
        assert before.total(limit) >= 2 * 16

        killed = next(iter(calls))
        os.kill(killed, signal.SIGKILL)

        wait_until(lambda: is_called(3), TIMEOUT, "a call to the RPC worker in its place")
        after = _wait_for(server, "grpc_server_handled_total", calls.total(), grpc_method="ListImages")
        assert str(killed) not in after.labels("process_open_fds", "pid")
        assert len(after.labels("process_open_fds", "pid")) == len(before.labels("process_open_fds", "pid"))
        # What the killed one might use is not counted any more, and the same for the one in its place is.
        assert after.total(limit) == before.total(limit)


def test_several_processes_are_shown_together() -> None:
    command = [sys.executable, "-m", "tests.support.forking_server", "3"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        address, *children = process.stdout.readline().split()
        url = f"http://{address}/metrics"
        try:
            shown = scrape_url(url)
            assert shown.total("grpc_server_handled_total", grpc_method="b") == 3
            assert shown.total("grpc_server_handling_seconds_sum", grpc_method="b") == 1.5
            assert shown.total("pixyproxy_generation_slots") == 30
            assert shown.labels("process_open_fds", "pid") == {str(process.pid), *children}
            # What one has counted stays when it dies; what it held does not.
            os.kill(int(children[0]), signal.SIGKILL)
            wait_until(lambda: scrape_url(url).total("pixyproxy_generation_slots") == 20, TIMEOUT, "it to be forgotten")
            shown = scrape_url(url)
            assert shown.total("grpc_server_handled_total", grpc_method="b") == 3
            assert shown.labels("process_open_fds", "pid") == {str(process.pid), *children[1:]}
        finally:
            process.stdin.close()
    assert process.returncode == 0
