"""Traces: what a real receiver of OTLP is sent, and what the provider is told."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import asking
from tests.support.database_servers import DatabaseServer, fresh_database
from tests.support.image_client import SMALL, ImageClient, import_requests
from tests.support.image_files import encode
from tests.support.openai_stand_in import RunningStandIn
from tests.support.otlp_receiver import RunningReceiver, running_receiver
from tests.support.rpc import TIMEOUT, call_id_of, raw_unary, refusal
from tests.support.servers import Metadata, RunningServer, environment, run_command, running_server
from tests.support.waiting import wait_until

_SERVICE = "pixyproxy.v1.ImageService"
_SERVER, _CLIENT = 2, 3
# Sent soon, so that tests need not wait; by variables that are OpenTelemetry's own.
_SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "200"}


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RunningReceiver]:
    """A receiver of OTLP over gRPC."""
    with running_receiver(tmp_path) as running:
        yield running


@pytest.fixture
def workers() -> str:
    """How many RPC workers there are; with several, the generation worker is a process of its own."""
    return "1"


@pytest.fixture
def traced(
    tmp_path: Path, receiver: RunningReceiver, stand_in: RunningStandIn, workers: str
) -> Iterator[RunningServer]:
    """A server that traces."""
    settings = asking(stand_in) | _SOON | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
    settings["PIXYPROXY_WORKERS"] = workers
    with running_server(tmp_path / "server", settings | {"PIXYPROXY_LOG_FORMAT": "json"}) as server:
        yield server


def _new_trace() -> tuple[str, str, Metadata]:
    """The ids of a trace and of a caller's span, and what the caller sends of them."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, (("traceparent", f"00-{trace}-{span}-01"), ("tracestate", "vendor=opaque"))


def _wait_for_spans(receiver: RunningReceiver, trace: str, *names: str) -> list[dict[str, Any]]:
    """Wait until a trace has spans with these names, which come from several processes, and return all of its spans."""

    def spans() -> list[dict[str, Any]]:
        return [span for span in receiver.spans if span["trace_id"] == trace]

    wait_until(lambda: {*names} <= {span["name"] for span in spans()}, TIMEOUT, f"the spans {names}")
    return spans()


def _named(spans: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (span,) = (span for span in spans if span["name"] == name)
    return span


def _lines_of(server: RunningServer, call_id: str) -> list[dict[str, Any]]:
    """Wait until a request has ended, and return its log lines."""

    def lines() -> list[dict[str, Any]]:
        return [line for line in map(json.loads, server.log_lines) if line["request_id"] == call_id]

    wait_until(lambda: any("REQUEST END" in line["message"] for line in lines()), TIMEOUT, "the end of the request")
    return lines()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_generation_is_one_trace(
    traced: RunningServer, receiver: RunningReceiver, stand_in: RunningStandIn, prompt: str
) -> None:
    trace, caller_span, headers = _new_trace()
    request = pb.CreateImageRequest(prompt=prompt, options=SMALL)
    _, call = traced.images.CreateImage.with_call(request, metadata=traced.admin.metadata + headers, timeout=TIMEOUT)

    steps_to_find = ("database wait", "database insert", "database commit", "store write", "store write_manifest")
    spans = _wait_for_spans(receiver, trace, f"{_SERVICE}/CreateImage", "generation", *steps_to_find)
    root = _named(spans, f"{_SERVICE}/CreateImage")
    generation = _named(spans, "generation")
    provider = _named(spans, "generate_content gpt-image-2.5-flare")
    assert (root["parent_id"], root["kind"], root["trace_state"]) == (caller_span, _SERVER, "vendor=opaque")
    assert root["attributes"] == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{_SERVICE}/CreateImage",
        "rpc.response.status_code": "OK",
    }
    assert generation["parent_id"] == root["span_id"]
    assert (provider["parent_id"], provider["kind"]) == (generation["span_id"], _CLIENT)
    steps = {span["name"]: span for span in spans}
    for span in spans:
        assert root["began"] <= span["began"] <= span["ended"]
        assert span["resource"]["service.name"] == "pixyproxy"
        assert not span["is_error"]
    # The call may see the commit before the generation worker has done what comes after it.
    assert all(span["ended"] <= root["ended"] for span in (generation, provider, steps["store write"]))
    assert steps["database insert"]["attributes"]["db.query.text"].strip().startswith("INSERT INTO")

    # The provider is told the same trace, under the span of the request to it.
    (sent,) = stand_in.submissions(prompt)["headers"]
    sent = {name.lower(): value for name, value in sent.items()}
    assert sent["traceparent"] == f"00-{trace}-{provider['span_id']}-01"
    assert sent["tracestate"] == "vendor=opaque"
    # And so are the readers of the log.
    lines = _lines_of(traced, call_id_of(call))
    assert [line["trace_id"] for line in lines] == [trace] * len(lines)
    # Nothing of what the caller sent is in the trace.
    assert prompt not in receiver.text
    assert traced.admin.password not in receiver.text
    assert traced.admin.metadata[0][1] not in receiver.text


