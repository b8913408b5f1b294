"""The metrics of a server, for Prometheus.

Each process writes its metrics to files, which the process with the exposition reads. The variable that names their
folder must be set before this module is imported, because prometheus_client reads it at import.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property, lru_cache
from importlib.metadata import version

from prometheus_client import Counter, Gauge, Histogram

from pixyproxy.core.error_records import with_subclasses
from pixyproxy.core.exceptions import ProviderError
from pixyproxy.core.models import Cost
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest
from pixyproxy.generation.observer import GenerationObserver
from pixyproxy.observability.database import WAIT

MADE = "made"
"""The outcome of a successful generation; the others are names of exceptions."""

# Callers choose the model: each invented name must not become a time series.
_OTHER_MODEL = "other"
_MAX_MODELS = 20

_CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_STEP_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_GENERATION_SECONDS = (1, 2.5, 5, 10, 20, 30, 60, 90, 120, 180, 240, 300, 420, 600, 900, 1200)


class Metrics:
    """All metrics of a process. Safe for use by several threads."""

    def __init__(self) -> None:
        info = Gauge("pixyproxy_build_info", "The version that serves.", ("version",), multiprocess_mode="livemax")
        info.labels(version("pixyproxy")).set(1)
        self.calls = CallMetrics()
        self.connections = ConnectionMetrics()
        self.generation = GenerationMetrics()
        self.database = DatabaseMetrics()
        self.store = StoreMetrics()

    def certificate_loaded(self, expires_at: datetime) -> None:
        """Set when the server's certificate expires."""
        self._certificate.set(expires_at.timestamp())

    @cached_property
    def _certificate(self) -> Gauge:
        """Made only if there is a certificate: 0 would mean an expired one."""
        return Gauge(
            "pixyproxy_tls_certificate_expires_timestamp_seconds",
            "When the TLS certificate expires, in seconds since 1970.",
            multiprocess_mode="livemin",
        )


class CallMetrics:
    """Calls, with the metric names of go-grpc-prometheus."""

    def __init__(self) -> None:
        labels = ("grpc_service", "grpc_method")
        self._started = Counter("grpc_server_started", "Started calls.", labels)
        self._handled = Counter("grpc_server_handled", "Completed calls, by code.", (*labels, "grpc_code"))
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "Duration of calls, of streams to their last message.",
            labels,
            buckets=_CALL_SECONDS,
        )
        self._errors = Counter("pixyproxy_errors", "Failed calls, by the reason of the error.", ("reason",))
        self._unread = Counter(
            "pixyproxy_calls_without_request", "Calls that ended before their requests were received.", ("reason",)
        )
        self._waits = Histogram(
            "pixyproxy_call_wait_seconds",
            "Time that calls waited for a thread, of those that waited.",
            buckets=_STEP_SECONDS,
        )
        # Looking up a labelled metric costs three times as much as changing it.
        self._started_of = lru_cache(maxsize=None)(self._started.labels)
        self._handled_of = lru_cache(maxsize=None)(self._handled.labels)
        self._seconds_of = lru_cache(maxsize=None)(self._seconds.labels)

    def expect(self, calls: Iterable[tuple[str, str]], reasons: Iterable[str]) -> None:
        """Start counters at 0: for a counter that first appears as 1, Prometheus sees no increase."""
        for service, method in calls:
            self._started_of(service, method)
            self._handled_of(service, method, "OK")
            self._seconds_of(service, method)
        for reason in reasons:
            self._errors.labels(reason)
        for reason in ("cancelled", "cut_off", "refused"):
            self._unread.labels(reason)

    def began(self, service: str, method: str) -> None:
        """Count the start of a call."""
        self._started_of(service, method).inc()

    def ended(self, service: str, method: str, code: str, seconds: float) -> None:
        """Count the end of a call, and its duration."""
        self._handled_of(service, method, code).inc()
        self._seconds_of(service, method).observe(seconds)

    def refused(self, reason: str) -> None:
        """Count the error of a call by its reason."""
        self._errors.labels(reason).inc()

    def unread(self, reason: str) -> None:
        """Count a call that ended before its request was read."""
        self._unread.labels(reason).inc()

    def waited(self, seconds: float) -> None:
        """Count a call that has waited for a thread, and how long it did."""
        self._waits.observe(seconds)


