"""Limits the calls in progress of each kind, so that no kind takes what the others need.

Over its limit a call is refused at once. Submitted generations have a limit of their own, in the generation workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import grpc

from pixyproxy.core.exceptions import TooBusyError
from pixyproxy.core.slots import Slots
from pixyproxy.resource.interceptors.wrapping import AroundCalls, Behavior, Continuation, arity_of
from pixyproxy.resource.methods import Bulkhead, policy_of

_SLOW = (Bulkhead.GENERATION, Bulkhead.STREAM)
_TOO_MANY = {
    Bulkhead.GENERATION: "Too many calls wait for a generation",
    Bulkhead.STREAM: "Too many streams in progress",
    Bulkhead.UNARY: "Too many calls in progress",
}
_NO_LIMIT = nullcontext()


class BulkheadInterceptor(AroundCalls):
    """Holds a slot for each call while it runs, and gives slow calls threads of their own."""

    def __init__(self, slots: Mapping[Bulkhead, Slots], slow_threads: ThreadPoolExecutor) -> None:
        """Take slots from those of each bulkhead; run generations and streams in ``slow_threads``."""
        self._slots = {bulkhead: _Slot(taken, _TOO_MANY[bulkhead]) for bulkhead, taken in slots.items()}
        self._slow_threads = slow_threads

    def intercept_service(  # noqa: D102  inherited
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = super().intercept_service(continuation, handler_call_details)
        if handler is not None and policy_of(handler_call_details.method).bulkhead in _SLOW:
            # gRPC looks for this at the outermost wrapper, to which all that is around this one pass it on.
            getattr(handler, arity_of(handler)).experimental_thread_pool = self._slow_threads
        return handler

    def around(  # noqa: D102  inherited
        self, method: str, behavior: Behavior, context: grpc.ServicerContext
    ) -> AbstractContextManager[None]:
        bulkhead = policy_of(method).bulkhead
        return _NO_LIMIT if bulkhead is None else self._slots[bulkhead]


class _Slot(AbstractContextManager[None]):
    """A slot, held meanwhile; for many calls at a time."""

    def __init__(self, slots: Slots, refusal: str) -> None:
        self._slots = slots
        self._refusal = refusal

    def __enter__(self) -> None:
        if not self._slots.take():
            raise TooBusyError(f"{self._refusal} (limit {self._slots.limit}); try again.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._slots.give_back()
