"""Many callers, on several servers, who ask for the same image under one request id."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.faults.audit import Expected, audit
from tests.faults.outcome import Outcome
from tests.faults.site import OUTCOME_UNKNOWN, Answer, Bench, Site, Wish, wait_until_submitted
from tests.support.servers import RunningServer

_CALLERS = 16
_SERVERS = 3


def one_server(bench: Bench, database_url: str | None, *, rounds: int) -> Outcome:
    """Have callers race on one server."""
    outcome = Outcome(f"{_CALLERS} callers race with one request id, one server")
    site = bench.site(database_url)
    with site.server() as server:
        for _ in range(rounds):
            _race(site, [server], outcome)
        audit(site, server, outcome, Expected())
    return outcome


def several_servers(bench: Bench, database_url: str, *, rounds: int) -> Outcome:
    """Have callers race on several servers on one database and one image folder."""
    outcome = Outcome(f"{_CALLERS} callers race with one request id, {_SERVERS} servers")
    site = bench.site(database_url)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(site.server()) for _ in range(_SERVERS)]
        for _ in range(rounds):
            _race(site, servers, outcome)
        audit(site, servers[0], outcome, Expected())
    return outcome


def one_of_several_killed(bench: Bench, database_url: str, *, rounds: int, seed: int) -> Outcome:
    """Have callers race on several servers, and kill one of these while the image is generated."""
    outcome = Outcome(f"the same, and one of the {_SERVERS} servers killed meanwhile")
    chance = random.Random(seed)
    site = bench.site(database_url)
    with ThreadPoolExecutor(rounds) as pool:
        seeds = [chance.random() for _ in range(rounds)]
        list(pool.map(lambda seed: _race_and_kill(site, seed, outcome), seeds))
    with site.server() as server:
        audit(site, server, outcome, Expected(unknown=True))
    return outcome


def _race(site: Site, servers: Sequence[RunningServer], outcome: Outcome) -> None:
    wish = site.wish("slow=0.3")
    outcome.injected += 1
    with ThreadPoolExecutor(_CALLERS) as pool:
        answers = list(pool.map(lambda number: site.create(servers[number % len(servers)], wish), range(_CALLERS)))
    _check_agreement(site, wish, answers, outcome)


def _race_and_kill(site: Site, seed: float, outcome: Outcome) -> None:
    chance = random.Random(seed)
    wish = site.wish("slow=1")
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(_CALLERS) as pool:
        servers = [stack.enter_context(site.server()) for _ in range(_SERVERS)]
        calls = [pool.submit(_ask_on, site, servers, number % _SERVERS, wish) for number in range(_CALLERS)]
        wait_until_submitted(site, wish)
        servers[chance.randrange(_SERVERS)].kill()
        killed_at = time.monotonic()
        outcome.injected += 1
        answers = [call.result() for call in calls]
        outcome.recovered(time.monotonic() - killed_at)
    _check_agreement(site, wish, answers, outcome)


def _ask_on(site: Site, servers: Sequence[RunningServer], number: int, wish: Wish) -> Answer:
    """Ask one server, and where it is gone the next one."""
    while True:
        answer = site.create(servers[number % len(servers)], wish)
        if answer.reason or answer.is_ok:
            return answer
        number += 1


def _check_agreement(site: Site, wish: Wish, answers: Sequence[Answer], outcome: Outcome) -> None:
    told = {answer.value.image.guid if answer.is_ok else answer.as_told for answer in answers}
    is_one = len(told) == 1 and (answers[0].is_ok or answers[0].reason == OUTCOME_UNKNOWN)
    outcome.expect(is_one, f"callers were told {told}: {wish}")
    outcome.expect(site.stand_in.count(wish.prompt) == 1, f"not submitted once: {wish}")
