"""Quotas, while many callers on several servers race for what is left of them, and a server is killed."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pixyproxy_pb.v1 import usage_service_pb2 as upb
from pixyproxy_pb.v1.usage_service_pb2_grpc import UsageServiceStub

from tests.faults.audit import Expected, audit
from tests.faults.outcome import Outcome
from tests.faults.site import OUTCOME_UNKNOWN, WAIT_TIMEOUT, Answer, Bench, Site, Wish
from tests.support.servers import RunningServer
from tests.support.waiting import wait_until

_EXHAUSTED = "QUOTA_EXHAUSTED"
_SLOW = "slow=0.5"


def raced(bench: Bench, database_url: str | None, *, callers: int, limit: int, servers: int, seed: int) -> Outcome:
    """Have callers race for the images of a day, on several servers, and kill one of these meanwhile.

    Args:
        bench: where.
        database_url: the database; None for one in a file.
        callers: of each server.
        limit: the images of the day, in all.
        servers: how many; one that is killed is replaced.
        seed: which server is killed.
    """
    outcome = Outcome(f"callers of several servers race for a quota, and one server is killed ({callers} a server)")
    # Fewer at once than the images of the day, so that some wait for a reservation, and others for a slot.
    limits = {"PIXYPROXY_USER_IMAGES_PER_DAY": str(limit), "PIXYPROXY_USER_GENERATIONS_AT_ONCE": str(limit // 2)}
    site = bench.site(database_url, **limits)
    wishes = [site.wish(_SLOW) for _ in range(callers * servers)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(wishes)) as pool:
        running = [stack.enter_context(site.server()) for _ in range(servers)]
        calls = [pool.submit(_ask, site, running, number, wish) for number, wish in enumerate(wishes)]
        wait_until(lambda: any(site.stand_in.count(wish.prompt) for wish in wishes), WAIT_TIMEOUT, "a submission")
        running[random.Random(seed).randrange(servers)].kill()
        killed_at = time.monotonic()
        outcome.injected += 1
        running.append(stack.enter_context(site.server()))
        answers = [call.result() for call in calls]
        outcome.recovered(time.monotonic() - killed_at)
        _check(site, running[-1], wishes, answers, limit, outcome)
        # Repetitions of what was charged are answered, and those of what was not are refused: nothing more is spent.
        audit(site, running[-1], outcome, Expected(unknown=True, refused=frozenset({_EXHAUSTED})))
        _check(site, running[-1], wishes, answers, limit, outcome)
    return outcome


def _ask(site: Site, servers: Sequence[RunningServer], number: int, wish: Wish) -> Answer:
    """Ask one server, and where it is gone or busy the next one."""
    while True:
        answer = site.create(servers[number % len(servers)], wish)
        if answer.is_ok or answer.reason not in ("", "TOO_BUSY"):
            return answer
        number += 1


def _check(
    site: Site, server: RunningServer, wishes: Sequence[Wish], answers: Sequence[Answer], limit: int, outcome: Outcome
) -> None:
    """Check that exactly the limit was charged: not an image more, and nothing that nobody uses."""
    wait_until(lambda: not _reserved(site, server), WAIT_TIMEOUT, "all that is reserved to be settled")
    submitted = sum(site.stand_in.count(wish.prompt) for wish in wishes)
    told = {kind: sum(answer.as_told == kind for answer in answers) for kind in {answer.as_told for answer in answers}}
    charged = sum(answer.is_ok or answer.reason == OUTCOME_UNKNOWN for answer in answers)
    refused = sum(answer.reason == _EXHAUSTED for answer in answers)
    used = _quotas(site, server)["images_per_day"].used
    outcome.expect(submitted <= limit, f"{submitted} images were submitted with a limit of {limit}")
    outcome.expect(used == limit, f"{used} images are charged with a limit of {limit}: {told}")
    outcome.expect((charged, refused) == (limit, len(wishes) - limit), f"with a limit of {limit}, callers got {told}")


def _reserved(site: Site, server: RunningServer) -> int:
    quotas = _quotas(site, server)
    return quotas["images_per_day"].reserved + quotas["generations_at_once"].used


def _quotas(site: Site, server: RunningServer) -> dict[str, upb.Quota]:
    stub = UsageServiceStub(server.channel)  # type: ignore[no-untyped-call]
    answer = stub.GetQuota(upb.GetQuotaRequest(), metadata=site.login.metadata, timeout=WAIT_TIMEOUT)
    return {quota.name: quota for quota in answer.quotas}
