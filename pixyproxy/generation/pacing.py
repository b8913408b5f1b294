"""Keeps to the provider's images per minute, and serves authors in turn while there is a queue."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import ConflictError, DBConnectionError, ProviderTimeoutError, TooBusyError

# How often a waiting request looks whether its caller has gone, and whether its turn has come.
_LOOK_SECONDS = 0.25

_logger = logging.getLogger(__name__)


class Turns(Protocol):
    """Gives turns, a limited number within any minute, to all servers together. Safe to use from many threads."""

    def take(self) -> float:
        """Take a turn if there is one.

        Returns:
            0 where it was taken, and otherwise the seconds until there may be one.

        Raises:
            DBConnectionError: it cannot be known now.
            ConflictError: likewise.
        """

    def wait_for(self, ahead: int) -> float:
        """Return the seconds until there may be a turn for one that has ``ahead`` others before it. Raises as ``take``.

        What other servers have waiting is not known, so that it may take longer.
        """


@dataclass(eq=False)
class _Ticket:
    """A request's place in the queue."""

    author: str
    has_passed: bool = False


class Pacer:
    """Lets at most so many requests pass within any minute, authors in turn.

    An author with a hundred requests in the queue and one with a single request each have the next place in turn.
    """

    def __init__(self, turns: Turns) -> None:
        """Let as many pass as there are ``turns``."""
        self._turns = turns
        self._changed = threading.Condition()
        self._queues: dict[str, deque[_Ticket]] = {}  # by author; whose turn it is comes first

    def wait_for_turn(self, author: str, call: CallScope, may_go_on: Callable[[], None]) -> None:
        """Wait until a request may be sent.

        Args:
            author: whose request it is.
            call: for how long its caller waits.
            may_go_on: raises where waiting has become pointless.

        Raises:
            TooBusyError: its turn would not come within the caller's time; it was not kept waiting any longer.
            ProviderTimeoutError: the caller has gone meanwhile.
        """
        with self._queued(author) as ticket:
            self._refuse_hopeless(ticket, call)
            while True:
                may_go_on()
                if call.is_over:
                    raise ProviderTimeoutError("The time was over before the image could be asked for.")
                wait = self._take() if self._is_next(ticket) else None
                if wait == 0:
                    ticket.has_passed = True
                    return
                if wait is not None:
                    _refuse_longer_than(call, wait)
                with self._changed:
                    self._changed.wait(_LOOK_SECONDS if wait is None else min(wait, _LOOK_SECONDS))

    def wake(self) -> None:
        """Let all who wait look whether they still should."""
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def _queued(self, author: str) -> Iterator[_Ticket]:
        """Hold a place in the queue; when it is given up, the next author has the turn."""
        ticket = _Ticket(author)
        with self._changed:
            self._queues.setdefault(author, deque()).append(ticket)
        try:
            yield ticket
        finally:
            with self._changed:
                self._leave(ticket)
                self._changed.notify_all()

    def _leave(self, ticket: _Ticket) -> None:
        queue = self._queues[ticket.author]
        queue.remove(ticket)
        if ticket.has_passed or not queue:
            del self._queues[ticket.author]
            if queue:
                self._queues[ticket.author] = queue  # behind all others, who have the next turns

    def _is_next(self, ticket: _Ticket) -> bool:
        with self._changed:
            return next(iter(self._queues.values()))[0] is ticket

    def _take(self) -> float | None:
        """Take a turn, without the lock, as that is a matter of the database.

        Returns:
            0, or the seconds until there may be one, or None where that cannot be known now.
        """
        try:
            return self._turns.take()
        except (DBConnectionError, ConflictError) as error:
            # The request is noted as sent already: to give it up would leave its outcome unknown.
            _logger.warning("A turn to ask the provider waits: %s", error.message)
            return None

    def _refuse_hopeless(self, ticket: _Ticket, call: CallScope) -> None:
        if call.remaining() is None:
            return
        with self._changed:
            ahead = self._ahead_of_last(ticket.author)
        try:
            wait = self._turns.wait_for(ahead)
        except (DBConnectionError, ConflictError):
            return  # not known to be hopeless
        _refuse_longer_than(call, wait)

    def _ahead_of_last(self, author: str) -> int:
        """Count who passes before an author's last request: as many of each other author's, as far as there are."""
        own = len(self._queues[author])
        return own - 1 + sum(min(own, len(queue)) for other, queue in self._queues.items() if other != author)


def _refuse_longer_than(call: CallScope, wait: float) -> None:
    """Refuse a request whose turn comes later than its caller waits."""
    remaining = call.remaining()
    if remaining is not None and wait > remaining:
        raise TooBusyError(
            "More images are waiting than can be asked for within the call's deadline.", retry_after=wait
        )
