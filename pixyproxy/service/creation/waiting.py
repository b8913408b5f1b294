"""Waits for generations, with one query for all waiting calls of a process."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import ConflictError, DBConnectionError, PixyProxyException
from pixyproxy.core.local_signal import LocalSignal, wait_for_any
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, GenerationState

_logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0
_ENDED = (GenerationState.SUCCEEDED, GenerationState.FAILED, GenerationState.OUTCOME_UNKNOWN)


class _Waiter:
    """A call that waits for a generation."""

    def __init__(self) -> None:
        self.is_woken = threading.Event()
        self.ended: Generation | None = None
        self.error: PixyProxyException | None = None


class WaitingCalls:
    """Queries, in a thread of its own, the generations that calls of this process wait for.

    It queries all of them at intervals, and single ones as soon as a local signal brings their ids.
    """

    def __init__(
        self,
        database: Database,
        ended: LocalSignal,
        *,
        require_closed: Callable[[], None],
        on_change: Callable[[int], object] = lambda _: None,
        interval: float = 0.1,
        give_up_after: float = 30.0,
    ) -> None:
        """Query nothing yet.

        Args:
            database: where the generations are.
            ended: brings the ids of generations that have ended.
            require_closed: raises while nothing is submitted because the provider is down.
            on_change: called with the number of queued generations that are waited for.
            interval: seconds between two queries.
            give_up_after: seconds of an outage of the database after which the calls fail.
        """
        self._database = database
        self._ended = ended
        self._require_closed = require_closed
        self._on_change = on_change
        self._interval = interval
        self._give_up_after = give_up_after
        self._waiters: defaultdict[int, list[_Waiter]] = defaultdict(list)
        self._lock = threading.Lock()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="waiting-calls", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread."""
        self._is_closing = True
        self._ended.send()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)

    def wait_for(self, generation: Generation, call: CallScope) -> Generation | None:
        """Wait until a generation has ended.

        Returns:
            The generation, or None if the scope of the call ends first.

        Raises:
            ProviderCircuitOpenError: it is queued, and nothing is submitted for now.
            DBConnectionError: the database is unavailable for too long.
        """
        with self._waiting_for(generation.id) as waiter:
            call.on_leaving(waiter.is_woken.set)
            waiter.is_woken.wait(call.remaining())
        if waiter.error is not None:
            raise waiter.error
        return waiter.ended

    def is_waited_for(self, generation_id: int) -> bool:
        """Return whether a call of this process waits for a generation."""
        with self._lock:
            return generation_id in self._waiters

    @contextmanager
    def _waiting_for(self, generation_id: int) -> Iterator[_Waiter]:
        waiter = _Waiter()
        with self._lock:
            self._waiters[generation_id].append(waiter)
        # It may have ended already.
        self._ended.send(generation_id)
        try:
            yield waiter
        finally:
            with self._lock:
                self._waiters[generation_id].remove(waiter)
                if not self._waiters[generation_id]:
                    del self._waiters[generation_id]

    def _run(self) -> None:
        query_at, reached_at = 0.0, time.monotonic()
        while not self._is_closing:
            with self._lock:
                waited_for = set(self._waiters)
            if not waited_for:
                self._on_change(0)
            wait_for_any(self._ended, timeout=max(0.0, query_at - time.monotonic()) if waited_for else None)
            signalled = set(self._ended.read())
            with self._lock:
                waited_for = set(self._waiters)
            if time.monotonic() >= query_at:
                query_at = time.monotonic() + self._interval
                due = waited_for
            else:
                due = waited_for & signalled
            try:
                self._query(due)
                reached_at = time.monotonic()
            except (DBConnectionError, ConflictError) as error:
                if time.monotonic() - reached_at > self._give_up_after:
                    self._fail(waited_for, error)
            except Exception:
                _logger.exception("Generations that calls wait for could not be read.")

    def _query(self, ids: Collection[int]) -> None:
        if not ids:
            return
        with self._database.reading() as context:
            generations = GenerationRepository(context).get_several(ids)
        for generation in generations:
            if generation.state in _ENDED:
                self._deliver(generation)
        queued = [generation.id for generation in generations if generation.state is GenerationState.QUEUED]
        if len(ids) == len(self._waiters):
            self._on_change(len(queued))
        try:
            self._require_closed()
        except PixyProxyException as error:
            self._fail(queued, error)

    def _deliver(self, generation: Generation) -> None:
        with self._lock:
            for waiter in self._waiters.get(generation.id, ()):
                waiter.ended = generation
                waiter.is_woken.set()

    def _fail(self, ids: Collection[int], error: PixyProxyException) -> None:
        with self._lock:
            for waiter in (waiter for generation_id in ids for waiter in self._waiters.get(generation_id, ())):
                waiter.error = error
                waiter.is_woken.set()