def test_a_long_tracestate_is_shortened_to_what_can_be_recorded(
    mysql_server: DatabaseServer, tmp_path: Path, receiver: RunningReceiver, stand_in: RunningStandIn, prompt: str
) -> None:
    """The database stores 2048 bytes of JSON, where a quote takes two."""
    trace, _, headers = _new_trace()
    members = [f"vendor{number}={chr(34) * 120}" for number in range(32)]
    headers = (headers[0], ("tracestate", ",".join(members)))
    settings = asking(stand_in) | _SOON | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
    with fresh_database(mysql_server) as url:
        settings["PIXYPROXY_DATABASE_URL"] = url
        with running_server(tmp_path / "server", settings) as server:
            metadata = server.admin.metadata + headers
            request = pb.CreateImageRequest(prompt=prompt, options=SMALL)
            server.images.CreateImage(request, metadata=metadata, timeout=TIMEOUT)

    (sent,) = stand_in.submissions(prompt)["headers"]
    sent = {name.lower(): value for name, value in sent.items()}
    assert sent["traceparent"].split("-")[1] == trace
    assert sent["tracestate"] == ",".join(members[:3])


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_statements_of_database_servers(
    request: pytest.FixtureRequest, tmp_path: Path, receiver: RunningReceiver, kind: str
) -> None:
    """The driver looks for OpenTelemetry by itself; it must neither fail by it nor trace on its own account."""
    with fresh_database(request.getfixturevalue(f"{kind}_server")) as url:
        settings = _SOON | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "PIXYPROXY_DATABASE_URL": url}
        with running_server(tmp_path / "server", settings) as server:
            trace, _, headers = _new_trace()
            made = ImageClient(server, server.admin).create()
            server.images.GetImage(
                pb.GetImageRequest(guid=made.guid), metadata=server.admin.metadata + headers, timeout=TIMEOUT
            )
    spans = [span for span in receiver.spans if span["trace_id"] == trace]
    assert {span["name"] for span in spans} == {f"{_SERVICE}/GetImage", "database wait", "database fetch"}
    assert not any(span["is_error"] for span in spans)


def test_a_call_that_nobody_traces_begins_a_trace(traced: RunningServer, receiver: RunningReceiver) -> None:
    ImageClient(traced, traced.admin).page()
    wait_until(lambda: receiver.spans, TIMEOUT, "spans")
    root = wait_until(
        lambda: next((span for span in receiver.spans if span["name"] == f"{_SERVICE}/ListImages"), None), TIMEOUT, "it"
    )
    assert root["parent_id"] == ""


