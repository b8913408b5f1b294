"""Reads that share queries: while one query is under way, the reads that come meanwhile gather for the next one.

Nobody waits for company: a read that finds no query under way begins one at once. And nobody is given what was read
before it asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

# A query that has taken this long may hang in a connection that was lost: whoever waits does not wait for it any more.
_PATIENCE_SECONDS = 0.1


class GatheredReads(Generic[Key, Value]):
    """Answers the reads of many threads with few queries, none with more keys than there are threads."""

    def __init__(self, read: Callable[[Sequence[Key]], Sequence[Value]]) -> None:
        """Read by ``read``, which returns the values for some keys in the same order; what it raises, all are told."""
        self._read = read
        self._lock = threading.Lock()
        self._gathering: _Query[Key, Value] = _Query()
        self._under_way: _Query[Key, Value] | None = None

    def get(self, key: Key) -> Value:
        """Return the value for one key, as it is now or a little later."""
        with self._lock:
            query = self._gathering
            number = len(query.keys)
            query.keys.append(key)
            is_mine = self._under_way is None
            if is_mine:
                self._under_way = query
            else:
                turn = query.new_turn()
        if is_mine or self._wait(query, turn):
            self._run(query)
        return query.value(number)

    def _wait(self, query: _Query[Key, Value], turn: threading.Lock) -> bool:
        """Wait until a query has run, or until it is this thread's to run; return whether it is."""
        if not turn.acquire(timeout=_PATIENCE_SECONDS):
            with self._lock:
                if query is self._gathering and query is not self._under_way:
                    self._under_way = query
                    query.turns.remove(turn)
                    return True
            turn.acquire()
        return not query.has_run

    def _run(self, query: _Query[Key, Value]) -> None:
        with self._lock:
            # Not before: further reads may have come since it was this thread's turn.
            self._gathering = _Query()
        try:
            query.values = self._read(query.keys)
        except BaseException as error:
            query.error = error
        query.has_run = True
        self._hand_over(query)
        for turn in query.turns:
            turn.release()

    def _hand_over(self, query: _Query[Key, Value]) -> None:
        """Begin the next query, by the first thread that waits for it."""
        with self._lock:
            if self._under_way is not query:
                return  # Others have lost their patience and begun.
            following = self._gathering if self._gathering.keys else None
            self._under_way = following
        if following is not None:
            following.turns.pop(0).release()


class _Query(Generic[Key, Value]):
    """A query for several keys, and the threads that wait for it."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.turns: list[threading.Lock] = []
        self.has_run = False
        self.values: Sequence[Value] = ()
        self.error: BaseException | None = None

    def new_turn(self) -> threading.Lock:
        """Return what the next thread waits for: a lock that is held until it is that thread's turn."""
        turn = threading.Lock()
        turn.acquire()
        self.turns.append(turn)
        return turn

    def value(self, number: int) -> Value:
        if self.error is not None:
            raise self.error
        return self.values[number]
