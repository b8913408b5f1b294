"""Servers that are told to end, once and twice, while they work."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from tests.faults.audit import Expected, audit
from tests.faults.crashes import Load
from tests.faults.outcome import Outcome
from tests.faults.site import OUTCOME_UNKNOWN, WAIT_TIMEOUT, Bench, Site, Wish, wait_until_submitted
from tests.support.rpc import health_stub
from tests.support.servers import RunningServer

_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_AT_ONCE = 2.0
"""Seconds within which a process is gone that was told twice, on a busy machine too."""


def stopped_under_load(bench: Bench, database_url: str | None, *, times: int) -> Outcome:
    """Tell a server to end under load: running calls finish, new ones are refused, and it ends well."""
    outcome = Outcome("SIGTERM under load")
    site = bench.site(database_url)
    for number in range(times):
        with (
            site.server() as server,
            _watched_health(server) as told,
            Load(site, number, call_timeout=WAIT_TIMEOUT) as load,
            load.turned_to(server),
        ):
            load.wait_for_success(Outcome(""))
            pending = [_begin(site, server, "slow=1") for _ in range(3)]
            server.terminate()
            told_at = time.monotonic()
            outcome.injected += 1
            _expect_not_serving(told, outcome)
            for wish, call in pending:
                answer = site.end(wish, call)
                outcome.expect(answer.is_ok, f"running when it was told to end: {answer.as_told}")
            _expect_good_end(server, outcome)
            outcome.recovered(time.monotonic() - told_at)
    with site.server() as server:
        audit(site, server, outcome, Expected())
    return outcome


def stopped_without_caller(bench: Bench, database_url: str | None, *, times: int) -> Outcome:
    """Tell a server to end when callers have gone or the drain is too short: images are stored all the same."""
    outcome = Outcome("SIGTERM, a generation outlasts its caller")
    site = bench.site(database_url, PIXYPROXY_DRAIN_TIMEOUT="0.5")
    for number in range(times):
        with site.server() as server:
            cancelled, cancelled_call = _begin(site, server, "hold")
            outlasting, call = _begin(site, server, "hold")
            cancelled_call.cancel()
            server.terminate()
            told_at = time.monotonic()
            outcome.injected += 1
            answer = site.end(outlasting, call)
            outcome.expect(not answer.is_ok, f"the drain was over: {answer.as_told}")
            for wish in (cancelled, outlasting):
                site.stand_in.release(wish.prompt)
            _expect_good_end(server, outcome)
            outcome.recovered(time.monotonic() - told_at)
        with site.server() as server:
            for wish in (cancelled, outlasting):
                again = site.create(server, wish)
                outcome.expect(again.is_ok, f"submitted before the end, and not stored: {again.as_told}")
                outcome.expect(site.stand_in.count(wish.prompt) == 1, f"not submitted once: {wish}")
            if number == times - 1:
                audit(site, server, outcome, Expected())
    return outcome


def stopped_twice(bench: Bench, database_url: str | None, *, times: int) -> Outcome:
    """Tell a server twice: it ends at once, and says afterwards that it does not know."""
    outcome = Outcome("SIGTERM twice")
    site = bench.site(database_url)
    ends: list[float] = []
    for number in range(times):
        with site.server() as server, _watched_health(server) as told:
            wish, call = _begin(site, server, "slow=20")
            server.terminate()
            _expect_not_serving(told, outcome)
            server.process.send_signal(signal.SIGTERM)
            told_at = time.monotonic()
            outcome.injected += 1
            status = server.process.wait(WAIT_TIMEOUT)
            ends.append(time.monotonic() - told_at)
            outcome.expect(status != 0, "it gave work up and ended as if all were well")
            answer = site.end(wish, call)
            outcome.expect(answer.code == "UNAVAILABLE", f"given up: {answer.as_told}")
        with site.server() as server:
            again = site.create(server, wish)
            outcome.recovered(time.monotonic() - told_at)
            outcome.expect(again.reason == OUTCOME_UNKNOWN, f"asked again: {again.as_told}")
            outcome.expect(site.stand_in.count(wish.prompt) == 1, f"not submitted once: {wish}")
            if number == times - 1:
                audit(site, server, outcome, Expected(unknown=True))
    outcome.expect(max(ends) < _AT_ONCE, f"told twice, it ended after {max(ends):.1f} s")
    outcome.measured["from the second SIGTERM to the end of the process"] = ends
    return outcome


def _begin(site: Site, server: RunningServer, fault: str) -> tuple[Wish, Any]:
    wish = site.wish(fault)
    call = site.begin(server, wish)
    wait_until_submitted(site, wish)
    return wish, call


def _expect_good_end(server: RunningServer, outcome: Outcome) -> None:
    status = server.process.wait(WAIT_TIMEOUT)
    outcome.expect(status == 0, f"it ended with status {status}")
    outcome.expect("Traceback" not in server.log, f"a traceback in the log:\n{server.log[-3000:]}")


@contextlib.contextmanager
def _watched_health(server: RunningServer) -> Iterator[queue.Queue[int]]:
    """Watch a server's health, as balancers do; gives what it says."""
    told: queue.Queue[int] = queue.Queue()
    with server.new_channel() as channel:
        stream = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service=""))

        def watch() -> None:
            with contextlib.suppress(grpc.RpcError):  # The end of the server ends it.
                for answer in stream:
                    told.put(answer.status)

        thread = threading.Thread(target=watch)
        thread.start()
        assert told.get(timeout=WAIT_TIMEOUT) == health_pb2.HealthCheckResponse.SERVING
        yield told
        stream.cancel()
        thread.join()


def _expect_not_serving(told: queue.Queue[int], outcome: Outcome) -> None:
    try:
        outcome.expect(told.get(timeout=WAIT_TIMEOUT) == _NOT_SERVING, "health says something else than NOT_SERVING")
    except queue.Empty:
        outcome.problems.append("health does not say NOT_SERVING")
