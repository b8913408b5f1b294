"""A machine that others keep busy: a live generation must not look dead there."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from pixyproxy.bootstrap import LEASE
from tests.faults.audit import Expected, ask_until_settled, audit
from tests.faults.outcome import Outcome
from tests.faults.site import WAIT_TIMEOUT, Bench, Site
from tests.support.servers import RunningServer

_LOOPS_A_CORE = 4
_GENERATIONS = 16
_ROUNDS = 3
_LOOK_EVERY = 0.2
"""Seconds."""


def busy_machine(bench: Bench, database_url: str | None, *, seconds: float, workers: int) -> Outcome:
    """Run generations while every core is busy several times over.

    Args:
        bench: where to do it.
        database_url: the database, or None for one in a file.
        seconds: for how long at least.
        workers: the RPC workers; with one of them, one process does everything.
    """
    outcome = Outcome(f"{_LOOPS_A_CORE} busy loops a core while {_GENERATIONS} generations run")
    lease = bench.lease or LEASE.total_seconds()
    site = bench.site(database_url, PIXYPROXY_WORKERS=str(workers))
    with site.server() as server:
        outcome.expect(site.create(server, site.wish()).is_ok, "generated before")
        with _busy_cores(), _Leases(server, lease) as leases, ThreadPoolExecutor(_GENERATIONS) as pool:
            list(pool.map(lambda _: _create_in_turn(site, server, seconds, outcome), range(_GENERATIONS)))
        outcome.injected += 1
        oldest = max(leases.ages, default=leases.lease)
        outcome.expect(oldest < leases.lease, f"a lease was not renewed for {oldest:.1f} s")
        outcome.expect("died; its state" not in server.log, "a live generation was taken for dead")
        outcome.measured["since a lease was renewed, on a busy machine"] = leases.ages
        audit(site, server, outcome, Expected())
    return outcome


def _create_in_turn(site: Site, server: RunningServer, seconds: float, outcome: Outcome) -> None:
    for _ in range(_ROUNDS):
        wish = site.wish(f"slow={seconds / _ROUNDS:g}")
        answer = ask_until_settled(site, server, wish)
        outcome.expect(answer.is_ok, f"on a busy machine: {answer.as_told}: {wish}")


@contextlib.contextmanager
def _busy_cores() -> Iterator[None]:
    count = _LOOPS_A_CORE * len(os.sched_getaffinity(0))
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


class _Leases:
    """Looks, again and again, how long ago leases were renewed.

    Attributes:
        lease: the seconds that a lease lasts.
        ages: seconds; the most at each look.
    """

    def __init__(self, server: RunningServer, lease: float) -> None:
        self.lease = lease
        self.ages: list[float] = []
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Leases:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join(WAIT_TIMEOUT)

    def _look(self) -> None:
        sql = "SELECT MIN(lease_expires_at) AS expires_at FROM generations WHERE state = 'sent'"
        with self._server.database() as database:
            while not self._over.wait(_LOOK_EVERY):
                with database.reading() as context:
                    row = context.fetch_one(sql, {})
                if row is not None and row["expires_at"] is not None:
                    left = (row["expires_at"] - datetime.now(UTC)).total_seconds()
                    self.ages.append(self.lease - left)
