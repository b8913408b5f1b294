"""Limits the calls in progress of each kind, so that no kind takes what the others need.

Over its limit a call is refused at once. Submitted generations have a limit of their own, in the generation workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import grpc

from pixyproxy.core.exceptions import TooBusyError
from pixyproxy.core.slots import Slots
from pixyproxy.resource.interceptors.wrapping import AroundCalls, Behavior
from pixyproxy.resource.methods import Bulkhead, policy_of

_TOO_MANY = {
    Bulkhead.GENERATION: "Too many calls wait for a generation",
    Bulkhead.STREAM: "Too many streams in progress",
    Bulkhead.IMPORT: "Too many imports in progress",
    Bulkhead.UNARY: "Too many calls in progress",
}


class BulkheadInterceptor(AroundCalls):
    """Holds a slot for each call while it runs."""

    def __init__(self, slots: Mapping[Bulkhead, Slots]) -> None:
        """Take slots from those of each bulkhead."""
        self._slots = slots

    @contextmanager
    def around(self, method: str, behavior: Behavior, context: grpc.ServicerContext) -> Iterator[None]:  # noqa: D102
        bulkhead = policy_of(method).bulkhead
        if bulkhead is None:
            yield
            return
        slots = self._slots[bulkhead]
        if not slots.take():
            raise TooBusyError(f"{_TOO_MANY[bulkhead]} (limit {slots.limit}); try again.")
        try:
            yield
        finally:
            slots.give_back()