class ConnectionMetrics:
    """Connections of clients."""

    def __init__(self) -> None:
        self._open = _live_sum("pixyproxy_connections", "Open connections.")
        self._limit = _live_sum("pixyproxy_connections_limit", "The most open connections.")
        self._closed = Counter("pixyproxy_connections_closed", "Connections closed because of a limit.", ("limit",))
        for limit in ("total", "per_address"):
            self._closed.labels(limit)

    def set_limit(self, count: int) -> None:
        """Set the most open connections."""
        self._limit.set(count)

    def opened(self, count: int) -> None:
        """Set the number of open connections."""
        self._open.set(count)

    def closed(self, limit: str) -> None:
        """Count a connection that was closed because of a limit, ``total`` or ``per_address``."""
        self._closed.labels(limit).inc()


class GenerationMetrics(GenerationObserver):
    """Generations, and requests to the provider. A generation may take several requests."""

    def __init__(self) -> None:
        self._generations = Counter("pixyproxy_generations", "Completed generations, by outcome.", ("model", "outcome"))
        self._seconds = Histogram(
            "pixyproxy_generation_seconds",
            "Duration of successful generations, including waits and retries.",
            ("model",),
            buckets=_GENERATION_SECONDS,
        )
        self._unknown_outcomes = Counter(
            "pixyproxy_unknown_outcomes", "Generations that ended with an unknown outcome, also after a crash."
        )
        self._tokens = Counter(
            "pixyproxy_generation_tokens", "Tokens that the provider counted.", ("model", "direction")
        )
        self._dollars = Counter(
            "pixyproxy_generation_cost_dollars",
            "What stored images cost, by the price list, in US dollars.",
            ("model",),
        )
        self._unpriced = Counter(
            "pixyproxy_generation_images_without_cost", "Stored images with an unknown cost.", ("model",)
        )
        self._under_way = _live_sum("pixyproxy_generations_under_way", "Submitted generations.")
        self._slots = _live_sum("pixyproxy_generation_slots", "The most submitted generations.")
        self._requests = Counter("pixyproxy_provider_requests", "Requests to the provider, by outcome.", ("outcome",))
        self._request_seconds = Histogram(
            "pixyproxy_provider_request_seconds",
            "Duration of requests to the provider, with any outcome.",
            buckets=_GENERATION_SECONDS,
        )
        self._asking = _live_sum("pixyproxy_provider_requests_under_way", "Requests to the provider in progress.")
        self._retries = Counter("pixyproxy_provider_retries", "Retried requests, by error.", ("error",))
        self._waits = Histogram(
            "pixyproxy_pacing_wait_seconds",
            "Time of requests in the queue before they were submitted.",
            buckets=_GENERATION_SECONDS,
        )
        self._waiting = _live_sum("pixyproxy_pacing_waiting", "Queued generations that calls wait for.")
        self._open_circuits = _live_sum(
            "pixyproxy_provider_circuits_open", "Processes with an open circuit, because the provider is down."
        )
        _, *provider_errors = with_subclasses(ProviderError)
        for outcome in (MADE, *(kind.__name__ for kind in provider_errors)):
            self._requests.labels(outcome)
        self._models: set[str] = set()
        self._lock = threading.Lock()

    def set_slots(self, count: int) -> None:  # noqa: D102  inherited
        self._slots.set(count)

    def generations_changed(self, change: int) -> None:  # noqa: D102  inherited
        self._under_way.inc(change)

    def claimed(self, waited: float) -> None:  # noqa: D102  inherited
        self._waits.observe(waited)

    def queued(self, count: int) -> None:  # noqa: D102  inherited
        self._waiting.set(count)

    def ended(self, model: str, seconds: float, outcome: GeneratedImage | BaseException) -> None:  # noqa: D102  inherited
        if not isinstance(outcome, GeneratedImage):
            self._generations.labels(self._label_of(model, is_known=False), type(outcome).__name__).inc()
            return
        model = self._label_of(model, is_known=True)
        self._generations.labels(model, MADE).inc()
        self._seconds.labels(model).observe(seconds)
        if outcome.usage is not None:
            self._tokens.labels(model, "input").inc(outcome.usage.input_tokens)
            self._tokens.labels(model, "output").inc(outcome.usage.output_tokens)

    def outcome_unknown(self) -> None:  # noqa: D102  inherited
        self._unknown_outcomes.inc()

    def spent(self, model: str, cost: Cost | None) -> None:  # noqa: D102  inherited
        model = self._label_of(model, is_known=True)
        # Both appear with the first image: for a counter that first appears as 1, Prometheus sees no increase.
        self._dollars.labels(model).inc(0 if cost is None else cost.nano_usd / 10**9)
        self._unpriced.labels(model).inc(cost is None)

    @contextmanager
    def provider_request(self, _: GenerationRequest) -> Iterator[None]:
        """Count and time a request to the provider."""
        outcome = MADE
        with self._asking.track_inprogress(), self._request_seconds.time():
            try:
                yield
            except BaseException as error:
                outcome = type(error).__name__
                raise
            finally:
                self._requests.labels(outcome).inc()

    def retrying(self, error: ProviderError) -> None:  # noqa: D102  inherited
        self._retries.labels(type(error).__name__).inc()

    def circuit_changed(self, is_open: bool) -> None:  # noqa: D102  inherited
        self._open_circuits.set(is_open)

    def _label_of(self, model: str, *, is_known: bool) -> str:
        """Return the model, if it has ever generated an image, otherwise a name for all others."""
        with self._lock:
            if is_known and len(self._models) < _MAX_MODELS:
                self._models.add(model)
            return model if model in self._models else _OTHER_MODEL


