"""The common parts of both clients: everything but calls and waiting."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from typing import Any, Generic, TypeVar

from pixyproxy.client.calls import Call, Stubs
from pixyproxy.client.connection import TLS, ChannelOptions, Keepalive, channel_opener, is_loopback, sign_in, tls_for
from pixyproxy.client.retry import Attempts, RetryPolicy

DEFAULT_ADDRESS = "127.0.0.1:50051"

AnyChannel = TypeVar("AnyChannel")


class BaseClient(ABC, Generic[AnyChannel]):
    """The connection, the credentials and the retry policy."""

    _module: Any
    """``grpc`` or ``grpc.aio``."""
    _event_kind: type[threading.Event] | type[asyncio.Event]
    """Of which ``_closed`` is: set once the client is closed."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        username: str | None = None,
        password: str | None = None,
        tls: TLS | bool | None = None,
        allow_plaintext: bool = False,
        timeout: float | None = 30.0,
        long_timeout: float | None = 600.0,
        retry: RetryPolicy = RetryPolicy(),
        keepalive: Keepalive = Keepalive(),
        channel_options: ChannelOptions | None = None,
        channel: AnyChannel | None = None,
        on_unreachable: Callable[[], object] | None = None,
    ) -> None:
        """Connect at the first call.

        Args:
            address: host:port.
            username: the username; without one, only public images can be read.
            password: the password.
            tls: a TLS object, True for the system's CA certificates, or False for plain text. By default, plain text
                for a server on this machine, otherwise True.
            allow_plaintext: whether the password may be sent over a network in plain text.
            timeout: the seconds for a call with all its attempts; None for no limit.
            long_timeout: the same for generating an image, and for reading all of its bytes.
            retry: the retry policy.
            keepalive: how a broken connection is detected.
            channel_options: gRPC options, which override those of the client.
            channel: your own channel, in place of ``address``, ``tls``, ``keepalive`` and ``channel_options``. The
                client does not close it.
            on_unreachable: called once if the connection fails, while the client retries. A PixyProxyClient calls it
                from another thread, an AsyncPixyProxyClient from its event loop.

        Raises:
            OSError: a certificate file cannot be read.
            ValueError: the arguments exclude each other, or the password would be sent in plain text over a network
                without ``allow_plaintext``.
        """
        self._metadata = sign_in(username, password)
        self._open_channel: Callable[[], AnyChannel] | None = None
        if channel is None:
            encryption = tls_for(address, tls)
            if self._metadata and encryption is None and not is_loopback(address) and not allow_plaintext:
                raise ValueError(f"The password would be sent to {address} in plain text: use TLS, or allow_plaintext.")
            self._open_channel = channel_opener(self._module, address, encryption, keepalive, channel_options or {})
        self._channel = channel
        self._timeout = timeout
        self._long_timeout = long_timeout
        self._policy = retry
        self._answered = threading.Event()
        self._on_unreachable = on_unreachable
        self._opening = threading.Lock()
        self._stubs: Stubs | None = None
        self._closed = self._event_kind()

    @abstractmethod
    def _watch(self, channel: AnyChannel, on_failure: Callable[[], object]) -> None:
        """Call ``on_failure`` once, when the connection first fails."""

    def _connected(self) -> Stubs:
        """Return the stubs. The channel is opened at the first call, because an asyncio channel belongs to its loop."""
        with self._opening:
            if self._closed.is_set():
                raise ValueError("The client is closed.")
            if self._stubs is None:
                if self._open_channel is not None:
                    self._channel = self._open_channel()
                if self._on_unreachable is not None and self._channel is not None:
                    self._watch(self._channel, self._on_unreachable)
                self._stubs = Stubs(self._channel)
            return self._stubs

    def _closing(self) -> AnyChannel | None:
        """Refuse further calls, and return the channel to close, or None."""
        with self._opening:
            self._closed.set()
            return self._channel if self._open_channel is not None else None

    def _attempts(self, call: Call[Any], timeout: float | None, *, is_single: bool = False) -> Attempts:
        if timeout is None:
            timeout = self._long_timeout if call.is_long else self._timeout
        policy = replace(self._policy, attempts=1) if is_single else self._policy
        return Attempts(call, policy, self._answered, timeout)

    def _invoke(self, call: Call[Any], request: Any, attempts: Attempts) -> Any:
        return attrgetter(call.method)(self._connected())(request, timeout=attempts.remaining, metadata=self._metadata)
