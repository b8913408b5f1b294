"""Keeps to the provider's images per minute, and serves authors in turn while there is a queue."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import ProviderTimeoutError, TooBusyError

# How often a waiting request looks whether its caller has gone.
_LOOK_SECONDS = 0.25


@dataclass(eq=False)
class _Ticket:
    """A request's place in the queue."""

    author: str
    has_passed: bool = False


class Pacer:
    """Lets at most so many requests pass within any minute, authors in turn.

    An author with a hundred requests in the queue and one with a single request each have the next place in turn.
    """

    def __init__(
        self, images_per_minute: int, *, window: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Let ``images_per_minute`` pass within any ``window`` of seconds, by a clock of seconds."""
        self._window = window
        self._clock = clock
        self._limit = images_per_minute
        self._changed = threading.Condition()
        self._passed: deque[float] = deque(maxlen=images_per_minute)
        self._queues: dict[str, deque[_Ticket]] = {}  # by author; whose turn it is comes first

    def wait_for_turn(self, author: str, call: CallScope, may_go_on: Callable[[], None]) -> None:
        """Wait until a request may be sent.

        Args:
            author: whose request it is.
            call: for how long its caller waits.
            may_go_on: raises where waiting has become pointless.

        Raises:
            TooBusyError: its turn would not come within the caller's time; it was not kept waiting.
            ProviderTimeoutError: the caller has gone meanwhile.
        """
        with self._changed, self._queued(author) as ticket:
            self._refuse_hopeless(ticket, call)
            while True:
                may_go_on()
                if call.is_over:
                    raise ProviderTimeoutError("The time was over before the image could be asked for.")
                is_next = self._next() is ticket
                wait = self._wait_for_place(0)
                if is_next and wait == 0:
                    self._passed.append(self._clock())
                    ticket.has_passed = True
                    return
                self._changed.wait(min(wait, _LOOK_SECONDS) if is_next else _LOOK_SECONDS)

    def wake(self) -> None:
        """Let all who wait look whether they still should."""
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def _queued(self, author: str) -> Iterator[_Ticket]:
        """Hold a place in the queue; when it is given up, the next author has the turn."""
        ticket = _Ticket(author)
        self._queues.setdefault(author, deque()).append(ticket)
        try:
            yield ticket
        finally:
            self._leave(ticket)
            self._changed.notify_all()

    def _leave(self, ticket: _Ticket) -> None:
        queue = self._queues[ticket.author]
        queue.remove(ticket)
        if ticket.has_passed or not queue:
            del self._queues[ticket.author]
            if queue:
                self._queues[ticket.author] = queue  # behind all others, who have the next turns

    def _next(self) -> _Ticket:
        return next(iter(self._queues.values()))[0]

    def _refuse_hopeless(self, ticket: _Ticket, call: CallScope) -> None:
        remaining = call.remaining()
        wait = self._wait_for_place(self._ahead_of_last(ticket.author))
        if remaining is not None and wait > remaining:
            raise TooBusyError(
                "More images are waiting than can be asked for within the call's deadline.", retry_after=wait
            )

    def _ahead_of_last(self, author: str) -> int:
        """Count who passes before an author's last request: as many of each other author's, as far as there are."""
        own = len(self._queues[author])
        return own - 1 + sum(min(own, len(queue)) for other, queue in self._queues.items() if other != author)

    def _wait_for_place(self, ahead: int) -> float:
        """Return the seconds until a request may pass that has ``ahead`` others before it."""
        rounds, place = divmod(len(self._passed) + ahead, self._limit)
        if rounds == 0:
            return 0.0
        # Each that passes opens one place, a window later; those ahead take the places that open first.
        opened_by = self._passed[place] if place < len(self._passed) else self._clock()
        return max(0.0, opened_by + rounds * self._window - self._clock())
