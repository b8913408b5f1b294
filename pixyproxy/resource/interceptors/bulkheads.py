"""Limits for each kind of call, so that no kind takes what the others need; over its limit a call is refused at once.

Generations have a limit of their own too, in the service: they go on without their callers.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from pixyproxy.core.exceptions import TooBusyError
from pixyproxy.core.slots import Slots
from pixyproxy.resource.interceptors.wrapping import AroundCalls, Behavior, Continuation, arity_of

_CREATION = "/pixyproxy.v1.ImageService/CreateImage"
_STREAMS = ("/pixyproxy.v1.ImageService/GetImageContent", "/grpc.reflection.")
# Health checks and the like are quick, and refused they would make a busy server look like a broken one.
_LIMITED = "/pixyproxy."


@dataclass(frozen=True)
class Bulkheads:
    """The slots of each kind of call.

    Attributes:
        creations: of CreateImage.
        streams: of answers that callers read in their own time.
        quick: of all other calls of ours.
    """

    creations: Slots
    streams: Slots
    quick: Slots


class BulkheadInterceptor(AroundCalls):
    """Holds a slot for each call while it runs, and gives slow calls threads of their own."""

    def __init__(self, bulkheads: Bulkheads, slow_threads: ThreadPoolExecutor) -> None:
        """Take slots from ``bulkheads``; run what may take long in ``slow_threads``."""
        self._creations = _Slot(bulkheads.creations)
        self._streams = _Slot(bulkheads.streams)
        self._quick = _Slot(bulkheads.quick)
        self._slow_threads = slow_threads

    def intercept_service(  # noqa: D102  inherited
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = super().intercept_service(continuation, handler_call_details)
        method = handler_call_details.method
        if handler is not None and method.startswith((_CREATION, *_STREAMS)):
            # gRPC looks for this at the outermost wrapper, to which all that is around this one pass it on.
            getattr(handler, arity_of(handler)).experimental_thread_pool = self._slow_threads
        return handler

    def around(  # noqa: D102  inherited
        self, method: str, behavior: Behavior, context: grpc.ServicerContext
    ) -> AbstractContextManager[None]:
        if method == _CREATION:
            return self._creations
        if method.startswith(_STREAMS):
            return self._streams
        return self._quick if method.startswith(_LIMITED) else _NO_LIMIT


class _Slot(AbstractContextManager[None]):
    """A slot, held meanwhile; for many calls at a time."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def __enter__(self) -> None:
        if not self._slots.take():
            raise TooBusyError("As many calls of this kind as may be are under way; try again.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._slots.give_back()


_NO_LIMIT = nullcontext()
