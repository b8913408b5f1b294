"""The gRPC server: its port, its services, the order of its interceptors, and how it ends."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from pixyproxy_pb.v1 import image_service_pb2, image_service_pb2_grpc

from pixyproxy.bootstrap import Application
from pixyproxy.core.exceptions import ConfigurationError
from pixyproxy.resource.image_servicer import ImageServicer
from pixyproxy.resource.interceptors.authentication import AuthenticationInterceptor
from pixyproxy.resource.interceptors.exceptions import ExceptionInterceptor
from pixyproxy.resource.interceptors.metrics import MetricsInterceptor
from pixyproxy.resource.interceptors.readable_requests import ReadableRequestsInterceptor
from pixyproxy.resource.interceptors.request_log import RequestLogInterceptor
from pixyproxy.resource.interceptors.tracing import TracingInterceptor
from pixyproxy.resource.tls import RenewableCredentials
from pixyproxy.settings import Settings

if TYPE_CHECKING:
    from pixyproxy.observability.metrics import Metrics

_logger = logging.getLogger(__name__)

_SERVICES = tuple(
    service
    for file in (image_service_pb2, health_pb2, reflection_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
_SERVICE_NAME = image_service_pb2.DESCRIPTOR.services_by_name["ImageService"].full_name
# Readers that stall and generations that take minutes hold a thread each; the rest are for quick calls. Threads are
# made only as they are needed.
_STREAM_THREADS = 500
_QUICK_THREADS = 64
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A call holds a thread from its first byte on, even if no request follows: one connection must not hold them all.
_MAX_CALLS_A_CONNECTION = 250
_OPTIONS = (
    # On by default, it would let a second server start on the same port without an error.
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", _MAX_CALLS_A_CONNECTION),
)


class Server:
    """Serves an application on one port."""

    def __init__(self, application: Application, settings: Settings) -> None:
        """Bind the port; serve nothing yet.

        Raises:
            ConfigurationError: the port cannot be had.
        """
        self._drain_timeout = settings.drain_timeout
        self._health = _Health()
        self._pool = ThreadPoolExecutor(
            _STREAM_THREADS + _QUICK_THREADS + settings.max_generations, thread_name_prefix="call"
        )
        self._server = grpc.server(
            self._pool,
            interceptors=_interceptors(application),
            options=(*_OPTIONS, *_connection_options(settings)),
            # Pictures are compressed already, and details are small.
            compression=grpc.Compression.NoCompression,
        )
        image_service_pb2_grpc.add_ImageServiceServicer_to_server(ImageServicer(application.images), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflected = [_SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME]
        if settings.channelz:
            channelz.add_channelz_servicer(self._server)
        reflection.enable_server_reflection(reflected, self._server)
        self.address = _bind(self._server, settings, application.metrics)

    def start(self) -> None:
        """Serve."""
        self._server.start()
        for service in ("", _SERVICE_NAME):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> None:
        """Say that no new calls are wanted, let the running ones finish, and stop."""
        self._health.enter_graceful_shutdown()
        stopped = self._server.stop(self._drain_timeout)
        self._health.end_watches()
        stopped.wait()
        self._pool.shutdown(wait=True)


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

    def end_watches(self) -> None:
        """End all watches in good order, after what they have been told."""
        for send in tuple(self._watches):
            send(None)


def serve_until_told(server: Server, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends the process at once."""
    with _end_signals() as told:
        server.start()
        announce(f"listening on {server.address}")
        told.recv(1)
    _logger.info("Draining: no new calls are taken, running ones may finish.")
    server.stop()
    _logger.info("Stopped.")


@contextmanager
def _end_signals() -> Iterator[socket.socket]:
    """Give a socket from which something can be read once a signal says that it is time to end.

    A lock or an event will not do: Python runs handlers in the main thread only, which may sleep on while another
    thread is handed the signal, or may hold that very lock.
    """
    told, tell = socket.socketpair()
    with told, tell:
        tell.setblocking(False)
        signal.set_wakeup_fd(tell.fileno())
        for number in _END_SIGNALS:
            signal.signal(number, _leave_to_the_socket)
        try:
            yield told
        finally:
            for number in _END_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)


def _leave_to_the_socket(number: int, frame: FrameType | None) -> None:
    """Handle a signal: only one that has a handler is written to the socket."""


def _interceptors(application: Application) -> list[grpc.ServerInterceptor]:
    """Return all interceptors, the outermost first."""
    metrics, telemetry = application.metrics, application.telemetry
    return [
        *([] if telemetry is None else [TracingInterceptor(telemetry, _SERVICES)]),
        RequestLogInterceptor(),
        ExceptionInterceptor(),
        *([] if metrics is None else [MetricsInterceptor(metrics.calls, _SERVICES)]),
        AuthenticationInterceptor(application.users),
        ReadableRequestsInterceptor(),
    ]


def _connection_options(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Say when connections are tested, and when clients are asked to connect anew, in gRPC's milliseconds."""
    seconds = {
        "grpc.keepalive_time_ms": settings.keepalive_time,
        "grpc.keepalive_timeout_ms": settings.keepalive_timeout,
        "grpc.http2.min_ping_interval_without_data_ms": settings.min_ping_interval,
        "grpc.max_connection_age_ms": settings.max_connection_age,
        # Without it gRPC lets calls finish.
        "grpc.max_connection_age_grace_ms": settings.max_connection_age_grace,
    }
    options = tuple((name, int(value * 1000)) for name, value in seconds.items() if value is not None)
    return ("grpc.keepalive_permit_without_calls", 1), *options


def _bind(server: grpc.Server, settings: Settings, metrics: Metrics | None) -> str:
    """Bind the port, with TLS where there is a certificate, and return the address as host:port."""
    files = settings.tls_files
    try:
        if files is None:
            port = server.add_insecure_port(settings.listen)
        else:
            tls = (
                RenewableCredentials(files)
                if metrics is None
                else RenewableCredentials(files, metrics.certificate_loaded)
            )
            port = server.add_secure_port(settings.listen, tls.credentials)
    except RuntimeError as error:
        raise ConfigurationError(
            f"PIXYPROXY_LISTEN: cannot listen on {settings.listen}; is another server there already?"
        ) from error
    return f"{settings.listen.rpartition(':')[0]}:{port}"
