"""The span of each call, for traces that go through several services."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc

from pixyproxy.resource.interceptors.request_log import code_of
from pixyproxy.resource.interceptors.wrapping import AroundCalls, Behavior
from pixyproxy.resource.methods import POLICIES

if TYPE_CHECKING:
    from pixyproxy.observability.telemetry import Telemetry


class TracingInterceptor(AroundCalls):
    """Creates a span for each call. It continues the trace in the metadata, if there is one."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    @contextmanager
    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> Iterator[None]:  # noqa: D102
        headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        with self._telemetry.call(method[1:] if method in POLICIES else None, headers) as span:
            try:
                yield
            finally:
                span.code = code_of(context)
