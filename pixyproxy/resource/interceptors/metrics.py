"""Counts calls, how they end, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

import grpc

from pixyproxy.resource.interceptors.wrapping import AroundCalls, Behavior
from pixyproxy.resource.methods import POLICIES
from pixyproxy.resource.statuses import RULES, code_of, reason_of

_UNKNOWN = ("unknown", "unknown")


class CallCounter(Protocol):
    """Where calls are counted."""

    def expect(self, calls: Iterable[tuple[str, str]], reasons: Iterable[str]) -> None:
        """Know of what will be counted."""

    def began(self, service: str, method: str) -> None:
        """Note that a call has begun."""

    def ended(self, service: str, method: str, code: str, seconds: float) -> None:
        """Note how a call ended, and how long it took."""

    def refused(self, reason: str) -> None:
        """Note the reason of an error that a call is answered with."""


class MetricsInterceptor(AroundCalls):
    """Counts the calls of known methods each by itself, and those of all others together."""

    def __init__(self, counter: CallCounter) -> None:
        self._counter = counter
        self._names = {method: _names_in(method) for method in POLICIES}
        counter.expect(self._names.values(), sorted({rule.reason for rule in RULES.values()}))

    def around(  # noqa: D102  inherited
        self, method: str, behavior: Behavior, context: grpc.ServicerContext
    ) -> AbstractContextManager[None]:
        # Whoever makes up methods must not make up time series with them.
        return _CountedCall(self._counter, context, *self._names.get(method, _UNKNOWN))


def _names_in(method: str) -> tuple[str, str]:
    _, service, name = method.split("/")
    return service, name


class _CountedCall(AbstractContextManager[None]):
    """A class, because a generator as a context manager costs three times as much."""

    def __init__(self, counter: CallCounter, context: grpc.ServicerContext, service: str, method: str) -> None:
        self._counter = counter
        self._context = context
        self._service = service
        self._method = method
        self._began = 0.0

    def __enter__(self) -> None:
        self._counter.began(self._service, self._method)
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        code = "OK"
        if error is not None and not isinstance(error, (grpc.RpcError, GeneratorExit)):
            code = code_of(error)
            self._counter.refused(reason_of(error))
        if not self._context.is_active():
            code = grpc.StatusCode.CANCELLED.name
        self._counter.ended(self._service, self._method, code, time.perf_counter() - self._began)
