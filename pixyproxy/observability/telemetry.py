"""Traces, and the standard metrics of gRPC, sent by OTLP as OpenTelemetry's own variables specify.

Imported only if enabled: its packages are the extra ``telemetry``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
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
# The names for unknown methods: callers must not be able to create any number of names.
_OTHER_SPAN_METHOD = "_OTHER"
_OTHER_METRIC_METHOD = "other"
# The codes for errors of the server, not of the caller.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
# The bounds that gRPC's specification defines for histograms of durations, in seconds.
_BOUNDS = (
    *(0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.013),
    *(0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
)
# The W3C recommendation asks to pass on at least so many characters. The database stores 2048, in JSON, where each of
# them may take two.
_MAX_TRACESTATE = 512
_SECONDS_TO_END = 5.0
# While a receiver is unavailable, this logger warns about every second.
_EXPORTER_LOG = "opentelemetry.exporter"

_logger = logging.getLogger(__name__)

Protocol = Literal["grpc", "http/protobuf"]


class Telemetry:
    """Makes spans and counts calls. Safe for use by several threads. Create it after forking."""

    def __init__(self, protocol: Protocol) -> None:
        """Start sending. The SDK reads everything but ``protocol`` from the variables ``OTEL_…``."""
        logging.getLogger(_EXPORTER_LOG).setLevel(logging.ERROR)
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
        """Send the remaining data, for at most ``_SECONDS_TO_END`` seconds."""
        # The SDK's own limits add up to more than service managers wait before SIGKILL.
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
        """Enter the span of a call.

        Args:
            method: the full name of the method without the leading slash, or None if there is no such method.
            headers: the metadata of the call; ``traceparent`` and ``tracestate`` are read.
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
        """Return the headers that continue the current span elsewhere."""
        headers: dict[str, str] = {}
        self._context_format.inject(headers)
        if len(state := headers.get("tracestate", "")) > _MAX_TRACESTATE:
            # Whole members are left out, from the end.
            headers["tracestate"] = state[: _MAX_TRACESTATE + 1].rpartition(",")[0]
        return headers

    @contextmanager
    def continuing(self, headers: Mapping[str, str]) -> Iterator[None]:
        """Make spans children of the one that ``headers`` name."""
        token = context.attach(self._context_format.extract(headers))
        try:
            yield
        finally:
            context.detach(token)

    def generation(self, request: GenerationRequest) -> AbstractContextManager[None]:
        """Enter the span of an attempt of a generation."""
        return self._span("generation", SpanKind.INTERNAL, {"gen_ai.request.model": request.model})

    @contextmanager
    def provider_request(self, request: GenerationRequest) -> Iterator[None]:
        """Enter the span of a request to the provider, and set the request's trace headers."""
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
        self, operation: str, began: float, ended: float, error: BaseException | None, detail: str
    ) -> None:
        """Make the span of a statement, or of a wait for a connection."""
        attributes = {"db.operation.name": operation}
        if detail:
            attributes["db.query.text"] = detail.strip()
        kind = SpanKind.INTERNAL if operation == WAIT else SpanKind.CLIENT
        self._step(f"database {operation}", kind, began, ended, error, attributes)

    def record_store(
        self, operation: str, began: float, ended: float, error: BaseException | None, detail: str
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
        """Make the span of an operation that has ended, if it belongs to a sampled trace."""
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
    """What is known of a call at its end: the name of its status code."""

    code: str = "UNKNOWN"


def _note_error(span: Span, error: BaseException | None) -> None:
    """Set the type of an error. Its text and traceback could contain data of callers."""
    if error is not None:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR))
