"""The span of each call, for traces that go through several services."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import grpc

from pixyproxy.resource.interceptors.request_log import code_of
from pixyproxy.resource.interceptors.wrapping import AroundCalls, Behavior
from pixyproxy.resource.methods import POLICIES


class Ending(Protocol):
    """Takes the code that a call ends with."""

    code: str


class Tracer(Protocol):
    """Creates spans."""

    def call(self, method: str | None, headers: Mapping[str, str]) -> AbstractContextManager[Ending]:
        """Return the span of a call; ``method`` is None if it is unknown."""


class TracingInterceptor(AroundCalls):
    """Creates a span for each call. It continues the trace in the metadata, if there is one."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> Iterator[None]:  # noqa: D102
        headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        with self._tracer.call(method[1:] if method in POLICIES else None, headers) as ending:
            try:
                yield
            finally:
                ending.code = code_of(context)