@pytest.mark.parametrize("traceparent", ["nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "0" * 5000])
def test_a_trace_that_cannot_be_read_is_none(
    traced: RunningServer, receiver: RunningReceiver, traceparent: str
) -> None:
    traced.images.ListImages(pb.ListImagesRequest(), metadata=(("traceparent", traceparent),), timeout=TIMEOUT)
    (root,) = wait_until(
        lambda: [span for span in receiver.spans if span["name"] == f"{_SERVICE}/ListImages"], TIMEOUT, "the span"
    )
    assert root["parent_id"] == ""


def test_a_trace_that_its_caller_does_not_record_is_not_sent(traced: RunningServer, receiver: RunningReceiver) -> None:
    quiet, span, _ = _new_trace()
    metadata = (("traceparent", f"00-{quiet}-{span}-00"),)
    traced.images.ListImages(pb.ListImagesRequest(), metadata=metadata, timeout=TIMEOUT)
    loud, _, headers = _new_trace()
    traced.images.ListImages(pb.ListImagesRequest(), metadata=headers, timeout=TIMEOUT)
    _wait_for_spans(receiver, loud, f"{_SERVICE}/ListImages")
    assert quiet not in {span["trace_id"] for span in receiver.spans}


def test_an_import_is_one_trace(traced: RunningServer, receiver: RunningReceiver, prompt: str) -> None:
    trace, caller_span, headers = _new_trace()
    traced.images.ImportImage(
        import_requests(encode("png"), prompt=prompt), metadata=traced.admin.metadata + headers, timeout=TIMEOUT
    )
    spans = _wait_for_spans(receiver, trace, f"{_SERVICE}/ImportImage")
    root = _named(spans, f"{_SERVICE}/ImportImage")
    assert (root["parent_id"], root["attributes"]["rpc.response.status_code"]) == (caller_span, "OK")
    assert {span["parent_id"] for span in spans if span["name"] == "store write"} == {root["span_id"]}
    assert prompt not in receiver.text


def test_errors_in_traces_and_in_metrics(traced: RunningServer, receiver: RunningReceiver, prompt: str) -> None:
    trace, _, headers = _new_trace()
    request = pb.CreateImageRequest(prompt=f"{prompt} [[fault:drop]]", options=SMALL)
    refusal(traced.images.CreateImage, request, traced.admin.metadata + headers)
    spans = _wait_for_spans(receiver, trace, f"{_SERVICE}/CreateImage", "generate_content gpt-image-2.5-flare")
    root = _named(spans, f"{_SERVICE}/CreateImage")
    provider = _named(spans, "generate_content gpt-image-2.5-flare")
    # The provider failed us; that the caller is told so is no fault of the server's own.
    assert (provider["is_error"], provider["attributes"]["error.type"]) == (True, "OutcomeUnknownError")
    assert (root["is_error"], root["attributes"]["rpc.response.status_code"]) == (False, "FAILED_PRECONDITION")
    assert {span["events"] for span in spans} == {0}, "no exception with its text"

    refusal(raw_unary(traced.channel, "/made.Up/Method"), b"", headers)
    assert _named(_wait_for_spans(receiver, trace, "_OTHER"), "_OTHER")["is_error"]
    assert "made.Up" not in receiver.text

    def counted(name: str, **attributes: str) -> int:
        wanted = {f"grpc.{key}": value for key, value in attributes.items()}
        return max(
            (point["count"] for point in receiver.points if (point["name"], point["attributes"]) == (name, wanted)),
            default=0,
        )

    method = f"{_SERVICE}/CreateImage"
    wait_until(
        lambda: counted("grpc.server.call.duration", method=method, status="FAILED_PRECONDITION") == 1, TIMEOUT, "it"
    )
    assert counted("grpc.server.call.started", method=method) == 1
    wait_until(
        lambda: counted("grpc.server.call.duration", method="other", status="UNIMPLEMENTED") == 1, TIMEOUT, "the other"
    )


def test_a_generation_without_a_trace_tells_the_provider_nothing(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    _, _, headers = _new_trace()
    request = pb.CreateImageRequest(prompt=prompt, options=SMALL)
    artist.stub.CreateImage(request, metadata=artist.metadata + headers, timeout=TIMEOUT)
    (sent,) = stand_in.submissions(prompt)["headers"]
    assert not {"traceparent", "tracestate"} & {name.lower() for name in sent}


def test_otlp_over_http(tmp_path: Path) -> None:
    with running_receiver(tmp_path, http=True) as receiver:
        settings = _SOON | {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_SERVICE_NAME": "pictures",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }
        with running_server(tmp_path / "server", settings) as server:
            ImageClient(server, server.admin).page()
        # What was not yet sent is sent at the end.
        resource = receiver.spans[-1]["resource"]
        assert (resource["service.name"], resource["deployment.environment.name"]) == ("pictures", "test")
        assert {point["name"] for point in receiver.points} >= {"grpc.server.call.duration", "grpc.server.call.started"}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_receiver_that_is_away_disturbs_nobody(tmp_path: Path, protocol: str) -> None:
    settings = _SOON | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        # What is tried again for an hour must not keep a server for as long.
        "OTEL_EXPORTER_OTLP_TIMEOUT": "3600",
    }
    with running_server(tmp_path, settings) as server:
        ImageClient(server, server.admin).page()
        assert server.stop() == 0
        assert "The last traces could not be sent in time." in server.log


def test_tracing_is_off_unless_asked_for() -> None:
    script = "import sys, pixyproxy.cli; sys.exit('opentelemetry.exporter' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path) -> None:
    # As where it is not installed.
    (tmp_path / "opentelemetry.py").write_text("raise ModuleNotFoundError")
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "PYTHONPATH": str(tmp_path)}
    done = run_command("serve", env=environment(tmp_path, settings))
    assert done.status == 1
    assert "OTEL_EXPORTER_OTLP_ENDPOINT: to send traces, install" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_lines(tmp_path: Path) -> None:
    with running_server(tmp_path, {"PIXYPROXY_LOG_FORMAT": "json"}) as server:
        refused = refusal(server.images.GetImage, pb.GetImageRequest(guid="x"))
        first, *_, last = _lines_of(server, refused.call_id)
        assert set(first) == {"time", "level", "request_id", "thread", "method", "line", "message"}
        assert (first["level"], first["method"], first["message"]) == ("INFO", "GetImage", "REQUEST START")
        assert last["message"].startswith("REQUEST END INVALID_ARGUMENT ")
        assert all(json.loads(line) for line in server.log_lines)