class DatabaseMetrics:
    """Statements and connections of the database."""

    def __init__(self) -> None:
        self._statements = Histogram(
            "pixyproxy_database_statement_seconds", "Duration of statements.", ("operation",), buckets=_STEP_SECONDS
        )
        self._waits = Histogram(
            "pixyproxy_database_wait_seconds",
            "Time to get a connection and, for a transaction, to begin it.",
            buckets=_STEP_SECONDS,
        )
        self._errors = Counter("pixyproxy_database_errors", "Failed statements and waits, by error.", ("error",))
        # Its rate is the average number of connections in use, which a gauge would only sample.
        self._use = Counter("pixyproxy_database_connection_use_seconds", "Seconds for which connections were in use.")
        self._limit = _live_sum("pixyproxy_database_connections_limit", "The most connections in use.")
        self._statements_of = lru_cache(maxsize=None)(self._statements.labels)

    def set_limit(self, count: int) -> None:
        """Set the most connections of this process."""
        self._limit.set(count)

    def used(self, seconds: float) -> None:
        """Count the seconds for which a connection was in use."""
        self._use.inc(seconds)

    def record(self, operation: str, began: float, ended: float, error: BaseException | None, detail: str) -> None:
        """Record a statement, or a wait for a connection."""
        if operation == WAIT:
            self._waits.observe(ended - began)
        else:
            self._statements_of(operation).observe(ended - began)
        if error is not None:
            self._errors.labels(type(error).__name__).inc()


class StoreMetrics:
    """Operations of the image store."""

    def __init__(self) -> None:
        self._operations = Histogram(
            "pixyproxy_store_operation_seconds",
            "Duration of operations of the image store; all reads of an image are one operation.",
            ("operation",),
            buckets=_STEP_SECONDS,
        )
        self._errors = Counter("pixyproxy_store_errors", "Failed operations of the image store, by error.", ("error",))
        self._bytes = Counter("pixyproxy_store_bytes", "Bytes of images read or written.", ("direction",))

    def moved(self, direction: str, count: int) -> None:
        """Count bytes that were read or written."""
        self._bytes.labels(direction).inc(count)

    def record(self, operation: str, began: float, ended: float, error: BaseException | None, detail: str) -> None:
        """Record an operation."""
        self._operations.labels(operation).observe(ended - began)
        if error is not None:
            self._errors.labels(type(error).__name__).inc()


def _live_sum(name: str, text: str) -> Gauge:
    """Make a gauge with the sum of the values of all running processes."""
    return Gauge(name, text, multiprocess_mode="livesum")
