"""A receiver of OTLP as a process of its own: ``python -m tests.support.otlp_receiver --port 0``.

It speaks OTLP over gRPC or, with ``--http``, over HTTP, and prints its address, and then everything that it is sent,
as lines of JSON that hold ``spans`` or ``metrics``.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

_KINDS: dict[str, Any] = {
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": ExportTraceServiceRequest,
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": ExportMetricsServiceRequest,
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
}


def _attributes(attributes: Any) -> dict[str, Any]:
    def plain(value: AnyValue) -> Any:
        return getattr(value, value.WhichOneof("value") or "string_value")

    return {pair.key: plain(pair.value) for pair in attributes}


def _spans(request: Any) -> Iterator[dict[str, Any]]:
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield {
                    "name": span.name,
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "parent_id": span.parent_span_id.hex(),
                    "trace_state": span.trace_state,
                    "kind": span.kind,
                    "is_error": span.status.code == 2,
                    "events": len(span.events),
                    "began": span.start_time_unix_nano,
                    "ended": span.end_time_unix_nano,
                    "attributes": _attributes(span.attributes),
                    "resource": _attributes(resource.resource.attributes),
                }


def _points(request: Any) -> Iterator[dict[str, Any]]:
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in getattr(metric, metric.WhichOneof("data")).data_points:
                    count = point.count if hasattr(point, "count") else point.as_int
                    yield {"name": metric.name, "count": count, "attributes": _attributes(point.attributes)}


def _take(path: str, data: bytes) -> None:
    request = _KINDS[path].FromString(data)
    is_trace = isinstance(request, ExportTraceServiceRequest)
    found = list(_spans(request) if is_trace else _points(request))
    sys.stdout.write(json.dumps({"spans" if is_trace else "metrics": found}) + "\n")
    sys.stdout.flush()


class _Methods(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        path = handler_call_details.method

        def export(data: bytes, _: grpc.ServicerContext) -> bytes:
            _take(path, data)
            return b""

        return grpc.unary_unary_rpc_method_handler(export)


class _HttpHandler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        _take(self.path, gzip.decompress(data) if self.headers["Content-Encoding"] == "gzip" else data)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--http", action="store_true")
    options = parser.parse_args()
    if options.http:
        http = ThreadingHTTPServer(("127.0.0.1", options.port), _HttpHandler)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        port = http.server_port
    else:
        server = grpc.server(ThreadPoolExecutor(4), handlers=[_Methods()])
        port = server.add_insecure_port(f"127.0.0.1:{options.port}")
        server.start()
    sys.stdout.write(f"http://127.0.0.1:{port}\n")
    sys.stdout.flush()
    sys.stdin.read()


@dataclass
class RunningReceiver:
    """A receiver process.

    Attributes:
        endpoint: its address as ``OTEL_EXPORTER_OTLP_ENDPOINT`` names it.
    """

    endpoint: str
    _output: Path

    @property
    def spans(self) -> list[dict[str, Any]]:
        """All spans that it was sent so far."""
        return [span for got in self._got for span in got.get("spans", [])]

    @property
    def points(self) -> list[dict[str, Any]]:
        """All points of metrics that it was sent so far."""
        return [point for got in self._got for point in got.get("metrics", [])]

    @property
    def text(self) -> str:
        """All that it was sent so far."""
        return self._output.read_text(encoding="utf-8")

    @property
    def _got(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.split("\n")[1:-1]]


@contextlib.contextmanager
def running_receiver(folder: Path, *, http: bool = False) -> Iterator[RunningReceiver]:
    """Run a receiver, which writes what it gets to a file in ``folder``."""
    output = folder / "otlp"
    command = [sys.executable, "-m", "tests.support.otlp_receiver", *(["--http"] if http else [])]
    with (
        output.open("wb") as file,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file) as process,
    ):
        from tests.support.waiting import wait_until

        try:
            endpoint = wait_until(lambda: "\n" in output.read_text() and output.read_text().split("\n")[0], 30, "OTLP")
            yield RunningReceiver(str(endpoint), output)
        finally:
            assert process.stdin is not None
            process.stdin.close()


if __name__ == "__main__":
    main()
