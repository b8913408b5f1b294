"""TLS whose certificate can be renewed while the server runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import grpc

from pixyproxy.core.exceptions import ConfigurationError
from pixyproxy.serving.certificates import TLSFiles, TLSIdentity, load_identity

_WARN_AGAIN = timedelta(days=1)

_logger = logging.getLogger(__name__)


class RenewableCredentials:
    """Server credentials that check at each new connection whether their files have changed.

    Open connections are not affected. While the new files are not valid, such as between the renewal of the certificate
    and that of its key, the previous ones stay in use.

    Attributes:
        credentials: the credentials of a secure port.
    """

    def __init__(self, files: TLSFiles, on_load: Callable[[datetime], object] | None = None) -> None:
        """Read the files; ``on_load`` is called with the expiry of each certificate that comes into use.

        Raises:
            ConfigurationError: they are not valid; the message names the setting.
        """
        self._files = files
        self._on_load = on_load
        self._lock = threading.Lock()
        self._state = files.state()
        self._identity = load_identity(files)
        self._warn_at = datetime.now(UTC)
        self._note_loaded()
        self.credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            _configuration(self._identity),
            self._renewed,  # type: ignore[arg-type]  # the stubs do not know that it may return None
            require_client_authentication=files.client_ca is not None,
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return a new configuration, or None to stay with the current one."""
        with self._lock:
            try:
                return self._look()
            except Exception:  # gRPC would drop the connection without a word.
                _logger.exception("The TLS files could not be checked; the previous ones stay in use.")
                return None

    def _look(self) -> grpc.ServerCertificateConfiguration | None:
        # Read before the files: a change in between is noticed the next time.
        state = self._files.state()
        if state == self._state:
            self._warn()
            return None
        self._state = state
        try:
            self._identity = load_identity(self._files)
        except ConfigurationError as error:
            _logger.error(
                "The TLS files have changed and are not valid; the previous ones stay in use. %s", error.message
            )
            return None
        _logger.info("The TLS files have changed: new connections get the new certificate.")
        self._warn_at = datetime.now(UTC)
        self._note_loaded()
        return _configuration(self._identity)

    def _note_loaded(self) -> None:
        if self._on_load is not None:
            self._on_load(self._identity.expires_at)
        self._warn()

    def _warn(self) -> None:
        """Log warnings, once a day."""
        now = datetime.now(UTC)
        if now < self._warn_at:
            return
        self._warn_at = now + _WARN_AGAIN
        for warning in self._identity.warnings(now):
            _logger.warning("%s", warning)


def _configuration(identity: TLSIdentity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.certificates)], root_certificates=identity.client_ca
    )
