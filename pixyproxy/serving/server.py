"""The gRPC server of one process: its port, its services, the order of its interceptors, and how it ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from pixyproxy_pb.v1 import image_service_pb2_grpc

from pixyproxy.bootstrap import Application
from pixyproxy.core.slots import SharedSlots, Slots
from pixyproxy.resource import reflection
from pixyproxy.resource.client_address import ClientAddresses
from pixyproxy.resource.connections import ConnectionLimiter, ConnectionLimits
from pixyproxy.resource.image_servicer import ImageServicer
from pixyproxy.resource.interceptors.arrivals import ArrivalInterceptor
from pixyproxy.resource.interceptors.authentication import AuthenticationInterceptor
from pixyproxy.resource.interceptors.bulkheads import BulkheadInterceptor
from pixyproxy.resource.interceptors.exceptions import ExceptionInterceptor
from pixyproxy.resource.interceptors.metrics import MetricsInterceptor
from pixyproxy.resource.interceptors.patience import PatienceInterceptor
from pixyproxy.resource.interceptors.readable_requests import ReadableRequestsInterceptor
from pixyproxy.resource.interceptors.ready_answers import ReadyAnswersInterceptor
from pixyproxy.resource.interceptors.request_log import RequestLogInterceptor
from pixyproxy.resource.interceptors.tracing import TracingInterceptor
from pixyproxy.resource.methods import OWN_SERVICES, Bulkhead
from pixyproxy.resource.tally import Tally
from pixyproxy.resource.watchdog import Watchdog
from pixyproxy.serving.certificates import TLSFiles
from pixyproxy.serving.port import cannot_listen
from pixyproxy.serving.threads import CallThreads
from pixyproxy.serving.tls import RenewableCredentials
from pixyproxy.settings import Settings

if TYPE_CHECKING:
    from pixyproxy.observability.metrics import Metrics

_logger = logging.getLogger(__name__)

# As many threads are fastest for quick calls; see docs/decisions.md.
_FEW_THREADS = 64
# Beyond the limits of all kinds of calls: for requests on their way, and for refusing what is over a limit.
_SPARE_THREADS = 256
# What cancelled calls have to end: longer than a step of one takes, such as the wait for the database.
_LEAVE_SECONDS = 10.0
_MAX_CALLS_A_CONNECTION = 250
_HANDSHAKE_MILLISECONDS = 20_000
_OPTIONS = (
    ("grpc.max_concurrent_streams", _MAX_CALLS_A_CONNECTION),
    ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MILLISECONDS),
)


class Server:
    """Serves an application on one port."""

    def __init__(
        self,
        application: Application,
        settings: Settings,
        connections: ConnectionLimits,
        shared_port: int | None = None,
    ) -> None:
        """Bind the port; serve nothing yet.

        Args:
            application: what to serve.
            settings: how.
            connections: the most connections to have open.
            shared_port: the port, where other workers listen there too.

        Raises:
            ConfigurationError: the port cannot be had.
        """
        self._drain_delay = settings.drain_delay
        self._drain_timeout = settings.drain_timeout
        self._health = _Health()
        metrics = application.metrics
        clients = ClientAddresses(settings.proxies)
        self._connections = ConnectionLimiter(
            connections, None if metrics is None else metrics.connections, is_exempt=clients.is_proxy
        )
        self._unread = Tally(
            "Calls that ended before their requests came", None if metrics is None else metrics.calls.unread
        )
        self._watchdog = Watchdog(settings.stall_timeout, self._unread)
        bulkheads = {
            Bulkhead.GENERATION: application.creations,
            Bulkhead.STREAM: application.streams,
            Bulkhead.UNARY: SharedSlots(settings.max_unary_calls).of(0),
        }
        slow = application.creations.limit + application.streams.limit + _SPARE_THREADS
        self._slow_threads = CallThreads("slow-call", few=slow, most=slow)
        self._threads = CallThreads("call", few=_FEW_THREADS, most=settings.max_unary_calls + _SPARE_THREADS)
        self._server = grpc.server(
            self._threads,
            interceptors=self._interceptors(application, bulkheads, clients),
            # On by default, it would let a second server start on the same port without an error.
            options=(
                *_OPTIONS,
                ("grpc.so_reuseport", int(shared_port is not None)),
                ("grpc.max_allowed_incoming_connections", connections.total),
                *_connection_options(settings),
            ),
            # Pictures are compressed already, and details are small.
            compression=grpc.Compression.NoCompression,
        )
        image_service_pb2_grpc.add_ImageServiceServicer_to_server(ImageServicer(application.images), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.channelz:
            channelz.add_channelz_servicer(self._server)
        reflection.enable_server_reflection([*OWN_SERVICES, health.SERVICE_NAME], self._server)
        self.address = _bind(self._server, settings, shared_port, application.metrics)

    def _interceptors(
        self, application: Application, bulkheads: Mapping[Bulkhead, Slots], addresses: ClientAddresses
    ) -> list[grpc.ServerInterceptor]:
        """Return all interceptors, the outermost first, each with the reason for its position."""
        metrics, telemetry = application.metrics, application.telemetry
        return [
            # Outermost: a call whose request never comes must cost little, and is neither traced nor logged.
            ArrivalInterceptor(self._watchdog, self._connections, self._unread, self._threads),
            # Outside the request log, whose lines name the trace.
            *([] if telemetry is None else [TracingInterceptor(telemetry)]),
            # Outside all that may refuse a call: every call with a request is logged, with its final code.
            RequestLogInterceptor(),
            # Inside the request log, and outside all that raises errors: it answers them.
            ExceptionInterceptor(),
            # Just inside it, where every error is still an exception.
            *([] if metrics is None else [MetricsInterceptor(metrics.calls)]),
            # Inside the request log, so that its line has the call's id; the rest inside is of no matter to it.
            PatienceInterceptor(self._watchdog),
            # Outside authentication: what a call over the limit costs must not grow with its credentials.
            BulkheadInterceptor(bulkheads, self._slow_threads),
            # Outside the reading of requests: who is not let in learns nothing about the request.
            AuthenticationInterceptor(application.users, addresses),
            # Innermost, beside the handlers: what these two change is what handlers take and return.
            ReadableRequestsInterceptor(),
            ReadyAnswersInterceptor(),
        ]

    def start(self) -> None:
        """Serve."""
        self._watchdog.start()
        self._connections.start(int(self.address.rpartition(":")[2]))
        self._server.start()
        for service in ("", *OWN_SERVICES):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> None:
        """Say that no new calls are wanted, let the running ones finish, and stop.

        Calls that hang are left to the end of the process.
        """
        self._health.enter_graceful_shutdown()
        time.sleep(self._drain_delay)
        ends_at = time.monotonic() + self._drain_timeout + _LEAVE_SECONDS
        stopped = self._server.stop(self._drain_timeout)
        self._health.end_watches()
        stopped.wait(ends_at - time.monotonic())
        hanging = 0
        for threads in (self._threads, self._slow_threads):
            threads.shutdown(wait=False)
            hanging += threads.join(max(0.0, ends_at - time.monotonic()))
        if hanging:
            _logger.error(
                "%d calls hang and are left: they have not ended %g s after they were cancelled.",
                hanging,
                _LEAVE_SECONDS,
            )
        self._watchdog.close()
        self._connections.close()


class _Health(health.HealthServicer):
    """The standard health service, whose watchers do not keep a server from ending.

    A balancer watches for as long as it is connected: the drain would always last until its time is over.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[Callable[[None], None]] = set()

    def Watch(self, request: Any, context: grpc.ServicerContext, send_response_callback: Any = None) -> Any:
        super().Watch(request, context, send_response_callback)
        self._watches.add(send_response_callback)
        context.add_callback(lambda: self._watches.discard(send_response_callback))

    def _on_close_callback(self, send_response_callback: Callable[[None], None], service: str) -> Callable[[], None]:
        # gRPC calls it in the serving thread, which must not wait for the lock: whoever holds the lock may be waiting
        # for that thread to send what watchers are told.
        forget = super()._on_close_callback(send_response_callback, service)  # type: ignore[misc]  # not in the stubs
        return lambda: threading.Thread(target=forget, name="health", daemon=True).start()

    def end_watches(self) -> None:
        """End all watches in good order, after what they have been told."""
        for send in tuple(self._watches):
            send(None)


