"""Counts calls, how they end, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import grpc

from pixyproxy.resource.interceptors.wrapping import AroundCalls, Behavior
from pixyproxy.resource.methods import POLICIES
from pixyproxy.resource.statuses import RULES, code_of, reason_of

_UNKNOWN = ("unknown", "unknown")


class CallCounter(Protocol):
    """Where calls are counted."""

    def expect(self, calls: Iterable[tuple[str, str]], reasons: Iterable[str]) -> None:
        """Prepare the counters of these calls, as service and method, and of these reasons."""

    def began(self, service: str, method: str) -> None:
        """Count a call that begins."""

    def ended(self, service: str, method: str, code: str, seconds: float) -> None:
        """Count a call that ended, with its code and its duration."""

    def refused(self, reason: str) -> None:
        """Count an error by its reason."""


class MetricsInterceptor(AroundCalls):
    """Counts calls by method; calls of unknown methods are counted together."""

    def __init__(self, counter: CallCounter) -> None:
        self._counter = counter
        self._names = {method: _names_in(method) for method in POLICIES}
        counter.expect(self._names.values(), sorted({rule.reason for rule in RULES.values()}))

    @contextmanager
    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> Iterator[None]:  # noqa: D102
        # Unknown names make no time series: clients could make up any number of them.
        service, name = self._names.get(method, _UNKNOWN)
        self._counter.began(service, name)
        began = time.perf_counter()
        code = "OK"
        try:
            yield
        except (grpc.RpcError, GeneratorExit):
            raise
        except BaseException as error:
            code = code_of(error)
            self._counter.refused(reason_of(error))
            raise
        finally:
            if not context.is_active():
                code = grpc.StatusCode.CANCELLED.name
            self._counter.ended(service, name, code, time.perf_counter() - began)


def _names_in(method: str) -> tuple[str, str]:
    _, service, name = method.split("/")
    return service, name
