"""Requests that are recorded and not yet submitted, while processes are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.faults.audit import Expected, audit
from tests.faults.outcome import Outcome
from tests.faults.site import OUTCOME_UNKNOWN, WAIT_TIMEOUT, Bench, Site, Wish, wait_until_submitted
from tests.support.processes import has_ended
from tests.support.servers import RunningServer
from tests.support.waiting import wait_until

_QUEUED, _SUBMITTED, _STORED = ["queued"], ["sent"], ["stored"]
_PROCESSES = {"PIXYPROXY_WORKERS": "2"}
_SLOTS = 2
"""Of each generation worker; twice as many calls may wait."""

Request = tuple[Wish, Any]
"""What is asked for, and the call."""


@dataclass(frozen=True)
class Hold:
    """Why a server submits nothing more.

    Attributes:
        name: for people.
        settings: of the server.
        begin: makes it so, and returns the calls whose requests it has submitted.
    """

    name: str
    settings: dict[str, str]
    begin: Callable[[Site, RunningServer], list[Request]]

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def _use_minute_up(site: Site, server: RunningServer) -> list[Request]:
    site.create(server, site.wish())
    return []


def _fill_slots(site: Site, server: RunningServer) -> list[Request]:
    return [_begin(site, server, number, "hang:times=1") for number in range(_SLOTS)]


def _stop_generation_worker(_: Site, server: RunningServer) -> list[Request]:
    server.stop_generation_worker()
    return []


HOLDS = (
    Hold("the rate limit is reached", {"PIXYPROXY_IMAGES_PER_MINUTE": "1"}, _use_minute_up),
    Hold("the generation worker is full", {"PIXYPROXY_MAX_GENERATIONS": str(_SLOTS)}, _fill_slots),
    Hold("the generation worker is stopped", {}, _stop_generation_worker),
)


def everything_killed(bench: Bench, database_url: str | None, hold: Hold, *, times: int) -> Outcome:
    """Kill all processes of a server while requests are queued: the next server generates each of them, once."""
    outcome = Outcome(f"kill -9 of everything while {hold.name}")
    site = bench.site(database_url)
    for number in range(times):
        with site.server(**_PROCESSES, **hold.settings) as server:
            submitted = hold.begin(site, server)
            calls = [_begin_to_queue(site, server, place) for place in range(_SLOTS)]
            _kill_all(server)
            killed_at = time.monotonic()
            outcome.injected += 1
            for wish, call in calls:
                answer = site.end(wish, call)
                outcome.expect(answer.code == "UNAVAILABLE", f"killed, and the call ended with {answer.as_told}")
        queued = [wish for wish, _ in calls]
        for wish in queued:
            outcome.expect(site.stand_in.count(wish.prompt) == 0, f"submitted already: {wish}")
        with site.server() as server:
            for wish in queued:
                _expect_generated_once(site, server, wish, outcome)
            outcome.recovered(time.monotonic() - killed_at)
            for wish, _ in submitted:
                _expect_unknown(server, wish, outcome)
            if number == times - 1:
                audit(site, server, outcome, Expected(unknown=bool(submitted)))
    return outcome


def one_of_two_killed(bench: Bench, database_url: str | None, *, times: int) -> Outcome:
    """Kill one of two generation workers, both of them full: only what it had submitted is unknown."""
    outcome = Outcome("kill -9 of one of two full generation workers")
    site = bench.site(database_url)
    settings = {"PIXYPROXY_GENERATION_WORKERS": "2", "PIXYPROXY_MAX_GENERATIONS": str(2 * _SLOTS)}
    with site.server(**_PROCESSES, **settings) as server:
        for _ in range(times):
            _kill_one_of_two(site, server, outcome)
        audit(site, server, outcome, Expected(unknown=True))
    return outcome


def _kill_one_of_two(site: Site, server: RunningServer, outcome: Outcome) -> None:
    submitted = [_begin(site, server, number, "hold") for number in range(2 * _SLOTS)]
    owners = {wish.prompt: _owner_of(server, wish) for wish, _ in submitted}
    queued = [_begin_to_queue(site, server, number) for number in range(2 * _SLOTS)]
    killed = min(server.generation_workers)
    os.kill(killed, signal.SIGKILL)
    killed_at = time.monotonic()
    outcome.injected += 1
    wait_until(lambda: has_ended(killed), WAIT_TIMEOUT, "it to be gone")
    for wish, _ in submitted:
        site.stand_in.release(wish.prompt)
    for wish, call in queued:
        answer = site.end(wish, call)
        outcome.expect(answer.is_ok, f"queued when a generation worker was killed: {answer.as_told}: {wish}")
    outcome.recovered(time.monotonic() - killed_at)
    told = {wish.prompt: site.end(wish, call) for wish, call in submitted}
    lost = {owners[prompt] for prompt, answer in told.items() if answer.reason == OUTCOME_UNKNOWN}
    outcome.expect(len(lost) == 1, f"the outcome of {len(lost)} generation workers is unknown")
    for prompt, answer in told.items():
        is_right = answer.reason == OUTCOME_UNKNOWN if owners[prompt] in lost else answer.is_ok
        outcome.expect(is_right, f"submitted when a generation worker was killed: {answer.as_told}")
    for wish, _ in (*submitted, *queued):
        outcome.expect(site.stand_in.count(wish.prompt) == 1, f"not submitted once: {wish}")
    wait_until(lambda: len(server.generation_workers - {killed}) == 2, WAIT_TIMEOUT, "another generation worker")


# --- Requests --------------------------------------------------------------------------------------------------------


def _ask(site: Site, server: RunningServer, number: int, fault: str = "") -> Request:
    """Ask for an image, every other time without a request id."""
    wish = site.wish(fault, has_request_id=number % 2 == 0)
    return wish, site.begin(server, wish, timeout=None)


def _begin(site: Site, server: RunningServer, number: int, fault: str) -> Request:
    wish, call = _ask(site, server, number, fault)
    wait_until_submitted(site, wish)
    return wish, call


def _begin_to_queue(site: Site, server: RunningServer, number: int) -> Request:
    wish, call = _ask(site, server, number)
    wait_until(lambda: server.generation_states(wish.prompt) == _QUEUED, WAIT_TIMEOUT, "the request to be queued")
    return wish, call


def _expect_generated_once(site: Site, server: RunningServer, wish: Wish, outcome: Outcome) -> None:
    """Wait for an image that nobody asks for any more."""
    wait_until(lambda: server.generation_states(wish.prompt) == _STORED, WAIT_TIMEOUT, f"the image of {wish}")
    outcome.expect(site.stand_in.count(wish.prompt) == 1, f"not submitted once: {wish}")
    outcome.expect(site.find(server, wish), f"generated, and not found: {wish}")


def _expect_unknown(server: RunningServer, wish: Wish, outcome: Outcome) -> None:
    wait_until(lambda: server.generation_states(wish.prompt) != _SUBMITTED, WAIT_TIMEOUT, f"the end of {wish}")
    states = server.generation_states(wish.prompt)
    outcome.expect(states == ["unknown"], f"submitted by the killed one, and {states}: {wish}")


def _owner_of(server: RunningServer, wish: Wish) -> str:
    with server.database() as database, database.reading() as context:
        rows = context.fetch_all("SELECT owner, request FROM generations WHERE state = 'sent'", {})
    (owner,) = (row["owner"] for row in rows if wish.prompt in row["request"])
    return str(owner)


# --- Processes -------------------------------------------------------------------------------------------------------


def _kill_all(server: RunningServer) -> None:
    """Kill the supervisor first, so that it replaces nobody."""
    others = server.rpc_workers | server.generation_workers
    server.kill()
    for pid in others:
        with contextlib.suppress(ProcessLookupError):  # It has ended without its supervisor.
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: all(has_ended(pid) for pid in others), WAIT_TIMEOUT, "all processes to be gone")