def _connection_options(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Say when connections are tested, and when clients are asked to connect anew, in gRPC's milliseconds."""
    seconds = {
        "grpc.keepalive_time_ms": settings.keepalive_time,
        "grpc.keepalive_timeout_ms": settings.keepalive_timeout,
        # Without it gRPC waits a minute for the answer to a ping, whatever the keepalive timeout is.
        "grpc.http2.ping_timeout_ms": settings.keepalive_timeout,
        "grpc.http2.min_ping_interval_without_data_ms": settings.min_ping_interval,
        "grpc.max_connection_age_ms": settings.max_connection_age,
        # Without it gRPC lets calls finish.
        "grpc.max_connection_age_grace_ms": settings.max_connection_age_grace,
    }
    options = tuple((name, int(value * 1000)) for name, value in seconds.items() if value is not None)
    return ("grpc.keepalive_permit_without_calls", 1), *options


def _bind(server: grpc.Server, settings: Settings, shared_port: int | None, metrics: Metrics | None) -> str:
    """Bind the port, with TLS where there is a certificate, and return the address as host:port."""
    host, _, port = settings.listen.rpartition(":")
    address = f"{host}:{port if shared_port is None else shared_port}"
    try:
        if settings.tls_certificate is None or settings.tls_key is None:
            bound = server.add_insecure_port(address)
        else:
            files = TLSFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
            tls = (
                RenewableCredentials(files)
                if metrics is None
                else RenewableCredentials(files, metrics.certificate_loaded)
            )
            bound = server.add_secure_port(address, tls.credentials)
    except RuntimeError as error:
        raise cannot_listen(settings) from error
    return f"{host}:{bound}"
