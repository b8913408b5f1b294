"""Limits the calls in progress of each kind, so that no kind takes what the others need.

Unary calls have threads of their own, and wait for one. Of the other kinds, which may last for minutes, a call over the
limit is refused at once, and the last slots are left to clients who have few. Submitted generations have a limit of
their own, in the generation workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from pixyproxy.core.exceptions import TooBusyError
from pixyproxy.core.request_context import caller
from pixyproxy.core.slots import Slots
from pixyproxy.resource.call_threads import CallThreads
from pixyproxy.resource.client_address import ClientAddresses
from pixyproxy.resource.interceptors.wrapping import AroundCalls, Behavior, behavior_of
from pixyproxy.resource.methods import Bulkhead, policy_of

_TOO_MANY = {
    Bulkhead.GENERATION: "Too many calls wait for a generation",
    Bulkhead.STREAM: "Too many streams in progress",
    Bulkhead.IMPORT: "Too many imports in progress",
}


class BulkheadInterceptor(AroundCalls):
    """Holds a slot for each call while it runs, or has it run in the threads for unary calls."""

    def __init__(self, slots: Mapping[Bulkhead, Slots], unary_threads: CallThreads, addresses: ClientAddresses) -> None:
        """Take slots from those of each bulkhead but that of unary calls, which take threads.

        Callers are told apart by their user, those without credentials by their address.
        """
        self._slots = slots
        self._unary_threads = unary_threads
        self._addresses = addresses

    @contextmanager
    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> Iterator[None]:  # noqa: D102
        bulkhead = policy_of(method).bulkhead
        if bulkhead is None or bulkhead is Bulkhead.UNARY:
            yield
            return
        slots = self._slots[bulkhead]
        user = caller.get()
        holder = self._addresses.of(context) if user is None else user.user_id
        if not slots.take(holder):
            raise TooBusyError(f"{_TOO_MANY[bulkhead]} (limit {slots.limit}); try again.")
        try:
            yield
        finally:
            slots.give_back(holder)

    def _wrapped(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        wrapped = super()._wrapped(handler, method)
        if policy_of(method).bulkhead is Bulkhead.UNARY:
            behavior_of(wrapped).experimental_thread_pool = self._unary_threads  # type: ignore[attr-defined]  # gRPC looks for it
        return wrapped
