"""Shows the numbers of all processes of a server to Prometheus, on a port of their own."""

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
# Who connects and says nothing is let go.
_PATIENCE_SECONDS = 10


class MetricsExposition:
    """Serves ``/metrics`` for this process and all that are forked from it once this is made.

    Each keeps its numbers in files of one folder, whose place is in the environment that they inherit.

    Attributes:
        address: where it is served, as host:port.
    """

    def __init__(self, host: str, port: int) -> None:
        """Bind the port and make the folder; start no thread yet, so that the process may still be forked.

        Args:
            host: where to serve, an IPv6 address without its brackets.
            port: 0 for any.

        Raises:
            ConfigurationError: the port cannot be had.
        """
        # Not one that removes itself: each process that is forked from this one would do so at its end.
        self._folder = Path(tempfile.mkdtemp(prefix="pixyproxy-metrics-"))
        os.environ[_FOLDER] = str(self._folder)
        # Only now: at its import, prometheus_client looks whether that is set.
        from prometheus_client import CollectorRegistry, make_wsgi_app  # noqa: PLC0415
        from prometheus_client.exposition import ThreadingWSGIServer  # noqa: PLC0415
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

        from pixyproxy.observability.processes import LiveProcessesCollector  # noqa: PLC0415

        class Server(ThreadingWSGIServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        registry = CollectorRegistry()
        # First, because it takes those that have died out of what the other one reads.
        registry.register(LiveProcessesCollector(self._folder))
        MultiProcessCollector(registry, path=str(self._folder))
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
        """Serve from a thread of this process, which must not be forked any more."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving, and remove the folder."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _QuietHandler(WSGIRequestHandler):
    timeout = _PATIENCE_SECONDS

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing: Prometheus asks every few seconds."""
