"""Serves the metrics of all processes of a server to Prometheus, on a port of its own."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

from pixyproxy.core.exceptions import ConfigurationError

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_STALL_TIMEOUT = 10  # seconds without a request after which a connection is closed


class MetricsExposition:
    """Serves ``/metrics`` for this process and all that it forks.

    Each process writes its metrics to files in a folder, whose path is in the environment.

    Attributes:
        address: host:port.
    """

    def __init__(self, host: str, port: int) -> None:
        """Bind the port and make the folder. Start no thread yet, so that the process may fork.

        Args:
            host: the host, an IPv6 address without brackets.
            port: the port, 0 for any.

        Raises:
            ConfigurationError: the port is not available, or no folder can be made.
        """
        # Not a TemporaryDirectory: each forked process would remove it at its end.
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="pixyproxy-metrics-"))
        except OSError as error:
            raise ConfigurationError(
                "PIXYPROXY_METRICS_LISTEN: the temporary folder for metrics cannot be created: "
                f"{error.strerror}. Set TMPDIR to a folder that can be written to."
            ) from error
        os.environ[_FOLDER] = str(self._folder)
        # prometheus_client reads the variable when it is imported.
        from prometheus_client import CollectorRegistry, make_wsgi_app  # noqa: PLC0415
        from prometheus_client.exposition import ThreadingWSGIServer  # noqa: PLC0415

        from pixyproxy.observability.processes import ProcessesCollector  # noqa: PLC0415

        class Server(ThreadingWSGIServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        registry = CollectorRegistry()
        registry.register(ProcessesCollector(self._folder))
        try:
            self._server = make_server(host, port, make_wsgi_app(registry), Server, _QuietHandler)
        except OSError as error:
            shutil.rmtree(self._folder)
            raise ConfigurationError(
                f"PIXYPROXY_METRICS_LISTEN: cannot listen on {host}, port {port}: {error.strerror}."
            ) from error
        self.address = f"{f'[{host}]' if ':' in host else host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def start(self) -> None:
        """Serve from a thread. This process must not fork afterwards."""
        self._thread.start()

    def leave(self) -> None:
        """Close the port in a forked process that does not serve it, and may live longer than those that do."""
        self._server.server_close()

    def close(self) -> None:
        """Stop serving, and remove the folder."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _QuietHandler(WSGIRequestHandler):
    timeout = _STALL_TIMEOUT

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing: Prometheus sends requests every few seconds."""
