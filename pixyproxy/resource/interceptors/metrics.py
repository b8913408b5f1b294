"""Counts calls, how they end, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc

from pixyproxy.resource.interceptors.wrapping import AroundCalls, Behavior
from pixyproxy.resource.methods import POLICIES
from pixyproxy.resource.statuses import RULES, code_of, reason_of

if TYPE_CHECKING:
    from pixyproxy.observability.metrics import CallMetrics

_UNKNOWN = ("unknown", "unknown")


class MetricsInterceptor(AroundCalls):
    """Counts calls by method; calls of unknown methods are counted together."""

    def __init__(self, metrics: CallMetrics) -> None:
        self._metrics = metrics
        self._names = {method: _names_in(method) for method in POLICIES}
        metrics.expect(self._names.values(), sorted({rule.reason for rule in RULES.values()}))

    @contextmanager
    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> Iterator[None]:  # noqa: D102
        # Unknown names make no time series: clients could make up any number of them.
        service, name = self._names.get(method, _UNKNOWN)
        self._metrics.began(service, name)
        began = time.perf_counter()
        code = "OK"
        try:
            yield
        except (grpc.RpcError, GeneratorExit):
            raise
        except BaseException as error:
            code = code_of(error)
            self._metrics.refused(reason_of(error))
            raise
        finally:
            if not context.is_active():
                code = grpc.StatusCode.CANCELLED.name
            self._metrics.ended(service, name, code, time.perf_counter() - began)


def _names_in(method: str) -> tuple[str, str]:
    _, service, name = method.split("/")
    return service, name
