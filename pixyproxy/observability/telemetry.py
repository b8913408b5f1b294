"""Traces, and the standard metrics of gRPC, sent by OTLP as OpenTelemetry's own variables say.

Imported only where it is wanted: the packages that it needs are the extra ``telemetry``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Literal

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pixyproxy.core.request_context import trace_headers, trace_id
from pixyproxy.generation.interfaces import GenerationRequest
from pixyproxy.observability.database import WAIT

_NAME = "pixyproxy"
# What a call is named by whose method there is not: callers must not be able to make up names without end.
_OTHER_SPAN_METHOD = "_OTHER"
_OTHER_METRIC_METHOD = "other"
# The codes that say that the server is at fault, and not the caller.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
# What a histogram of gRPC's durations has as bounds by its specification, in seconds.
_BOUNDS = (
    *(0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.013),
    *(0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
)
_SECONDS_TO_END = 5.0
# It would warn of each attempt to reach a receiver that is away, every second or so.
_TALKATIVE = "opentelemetry.exporter"

_logger = logging.getLogger(__name__)

Protocol = Literal["grpc", "http/protobuf"]


class Telemetry:
    """Makes spans and counts calls. Safe to use from many threads at once; made in the process that serves."""

    def __init__(self, protocol: Protocol) -> None:
        """Prepare to send; everything but ``protocol``, the SDK itself reads from the variables ``OTEL_…``."""
        logging.getLogger(_TALKATIVE).setLevel(logging.ERROR)
        is_grpc = protocol == "grpc"
        named = Resource.create({"service.name": _NAME, "service.version": version(_NAME)})
        resource = named.merge(OTELResourceDetector().detect())
        self._spans = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._spans.add_span_processor(BatchSpanProcessor(GrpcSpanExporter() if is_grpc else HttpSpanExporter()))
        self._tracer = self._spans.get_tracer(_NAME)
        reader = PeriodicExportingMetricReader(GrpcMetricExporter() if is_grpc else HttpMetricExporter())
        self._numbers = MeterProvider([reader], resource, shutdown_on_exit=False)
        meter = self._numbers.get_meter(_NAME)
        self._started = meter.create_counter("grpc.server.call.started", "{call}", "Calls that began.")
        self._duration = meter.create_histogram(
            "grpc.server.call.duration",
            "s",
            "How long calls took.",
            explicit_bucket_boundaries_advisory=_BOUNDS,
        )
        self._context_format = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left, as far as that can be done within some seconds."""
        # The SDK's own limits add up to more than managers of services wait before they kill.
        ending = threading.Thread(target=self._send_the_rest, name="telemetry", daemon=True)
        ending.start()
        ending.join(_SECONDS_TO_END)
        if ending.is_alive():
            _logger.warning("The last traces could not be sent in time.")

    def _send_the_rest(self) -> None:
        self._spans.shutdown()
        self._numbers.shutdown()

    @contextmanager
    def call(self, method: str | None, headers: Mapping[str, str]) -> Iterator[CallSpan]:
        """Give the span of a call, which is the current one until its end.

        Args:
            method: its full name without the leading slash, or None where there is no such method.
            headers: what the caller sent, of which ``traceparent`` and ``tracestate`` are read.
        """
        began = time.perf_counter()
        self._started.add(1, {"grpc.method": method or _OTHER_METRIC_METHOD})
        call = CallSpan()
        with self._tracer.start_as_current_span(
            method or _OTHER_SPAN_METHOD,
            self._context_format.extract(headers),
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": method or _OTHER_SPAN_METHOD},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            token = trace_id.set(trace.format_trace_id(span.get_span_context().trace_id))
            try:
                yield call
            finally:
                trace_id.reset(token)
                span.set_attribute("rpc.response.status_code", call.code)
                if call.code in _FAULTS:
                    span.set_status(Status(StatusCode.ERROR))
                self._duration.record(
                    time.perf_counter() - began,
                    {"grpc.method": method or _OTHER_METRIC_METHOD, "grpc.status": call.code},
                )

    def headers(self) -> dict[str, str]:
        """Return what tells others that their work is a part of the current span."""
        headers: dict[str, str] = {}
        self._context_format.inject(headers)
        return headers

    @contextmanager
    def continuing(self, headers: Mapping[str, str]) -> Iterator[None]:
        """Let spans be parts of the one that another process gave ``headers`` of."""
        token = context.attach(self._context_format.extract(headers))
        try:
            yield
        finally:
            context.detach(token)

    @contextmanager
    def generation(self, request: GenerationRequest) -> Iterator[None]:
        """Enter the span of a generation, waits and repetitions included."""
        with self._span("generation", SpanKind.INTERNAL, {"gen_ai.request.model": request.model}):
            yield

    @contextmanager
    def provider_request(self, request: GenerationRequest) -> Iterator[None]:
        """Enter the span of a request to the provider, and have it told the trace."""
        operation = "generate_content"
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": request.model,
            "gen_ai.output.type": "image",
        }
        with self._span(f"{operation} {request.model}", SpanKind.CLIENT, attributes):
            token = trace_headers.set(self.headers())
            try:
                yield
            finally:
                trace_headers.reset(token)

    def record_statement(
        self, operation: str, began: float, ended: float, error: BaseException | None = None, detail: str = ""
    ) -> None:
        """Make the span of a statement, or of the wait for a connection."""
        attributes = {"db.operation.name": operation}
        if detail:
            attributes["db.query.text"] = detail.strip()
        kind = SpanKind.INTERNAL if operation == WAIT else SpanKind.CLIENT
        self._step(f"database {operation}", kind, began, ended, error, attributes)

    def record_store(
        self, operation: str, began: float, ended: float, error: BaseException | None = None, detail: str = ""
    ) -> None:
        """Make the span of an operation of the image store."""
        self._step(f"store {operation}", SpanKind.CLIENT, began, ended, error, {})

    def _step(
        self,
        name: str,
        kind: SpanKind,
        began: float,
        ended: float,
        error: BaseException | None,
        attributes: dict[str, str],
    ) -> None:
        """Make a span of something that is over, within a call: what a server does by itself is not traced."""
        # Its span may be another process's.
        if not trace.get_current_span().get_span_context().trace_flags.sampled:
            return
        now, since_epoch = time.perf_counter(), time.time_ns()
        span = self._tracer.start_span(
            name, kind=kind, attributes=attributes, start_time=since_epoch - int((now - began) * 1e9)
        )
        _note_error(span, error)
        span.end(since_epoch - int((now - ended) * 1e9))

    @contextmanager
    def _span(self, name: str, kind: SpanKind, attributes: dict[str, str]) -> Iterator[None]:
        with self._tracer.start_as_current_span(
            name, kind=kind, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except BaseException as error:
                _note_error(span, error)
                raise


class CallSpan:
    """What is known of a call only at its end.

    Attributes:
        code: the name of its status code.
    """

    code: str = "UNKNOWN"


def _note_error(span: Span, error: BaseException | None) -> None:
    """Say which error it was; its text and its traceback might hold what callers sent."""
    if error is not None:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR))
