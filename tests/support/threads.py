"""Threads that work beside a test."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def at_work(work: Callable[[], None], count: int, stopping: threading.Event) -> Iterator[None]:
    """Have so many threads do ``work``; at the end, set ``stopping``, upon which it is to return, and wait for them."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
