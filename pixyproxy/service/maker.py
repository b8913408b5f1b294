"""Makes images for the workers, in a process of its own, which gives way to them."""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, suppress

from pixyproxy.core import request_context
from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import PixyProxyException
from pixyproxy.core.models import Image
from pixyproxy.service.handover import Handover, Line, LineBrokenError, Order
from pixyproxy.service.interfaces import ImageCreatorInterface

_READY = "ready"
# What orders have to end once their callers have gone; those that hang are left to the end of the process.
_LEAVE_SECONDS = 10.0

_logger = logging.getLogger(__name__)


class Maker:
    """Takes orders, each in a thread of its own, and says what came of them."""

    def __init__(
        self,
        handover: Handover,
        creator: ImageCreatorInterface,
        continuing: Callable[[Mapping[str, str]], AbstractContextManager[None]],
    ) -> None:
        """Take nothing yet.

        Args:
            handover: where orders come from.
            creator: what makes the images.
            continuing: returns what is entered to work on a part of the trace that headers name.
        """
        self._handover = handover
        self._creator = creator
        self._continuing = continuing
        self._ends = select.epoll()
        self._lock = threading.Lock()
        self._calls: dict[int, CallScope] = {}  # by the line's file descriptor
        self._threads: set[threading.Thread] = set()
        self._has_ended = False

    def serve(self) -> None:
        """Carry out orders until nobody is left who could give any.

        Generations that are under way then are the creator's to finish.
        """
        self._ends.register(self._handover.fileno(), select.EPOLLIN)
        while not self._has_ended:
            ready = {descriptor for descriptor, _ in self._ends.poll()}
            # Before any line is taken, which may have the descriptor of one that has ended meanwhile.
            for descriptor in ready - {self._handover.fileno()}:
                self._let_go(descriptor)
            if self._handover.fileno() in ready:
                self._take_orders()
        with self._lock:
            calls, threads = list(self._calls.values()), list(self._threads)
        for call in calls:
            call.leave()
        ends_at = time.monotonic() + _LEAVE_SECONDS
        for thread in threads:
            thread.join(max(0.0, ends_at - time.monotonic()))

    def _take_orders(self) -> None:
        with suppress(BlockingIOError):
            while (line := self._handover.take_line()) is not None:
                self._begin(line)
            with self._lock:
                self._has_ended = True

    def _begin(self, line: Line) -> None:
        thread = threading.Thread(target=self._carry_out, args=(line,), name="order", daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            _logger.warning("The system gives no thread for a request; its worker asks again.")
            self._forget(line, thread)

    def _carry_out(self, line: Line) -> None:
        try:
            with suppress(LineBrokenError):  # Then nobody waits for it any more.
                line.send(_READY)
                line.send(self._outcome_of(line.receive(), line))
        finally:
            self._forget(line, threading.current_thread())

    def _outcome_of(self, order: Order, line: Line) -> Image | PixyProxyException:
        """Carry out an order as a part of its call."""
        request_context.request_id.set(order.request_id)
        request_context.trace_id.set(order.trace_id)
        call = CallScope(None if order.ends_at is None else max(0.0, order.ends_at - time.monotonic()))
        self._watch(line, call)
        try:
            with self._continuing(order.trace_headers):
                return self._creator.create(order.creation, order.author, call)
        except PixyProxyException as error:
            if error.__cause__ is not None:
                # It stays here: the worker is sent the error alone.
                _logger.info("%s because of %s", type(error).__name__, type(error.__cause__).__name__)
                _logger.debug("The cause in full", exc_info=error)
            return error
        except Exception as error:
            _logger.exception("Not foreseen: %s", type(error).__name__)
            return PixyProxyException("The maker failed; what it has logged for this request says why.")

    # --- Callers that go -----------------------------------------------------------------------------------------

    def _watch(self, line: Line, call: CallScope) -> None:
        with self._lock:
            self._calls[line.fileno()] = call
            self._ends.register(line.fileno(), select.EPOLLRDHUP | select.EPOLLONESHOT)
            is_too_late = self._has_ended
        if is_too_late:
            call.leave()

    def _let_go(self, descriptor: int) -> None:
        with self._lock:
            call = self._calls.get(descriptor)
        if call is not None:
            call.leave()

    def _forget(self, line: Line, thread: threading.Thread) -> None:
        with self._lock:
            self._calls.pop(line.fileno(), None)
            self._threads.discard(thread)
        with closing(line), suppress(FileNotFoundError):  # It never came to be watched.
            self._ends.unregister(line.fileno())
