"""Waits for generations, with one query for all waiting calls of a process."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import ConflictError, DBConnectionError, PixyProxyException, ServerStoppingError
from pixyproxy.core.fields import GenerationState
from pixyproxy.core.local_signal import LocalSignal, wait_for_any
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.generations import Generation, GenerationRepository
from pixyproxy.service.creation.changes import Changed, GenerationChanges, read_changes

_logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 2.0

AnyWaiter = TypeVar("AnyWaiter", bound="_Waiter")


class _Waiter:
    """A call that waits for the end of a generation."""

    def __init__(self) -> None:
        self.is_woken = threading.Event()
        self.ended: Generation | None = None
        self.error: PixyProxyException | None = None

    def observe(self, generation: Generation) -> None:
        """End the wait if the generation has ended."""
        if generation.state.is_final:
            self.ended = generation
            self.is_woken.set()

    def fail(self, error: PixyProxyException) -> None:
        """End the wait with an error."""
        self.error = error
        self.is_woken.set()


class Watcher(_Waiter):
    """A thread that waits for every change of a generation."""

    def __init__(self, call: CallScope) -> None:
        super().__init__()
        self._call = call
        self._seen: tuple[object, ...] = ()
        call.on_leaving(self.is_woken.set)

    def wait(self) -> bool:
        """Wait until the generation may have changed; return False if the call is over before.

        Raises:
            DBConnectionError: the database has been away for too long.
        """
        self.is_woken.wait(self._call.remaining())
        self.is_woken.clear()
        if self.error is not None:
            raise self.error
        return not self._call.is_over

    def observe(self, generation: Generation) -> None:
        """Wake the thread if the generation has changed."""
        now = (generation.state, generation.attempts, generation.partials)
        if now != self._seen:
            self._seen = now
            self.is_woken.set()


class WaitingCalls:
    """Queries, in a thread of its own, the generations that calls of this process wait for.

    It queries all of them at intervals, and single ones as soon as a local signal brings their ids, unless the calls
    wait only for the end and they have not ended.
    """

    def __init__(
        self,
        database: Database,
        changed: LocalSignal,
        *,
        require_closed: Callable[[], None],
        on_change: Callable[[int], object] = lambda _: None,
        interval: float = 0.1,
        give_up_after: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Initialize without querying anything.

        Args:
            database: where the generations are.
            changed: brings the changes of generations.
            require_closed: raises while nothing is submitted because the provider is down.
            on_change: called with the number of queued generations that are waited for.
            interval: seconds between two queries.
            give_up_after: seconds of an outage of the database after which the calls fail.
            clock: returns seconds, by which an outage is measured.
        """
        self._database = database
        self._changed = changed
        self._require_closed = require_closed
        self._on_change = on_change
        self._interval = interval
        self._give_up_after = give_up_after
        self._clock = clock
        # By the ids of their generations: those that wait for the end, and those that wait for any change.
        self._calls: defaultdict[int, list[_Waiter]] = defaultdict(list)
        self._watchers: defaultdict[int, list[Watcher]] = defaultdict(list)
        self._lock = threading.Lock()
        self._is_closing = False
        self._watches_are_over = False
        self._thread = threading.Thread(target=self._run, name="waiting-calls", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread."""
        self._is_closing = True
        self._changed.send()
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
        with self._added(self._calls, generation.id, _Waiter()) as waiter:
            call.on_leaving(waiter.is_woken.set)
            waiter.is_woken.wait(call.remaining())
        if waiter.error is not None:
            raise waiter.error
        return waiter.ended

    def is_waited_for(self, generation_id: int) -> bool:
        """Return whether a call of this process waits for the end of a generation; watchers do not count."""
        with self._lock:
            return generation_id in self._calls

    @contextmanager
    def watching(self, generation_id: int, call: CallScope) -> Iterator[Watcher]:
        """Look at a generation meanwhile for a call that waits for its changes."""
        with self._added(self._watchers, generation_id, Watcher(call)) as watcher:
            if self._watches_are_over:
                watcher.fail(_stopping())
            yield watcher

    def end_watches(self) -> None:
        """End all watches with an error: another server can continue them, but a drain would wait for them.

        So do those that begin later: their calls came before the drain, and have waited to be signed in.
        """
        with self._lock:
            self._watches_are_over = True
            for watcher in chain.from_iterable(self._watchers.values()):
                watcher.fail(_stopping())

    @contextmanager
    def _added(self, waiters: dict[int, list[AnyWaiter]], generation_id: int, waiter: AnyWaiter) -> Iterator[AnyWaiter]:
        with self._lock:
            waiters[generation_id].append(waiter)
        # This wakes the thread, which queries the generation at once for a watcher.
        GenerationChanges([self._changed]).progressed(generation_id)
        try:
            yield waiter
        finally:
            with self._lock:
                waiters[generation_id].remove(waiter)
                if not waiters[generation_id]:
                    del waiters[generation_id]

    def _run(self) -> None:
        query_at, reached_at = 0.0, self._clock()
        while not self._is_closing:
            if self._waited_for():
                wait_for_any(self._changed, timeout=max(0.0, query_at - time.monotonic()))
            else:
                self._on_change(0)
                wait_for_any(self._changed, timeout=None)
                reached_at = self._clock()  # While no call waited, nothing was asked.
                query_at = time.monotonic() + self._interval
            due = self._of_interest(read_changes(self._changed))
            is_all = time.monotonic() >= query_at
            if is_all:
                query_at = time.monotonic() + self._interval
                due = self._waited_for()
            if not due:
                continue
            try:
                queued = self._query(due)
                reached_at = self._clock()
                if is_all:
                    self._on_change(queued)
            except (DBConnectionError, ConflictError) as error:
                if self._clock() - reached_at > self._give_up_after:
                    self._fail_all(error)
            except Exception:  # The thread must go on: all waiting calls of the process depend on it.
                _logger.exception("Generations that calls wait for could not be read.")

    def _waited_for(self) -> set[int]:
        with self._lock:
            return self._calls.keys() | self._watchers.keys()

    def _of_interest(self, changed: Changed) -> set[int]:
        """Return the changed generations of which a call wants to know."""
        with self._lock:
            return (changed.ended & self._calls.keys()) | ((changed.ended | changed.progressed) & self._watchers.keys())

    def _query(self, ids: Collection[int]) -> int:
        """Tell those who wait for some generations how these are now; return how many are queued."""
        with self._database.reading() as context:
            generations = GenerationRepository(context).get_several(ids)
        for generation in generations:
            self._deliver(generation)
        queued = [generation.id for generation in generations if generation.state is GenerationState.QUEUED]
        try:
            self._require_closed()
        except PixyProxyException as error:
            # Watchers are not told: for them, the generations stay queued.
            with self._lock:
                for call in chain.from_iterable(self._calls.get(generation_id, ()) for generation_id in queued):
                    call.fail(error)
        return len(queued)

    def _deliver(self, generation: Generation) -> None:
        with self._lock:
            for waiter in chain(self._calls.get(generation.id, ()), self._watchers.get(generation.id, ())):
                waiter.observe(generation)

    def _fail_all(self, error: PixyProxyException) -> None:
        with self._lock:
            for waiter in chain(*self._calls.values(), *self._watchers.values()):
                waiter.fail(error)


def _stopping() -> ServerStoppingError:
    return ServerStoppingError("The server is stopping; watch the generation again.")
