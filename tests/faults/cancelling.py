"""Cancellations that race with generation workers for the same generation."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pixyproxy_pb.v1 import generation_service_pb2 as gpb

from tests.faults.audit import Expected, audit
from tests.faults.outcome import Outcome
from tests.faults.site import WAIT_TIMEOUT, Answer, Bench, Site, Wish, answer_to, request_for
from tests.support.generation_client import CANCELLED, SUCCEEDED, GenerationClient
from tests.support.servers import RunningServer
from tests.support.waiting import wait_until

_AT_ONCE = 4
"""Generations that are started together: some are claimed at once, some are queued for a moment."""
_MOST_ROUNDS = 10
_SLOTS = {"PIXYPROXY_MAX_GENERATIONS": "2"}


def races_with_claims(bench: Bench, database_url: str | None, *, races: int, servers: int) -> Outcome:
    """Cancel generations as soon as they are started; each is either cancelled or generated, and never both."""
    outcome = Outcome("CancelGeneration races with the claim")
    site = bench.site(database_url)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(_AT_ONCE) as pool:
        running = [stack.enter_context(site.server(**_SLOTS)) for _ in range(servers)]
        told: list[Answer] = []
        for _ in range(_MOST_ROUNDS):
            wishes = [site.wish() for _ in range(races)]
            answers = list(pool.map(partial(_race, site, running, outcome), wishes, itertools.count()))
            for wish, answer in zip(wishes, answers, strict=True):
                _check(site, running[0], wish, answer, outcome)
            told += answers
            wins = sum(answer.is_ok for answer in told)
            # Where processes get little time, one side may win every race of a round.
            if 0 < wins < len(told):
                break
        outcome.expect(0 < wins < len(told), f"no races: {wins} of {len(told)} were cancelled")
        audit(site, running[0], outcome, Expected(refused=frozenset({"GENERATION_CANCELLED"})))
    return outcome


def _race(site: Site, servers: Sequence[RunningServer], outcome: Outcome, wish: Wish, number: int) -> Answer:
    """Start a generation on one server, and cancel it on the next one; return what that came to."""
    starter, canceller = (GenerationClient(servers[(number + at) % len(servers)], site.login) for at in range(2))
    request = gpb.CreateGenerationRequest(request=request_for(wish))
    started = starter.stub.CreateGeneration(request, metadata=starter.metadata, timeout=WAIT_TIMEOUT).generation
    begin = time.monotonic()
    answer = answer_to(lambda: canceller.cancel(started.guid))
    outcome.recovered(time.monotonic() - begin)
    outcome.injected += 1
    return answer


def _check(site: Site, server: RunningServer, wish: Wish, told: Answer, outcome: Outcome) -> None:
    client = GenerationClient(server, site.login)
    final = (CANCELLED, SUCCEEDED)
    ended = wait_until(
        lambda: found if (found := client.get(request_id=wish.request_id)).state in final else None,
        WAIT_TIMEOUT,
        f"the end of {wish}",
    )
    submissions = site.stand_in.count(wish.prompt)
    if told.is_ok:
        outcome.expect(ended.state == CANCELLED, f"cancelled, and then {ended.state}: {wish}")
        outcome.expect(submissions == 0, f"cancelled, and submitted {submissions} times: {wish}")
    else:
        outcome.expect(told.as_told == "FAILED_PRECONDITION ALREADY_SUBMITTED", f"{told.as_told}: {wish}")
        outcome.expect(ended.state == SUCCEEDED, f"not cancelled, and then {ended.state}: {wish}")
        outcome.expect(submissions == 1, f"not cancelled, and submitted {submissions} times: {wish}")
