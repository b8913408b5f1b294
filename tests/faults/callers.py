"""Callers who do not wait for the answer: who cancel, whose deadline passes, whose connection ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.faults.audit import Expected, audit
from tests.faults.outcome import Outcome
from tests.faults.site import WAIT_TIMEOUT, Bench, Site, Wish, request_for, wait_until_submitted
from tests.support.servers import RunningServer, image_stub
from tests.support.waiting import wait_until

_SLOW = "slow=1"


def leaving(bench: Bench, database_url: str | None, *, times: int) -> Outcome:
    """Leave while the provider works, before the answer, and after it; then ask again."""
    outcome = Outcome("the caller leaves after the request was submitted")
    site = bench.site(database_url)
    with site.server() as server, ThreadPoolExecutor(8) as pool:
        ways = [_cancel, _let_deadline_pass, _hang_up, _leave_after] * times
        list(pool.map(lambda leave: _leave_and_ask(site, server, leave, outcome), ways))
        audit(site, server, outcome, Expected())
    return outcome


def leaving_the_queue(bench: Bench, database_url: str | None, *, times: int) -> Outcome:
    """Leave while the request is queued: it is not submitted; asked again, it is submitted once."""
    outcome = Outcome("the caller leaves before the request was submitted")
    site = bench.site(database_url)
    with site.server(PIXYPROXY_IMAGES_PER_MINUTE="1") as server:
        outcome.expect(site.create(server, site.wish()).is_ok, "the first of the minute")
        left = [_leave_queue(site, server, outcome) for _ in range(times)]
        refused = [_be_refused(site, server, outcome) for _ in range(times)]
        for wish in left:
            _wait_for_state(server, wish, "failed")
        for wish in left + refused:
            outcome.expect(site.stand_in.count(wish.prompt) == 0, f"submitted for nobody: {wish}")
    with site.server() as server:
        for wish in left + refused:
            began = time.monotonic()
            outcome.expect(site.create(server, wish).is_ok, f"asked again: {wish}")
            outcome.recovered(time.monotonic() - began)
            outcome.expect(site.stand_in.count(wish.prompt) == 1, f"not submitted once: {wish}")
        audit(site, server, outcome, Expected())
    return outcome


def _leave_and_ask(
    site: Site, server: RunningServer, leave: Callable[[Site, RunningServer, Wish, Outcome], None], outcome: Outcome
) -> None:
    wish = site.wish(_SLOW)
    leave(site, server, wish, outcome)
    left_at = time.monotonic()
    answer = site.create(server, wish)
    outcome.recovered(time.monotonic() - left_at)
    outcome.injected += 1
    outcome.expect(answer.is_ok, f"asked again: {answer.as_told}")
    outcome.expect(site.stand_in.count(wish.prompt) == 1, f"not submitted once: {wish}")


def _cancel(site: Site, server: RunningServer, wish: Wish, outcome: Outcome) -> None:
    call = site.begin(server, wish)
    wait_until_submitted(site, wish)
    call.cancel()


def _let_deadline_pass(site: Site, server: RunningServer, wish: Wish, outcome: Outcome) -> None:
    def is_submitted() -> bool:
        answer = site.create(server, wish, timeout=0.5)
        outcome.expect(answer.code == "DEADLINE_EXCEEDED", f"the deadline passed: {answer.as_told}")
        # On a busy machine it may have passed in the queue, which the request then has left.
        return site.stand_in.count(wish.prompt) > 0

    wait_until(is_submitted, WAIT_TIMEOUT, f"{wish} to be submitted before the deadline")


def _hang_up(site: Site, server: RunningServer, wish: Wish, outcome: Outcome) -> None:
    with server.new_channel() as channel:
        call: Any = image_stub(channel).CreateImage.future(
            request_for(wish), metadata=site.login.metadata, timeout=WAIT_TIMEOUT
        )
        wait_until_submitted(site, wish)
    outcome.expect(call.done(), "the connection is closed")


def _leave_after(site: Site, server: RunningServer, wish: Wish, outcome: Outcome) -> None:
    answer = site.create(server, wish)
    outcome.expect(answer.is_ok, f"waited: {answer.as_told}")


def _leave_queue(site: Site, server: RunningServer, outcome: Outcome) -> Wish:
    wish = site.wish()
    call = site.begin(server, wish, timeout=None)
    _wait_for_state(server, wish, "queued")
    call.cancel()
    outcome.injected += 1
    return wish


def _be_refused(site: Site, server: RunningServer, outcome: Outcome) -> Wish:
    """A deadline within which it cannot be submitted is told at once."""
    wish = site.wish()
    answer = site.create(server, wish, timeout=20)
    outcome.injected += 1
    outcome.expect(
        answer.as_told == "RESOURCE_EXHAUSTED TOO_BUSY", f"not submitted within the deadline: {answer.as_told}"
    )
    outcome.expect(answer.retry_after is not None and answer.seconds < 5, f"told after {answer.seconds:.1f} s")
    return wish


def _wait_for_state(server: RunningServer, wish: Wish, state: str) -> None:
    wait_until(lambda: server.generation_states(wish.prompt) == [state], WAIT_TIMEOUT, f"{wish} to be {state}")
