"""The gRPC server of one process: its port, its services, the order of its interceptors, and its end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from pixyproxy_pb.v1 import (
    generation_service_pb2_grpc,
    image_download_service_pb2_grpc,
    image_service_pb2_grpc,
    usage_service_pb2_grpc,
)

from pixyproxy.bootstrap import Application
from pixyproxy.resource import reflection
from pixyproxy.resource.call_threads import THREAD_NAME, CallThreads
from pixyproxy.resource.client_address import ClientAddresses
from pixyproxy.resource.connections import ConnectionLimiter, ConnectionLimits
from pixyproxy.resource.generation_servicer import GenerationServicer
from pixyproxy.resource.image_download_servicer import ImageDownloadServicer
from pixyproxy.resource.image_servicer import ImageServicer
from pixyproxy.resource.interceptors.authentication import AuthenticationInterceptor
from pixyproxy.resource.interceptors.bulkheads import BulkheadInterceptor
from pixyproxy.resource.interceptors.exceptions import ExceptionInterceptor
from pixyproxy.resource.interceptors.messages import MessageInterceptor
from pixyproxy.resource.interceptors.metrics import MetricsInterceptor
from pixyproxy.resource.interceptors.request_log import RequestLogInterceptor
from pixyproxy.resource.interceptors.stall_timeout import ReaderTimeoutInterceptor, RequestTimeoutInterceptor
from pixyproxy.resource.interceptors.tracing import TracingInterceptor
from pixyproxy.resource.methods import OWN_SERVICES
from pixyproxy.resource.tally import Tally
from pixyproxy.resource.usage_servicer import UsageServicer
from pixyproxy.resource.watchdog import Watchdog
from pixyproxy.serving.certificates import TLSFiles
from pixyproxy.serving.port import cannot_listen
from pixyproxy.serving.tls import RenewableCredentials
from pixyproxy.settings import Settings

if TYPE_CHECKING:
    from pixyproxy.observability.metrics import Metrics

_logger = logging.getLogger(__name__)

_MAX_PENDING = 128
# Beyond the limits of bulkheads: for pending requests, for health checks, and for refusing calls over a limit.
_SPARE_THREADS = _MAX_PENDING + 32
# Of the other kinds, which have a thread for each slot: only pending requests can make them wait.
_MAX_OTHERS_WAITING = 512
# In which cancelled calls should end: longer than a step of one takes, such as the wait for the database.
_CANCEL_SECONDS = 10.0
_MAX_CALLS_A_CONNECTION = 250
_HANDSHAKE_MILLISECONDS = 20_000
# In gRPC's core, before the serving thread takes them. Beyond gRPC's default, 1,000, calls would begin to be cancelled.
_MAX_UNTAKEN_CALLS = 5000
# The empty name stands for the whole server.
_HEALTH_SERVICES = ("", *OWN_SERVICES)
_OPTIONS = (
    ("grpc.server.max_pending_requests", _MAX_UNTAKEN_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", _MAX_UNTAKEN_CALLS),
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
        """Bind the port, and serve from ``start`` on; ``shared_port`` is the port if other RPC workers also use it.

        Raises:
            ConfigurationError: the port is not available.
        """
        self._drain_delay = settings.drain_delay
        self._drain_timeout = settings.drain_timeout
        self._health = _Health()
        self._generations = application.generations
        metrics = application.metrics
        clients = ClientAddresses(settings.proxies)
        self._connections = ConnectionLimiter(
            connections, None if metrics is None else metrics.connections, is_exempt=clients.is_proxy
        )
        self._unread = Tally(
            "Calls that ended before their requests came", None if metrics is None else metrics.calls.unread
        )
        authentication = AuthenticationInterceptor(application.users, clients)
        waited = None if metrics is None else metrics.calls.waited
        unary_threads = CallThreads(settings.max_unary_calls, authentication.client_of, waited)
        other_threads = CallThreads(
            sum(slots.total for slots in application.slots.values()) + _SPARE_THREADS,
            authentication.client_of,
            waited,
            max_waiting=_MAX_OTHERS_WAITING,
        )
        self._threads = (unary_threads, other_threads)
        self._watchdog = Watchdog(
            settings.stall_timeout,
            self._unread,
            self._threads,
            max_pending=min(_MAX_PENDING, settings.max_unary_calls // 2),
            # One for each connection, which is all that clients need.
            max_watches=connections.total,
        )
        self._server = grpc.server(
            other_threads,
            interceptors=self._interceptors(
                application, authentication, BulkheadInterceptor(application.slots, unary_threads, clients)
            ),
            # By default, a second server would start on the same port without an error.
            options=(
                *_OPTIONS,
                ("grpc.so_reuseport", int(shared_port is not None)),
                ("grpc.max_allowed_incoming_connections", connections.total),
                *_connection_options(settings),
            ),
            # Image bytes are compressed already, and details are small.
            compression=grpc.Compression.NoCompression,
        )
        _add_services(self._server, application)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.channelz:
            channelz.add_channelz_servicer(self._server)
        reflection.enable_server_reflection([*OWN_SERVICES, health.SERVICE_NAME], self._server)
        self.address = _bind(self._server, settings, shared_port, application.metrics)

    def _interceptors(
        self, application: Application, authentication: AuthenticationInterceptor, bulkheads: BulkheadInterceptor
    ) -> list[grpc.ServerInterceptor]:
        """Return all interceptors, the outermost first, each with the reason for its position."""
        metrics, telemetry = application.metrics, application.telemetry
        return [
            # Outermost: a call whose request never comes must cost little, and is neither traced nor logged.
            RequestTimeoutInterceptor(self._watchdog, self._connections, self._unread),
            # Outside the request log, whose lines name the trace.
            *([] if telemetry is None else [TracingInterceptor(telemetry)]),
            # Outside all that may refuse a call: every call with a request is logged, with its final code.
            RequestLogInterceptor(),
            # Inside the request log, and outside all that raises errors: it answers them.
            ExceptionInterceptor(),
            # Just inside it, where every error is still an exception.
            *([] if metrics is None else [MetricsInterceptor(metrics.calls)]),
            # Inside the request log, so that its line carries the id of the call.
            ReaderTimeoutInterceptor(self._watchdog),
            # Outside bulkheads: anybody's wrong passwords, which wait to be checked, would hold all slots. Outside the
            # reading of requests: a caller who is refused learns nothing about the request.
            authentication,
            # Outside the reading of requests, so that a call over the limit costs little.
            bulkheads,
            # Innermost: it changes what handlers take and return.
            MessageInterceptor(),
        ]

    def start(self) -> None:
        """Serve."""
        self._watchdog.start()
        self._connections.start(int(self.address.rpartition(":")[2]))
        self._server.start()
        for service in _HEALTH_SERVICES:
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> bool:
        """Report NOT_SERVING, let calls finish until the drain timeout, cancel those that are left, and stop.

        Returns:
            Whether all calls have ended. The threads of those that hang go on.
        """
        self._health.enter_graceful_shutdown()
        time.sleep(self._drain_delay)
        ends_at = time.monotonic() + self._drain_timeout + _CANCEL_SECONDS
        stopped = self._server.stop(self._drain_timeout)
        self._health.end_watches()
        self._generations.end_watches()
        stopped.wait(ends_at - time.monotonic())
        # It waits without a limit.
        shutdown = threading.Thread(target=self._shut_down_threads, daemon=True)
        shutdown.start()
        shutdown.join(max(0.0, ends_at - time.monotonic()))
        if shutdown.is_alive():
            hanging = sum(thread.name.startswith(f"{THREAD_NAME}_") for thread in threading.enumerate())
            _logger.error("%d calls are still running %g s after they were cancelled.", hanging, _CANCEL_SECONDS)
        self._watchdog.close()
        self._connections.close()
        return not shutdown.is_alive()

    def _shut_down_threads(self) -> None:
        for pool in self._threads:
            pool.shutdown()


class _Health(health.HealthServicer):
    """The standard health service, with List, which ends its watches when the server stops.

    A balancer watches for as long as it is connected: every drain would last until its timeout.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[Callable[[None], None]] = set()

    def List(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Return the status of every service; the package has no implementation."""
        with self._lock:  # type: ignore[attr-defined]  # not in the stubs
            statuses = {
                service: health_pb2.HealthCheckResponse(status=status)
                for service, status in self._server_status.items()  # type: ignore[attr-defined]
            }
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined]

    def Watch(self, request: Any, context: grpc.ServicerContext, send_response_callback: Any = None) -> Any:
        if request.service not in _HEALTH_SERVICES:
            # gRPC keeps every name that was ever watched, and anybody may watch any number of names of any length.
            request = health_pb2.HealthCheckRequest(service="unknown")
        self._watches.add(send_response_callback)
        super().Watch(request, context, send_response_callback)
        if not context.is_active():
            # The call may have ended before gRPC was asked to report its end.
            self._forget(send_response_callback, request.service)

    def _on_close_callback(self, send_response_callback: Callable[[None], None], service: str) -> Callable[[], None]:
        return partial(self._forget, send_response_callback, service)

    def _forget(self, send_response_callback: Callable[[None], None], service: str) -> None:
        """Forget a watch that has ended; it may be forgotten already."""
        self._watches.discard(send_response_callback)
        with self._lock:  # type: ignore[attr-defined]  # not in the stubs
            self._send_response_callbacks[service].discard(send_response_callback)  # type: ignore[attr-defined]

    def end_watches(self) -> None:
        """End all watches with OK, after their last message."""
        for send in tuple(self._watches):
            send(None)


def _add_services(server: grpc.Server, application: Application) -> None:
    """Add PixyProxy's own services."""
    image_service_pb2_grpc.add_ImageServiceServicer_to_server(ImageServicer(application.images), server)
    image_download_service_pb2_grpc.add_ImageDownloadServiceServicer_to_server(
        ImageDownloadServicer(application.images), server
    )
    generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(
        GenerationServicer(application.generations), server
    )
    usage_service_pb2_grpc.add_UsageServiceServicer_to_server(UsageServicer(application.usage), server)


def _connection_options(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Return gRPC's options for keepalive and the age of connections, in milliseconds."""
    seconds = {
        "grpc.keepalive_time_ms": settings.keepalive_time,
        "grpc.keepalive_timeout_ms": settings.keepalive_timeout,
        # Without it gRPC waits a minute for the answer to a ping, whatever the keepalive timeout.
        "grpc.http2.ping_timeout_ms": settings.keepalive_timeout,
        "grpc.http2.min_ping_interval_without_data_ms": settings.min_ping_interval,
        "grpc.max_connection_age_ms": settings.max_connection_age,
        # Without it gRPC waits for calls without a limit.
        "grpc.max_connection_age_grace_ms": settings.max_connection_age_grace,
    }
    options = tuple((name, int(value * 1000)) for name, value in seconds.items() if value is not None)
    return ("grpc.keepalive_permit_without_calls", 1), *options


def _bind(server: grpc.Server, settings: Settings, shared_port: int | None, metrics: Metrics | None) -> str:
    """Bind the port, with TLS if there is a certificate, and return the address as host:port."""
    host, _, port = settings.listen.rpartition(":")
    address = f"{host}:{port if shared_port is None else shared_port}"
    try:
        if settings.tls_certificate is None or settings.tls_key is None:
            bound = server.add_insecure_port(address)
        else:
            files = TLSFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
            tls = RenewableCredentials(files, None if metrics is None else metrics.certificate_loaded)
            bound = server.add_secure_port(address, tls.credentials)
    except RuntimeError as error:
        raise cannot_listen(settings) from error
    return f"{host}:{bound}"
