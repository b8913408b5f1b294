"""Servers that are killed: at every named point, and at random moments under load."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypedDict

from tests.faults.audit import Expected, ask_until_settled, audit
from tests.faults.crashing_server import (
    AUDIT_POINTS,
    CREATE_POINTS,
    DELETE_POINTS,
    EDIT_POINTS,
    HALF_WRITTEN,
    INPUTS_PINNED,
    OBJECT_STORE_POINTS,
    POINTS,
    QUEUE_AGAIN_POINTS,
    RECORD_POINTS,
    UPDATE_POINTS,
)
from tests.faults.outcome import Outcome
from tests.faults.site import OUTCOME_UNKNOWN, WAIT_TIMEOUT, Answer, Bench, Site, Wish
from tests.support.processes import is_stopped
from tests.support.servers import RunningServer
from tests.support.waiting import wait_until

_NOT_RECORDED = (*RECORD_POINTS, INPUTS_PINNED)
_NOT_SUBMITTED = (*_NOT_RECORDED, "before the claim", "claimed, not committed")
_READING = tuple(point for point in EDIT_POINTS if point != INPUTS_PINNED)
_FAILED, _QUEUED_AGAIN = "failed, before it is queued again", "queued again"
_UNKNOWN = (
    "submitted, the provider not asked",
    *_READING,
    _FAILED,
    "queued again, not committed",
    "the provider has answered",
    "the manifest is written",
    "half of the bytes written",
    "bytes written, not renamed",
    "before the bytes are sent",
)
_AFTER_COMMIT = ("committed", "before the manifest is deleted", "the manifest is deleted", *AUDIT_POINTS)
"""Here the call may be answered before the process dies."""
_FAILS_ONCE = "503:times=1:retry-after-ms=100"
_WORKERS = 6
_MOST_WAITING = 8
_LULL = 0.02
"""Seconds before a caller tries again where nobody answered."""
_SHORTEST_LIFE, _LONGEST_LIFE = 0.05, 0.9
"""Seconds that a server serves before it is killed at random."""


# --- At named points -------------------------------------------------------------------------------------------------


def at_each(
    bench: Bench,
    database_urls: Iterable[str | None],
    points: Sequence[str],
    at_once: int,
    act: Callable[[Site, str, Outcome], None],
    fault: str,
) -> Outcome:
    """Act at each point, on a site of its own on the database that goes with it; return what came of all."""
    outcome = Outcome(fault)
    urls = list(database_urls)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda job: act(bench.site(job[0]), job[1], outcome), zip(urls, points, strict=True)))
    return outcome


def crash_points(bench: Bench, database_urls: Iterable[str | None], points: Sequence[str], *, at_once: int) -> Outcome:
    """Kill a server at each point, on a site of its own on each database, and ask another one for the same again."""
    fault = "kill -9 at a named point" + (", object store" if bench.object_store else "")
    return at_each(bench, database_urls, points, at_once, _crash_at, fault)


def crash_points_of_processes(
    bench: Bench, database_urls: Iterable[str | None], points: Sequence[str], *, at_once: int
) -> Outcome:
    """Kill at each point the one process of several that comes there: a generation worker or an RPC worker."""
    fault = "kill -9 of a generation worker, or of an RPC worker, at a named point"
    return at_each(bench, database_urls, points, at_once, _crash_one_at, fault)


def edit_crash_points(
    bench: Bench, database_urls: Iterable[str | None], points: Sequence[str], *, at_once: int
) -> Outcome:
    """The same for edits, whose inputs are there before."""
    fault = "kill -9 at a named point of an edit" + (", object store" if bench.object_store else "")
    return at_each(bench, database_urls, points, at_once, partial(_crash_at, is_edit=True), fault)


def edit_crash_points_of_processes(
    bench: Bench, database_urls: Iterable[str | None], points: Sequence[str], *, at_once: int
) -> Outcome:
    """The same for edits, of one process of several."""
    fault = "kill -9 of a generation worker, or of an RPC worker, at a named point of an edit"
    return at_each(bench, database_urls, points, at_once, partial(_crash_one_at, is_edit=True), fault)


def _crash_one_at(site: Site, point: str, outcome: Outcome, *, is_edit: bool = False) -> None:
    one = Outcome(outcome.fault, injected=1)
    wish = _wish_for(site, point, is_edit=is_edit)
    with site.server(crash_at=point, PIXYPROXY_WORKERS="2") as server:
        began_at = time.monotonic()
        answer = _reach(site, server, wish, point)
        if point in ALL_EDIT_POINTS and point not in _NOT_RECORDED:
            # The RPC worker lives, and waits for the next generation worker.
            _check_answer(point, answer, _submissions_at(point), site.stand_in.count(wish.prompt), one)
        else:
            one.expect(answer.code == "UNAVAILABLE", f"killed, and the call ended with {answer.as_told}")
        again = wait_until(lambda: _told_again(site, server, wish), WAIT_TIMEOUT, "an answer of those that live")
        one.recovered(time.monotonic() - began_at)
        _check_answer(point, again, _submissions_at(point), site.stand_in.count(wish.prompt), one)
        wait_until(lambda: ") has died. Signal 9" in server.log, WAIT_TIMEOUT, "a process to be killed")
        one.expect(server.log.count(") has died. Signal 9") == 1, "not one process was killed")
        audit(site, server, one, Expected(unknown=point in _UNKNOWN))
    add_at(outcome, one, point)


def _wish_for(site: Site, point: str, *, is_edit: bool = False) -> Wish:
    fault = _FAILS_ONCE if point in QUEUE_AGAIN_POINTS else ""
    if not is_edit:
        return site.wish(fault)
    with site.server() as server:
        return site.wish(fault, **make_sources(site, server))


def make_sources(site: Site, server: RunningServer) -> EditOf:
    """Have two inputs and a mask made."""
    sources = [site.wish() for _ in range(3)]
    for source in sources:
        answer = site.create(server, source)
        assert answer.is_ok, answer.as_told
    return {"inputs": sources[:2], "mask": sources[2]}


def _told_again(site: Site, server: RunningServer, wish: Wish) -> Answer | None:
    """Ask again; None where the connection is still the one to the dead."""
    answer = ask_until_settled(site, server, wish)
    return answer if answer.is_ok or answer.reason else None


def _submissions_at(point: str) -> int:
    """Return how often the provider was asked when the process died."""
    return 0 if point in (*_NOT_SUBMITTED, *_READING, "submitted, the provider not asked") else 1


def _crash_at(site: Site, point: str, outcome: Outcome, *, is_edit: bool = False) -> None:
    one = Outcome(outcome.fault, injected=1)
    wish = _wish_for(site, point, is_edit=is_edit)
    with site.server(crash_at=point) as server:
        answer = _reach(site, server, wish, point)
        is_cut_off = answer.code == "UNAVAILABLE" or (answer.is_ok and point in _AFTER_COMMIT)
        one.expect(is_cut_off, f"killed, and the call ended with {answer.as_told}")
        server.process.wait(WAIT_TIMEOUT)
    killed_at = time.monotonic()
    before = site.stand_in.count(wish.prompt)
    with site.server() as server:
        again = ask_until_settled(site, server, wish)
        one.recovered(time.monotonic() - killed_at)
        _check_answer(point, again, before, site.stand_in.count(wish.prompt), one)
        audit(site, server, one, Expected(unknown=point in _UNKNOWN))
    add_at(outcome, one, point)


def add_at(outcome: Outcome, one: Outcome, point: str) -> None:
    """Add what came of one point, and name it."""
    for complaints in (one.problems, one.lost, one.billed_twice):
        complaints[:] = [f"[{point}] {complaint}" for complaint in complaints]
    outcome.add(one)


def _reach(site: Site, server: RunningServer, wish: Wish, point: str) -> Answer:
    """Do what leads to the point."""
    answer = site.create(server, wish)
    if point in DELETE_POINTS:
        assert answer.is_ok, answer.as_told
        return site.delete(server, wish)
    if point in UPDATE_POINTS:
        assert answer.is_ok, answer.as_told
        return site.update(server, wish, ["changed"])
    return answer


def _check_answer(point: str, again: Answer, before: int, after: int, outcome: Outcome) -> None:
    right = before == _submissions_at(point)
    if point in _UNKNOWN:
        right &= again.reason == OUTCOME_UNKNOWN and before == after
    elif point in _NOT_SUBMITTED or point in QUEUE_AGAIN_POINTS:
        right &= again.is_ok and after == before + 1
    elif point in DELETE_POINTS and point != "deleted, not committed":
        right &= again.reason == "IMAGE_NOT_FOUND" and before == after
    else:
        right &= again.is_ok and before == after
    outcome.expect(right, f"asked again: {again.as_told}, submitted {before} and then {after} times")


ALL_POINTS = tuple(POINTS)
ALL_OBJECT_STORE_POINTS = tuple(OBJECT_STORE_POINTS)
OWN_EDIT_POINTS = tuple(EDIT_POINTS)
ALL_EDIT_POINTS = (*OWN_EDIT_POINTS, *CREATE_POINTS)


# --- Asleep at named points ------------------------------------------------------------------------------------------

# Within a transaction the database is locked meanwhile, or gives the transaction up; and half a file is no place to
# stop at, because the process that wakes up goes on writing it.
PAUSE_POINTS = tuple(point for point in CREATE_POINTS if "not committed" not in point and point != HALF_WRITTEN)


def pauses(bench: Bench, database_urls: Iterable[str], points: Sequence[str], *, at_once: int) -> Outcome:
    """Put a server to sleep at each point until its lease is over and another one was asked, and wake it up again."""
    fault = "server asleep at a named point for longer than its lease"
    return at_each(bench, database_urls, points, at_once, _pause_at, fault)


def _pause_at(site: Site, point: str, outcome: Outcome) -> None:
    one = Outcome(outcome.fault, injected=1)
    wish = _wish_for(site, point)
    with contextlib.ExitStack() as stack:
        sleeper = stack.enter_context(site.server(pause_at=point))
        call = site.begin(sleeper, wish)
        wait_until(lambda: is_asleep(sleeper), WAIT_TIMEOUT, "the server to fall asleep")
        # Not sooner: it might claim the request itself.
        other = stack.enter_context(site.server())
        meanwhile = ask_until_settled(site, other, wish)
        is_honest = meanwhile.is_ok or meanwhile.reason == OUTCOME_UNKNOWN
        one.expect(is_honest, f"asked elsewhere meanwhile: {meanwhile.as_told}")
        # Recovery may have deleted what the sleeper is about to finish.
        wait_until(lambda: not (site.store / ".notes").exists() or _is_recovered(site), WAIT_TIMEOUT, "recovery")
        sleeper.process.send_signal(signal.SIGCONT)
        woken_at = time.monotonic()
        site.end(wish, call)
        is_unknown = point == _FAILED
        if is_unknown:
            again = site.create(sleeper, wish)
            one.expect(again.reason == OUTCOME_UNKNOWN, f"awake again, and asked again: {again.as_told}")
        else:
            # What it had submitted is committed when it comes.
            wait_until(lambda: site.create(sleeper, wish).is_ok, WAIT_TIMEOUT, "the image of the sleeper")
        one.recovered(time.monotonic() - woken_at)
        submissions = 2 if point == _QUEUED_AGAIN else 1
        one.expect(
            site.stand_in.count(wish.prompt) == submissions, f"submitted {site.stand_in.count(wish.prompt)} times"
        )
        audit(site, other, one, Expected(unknown=is_unknown))
    add_at(outcome, one, point)


def _is_recovered(site: Site) -> bool:
    return not list((site.store / ".notes").iterdir())


def is_asleep(server: RunningServer) -> bool:
    """Tell whether a server is stopped."""
    return is_stopped(server.process.pid)


# --- At random moments -----------------------------------------------------------------------------------------------


def random_kills(bench: Bench, database_url: str | None, *, kills: int, seed: int) -> Outcome:
    """Kill a server again and again while callers create, get, change and delete images."""
    outcome = Outcome(
        "kill -9 at a random moment under load" + (", object store" if bench.object_store else ""), injected=kills
    )
    chance = random.Random(seed)
    site = bench.site(database_url)
    with Load(site, seed) as load:
        for number in range(kills + 1):
            with site.server() as server:
                with load.turned_to(server):
                    load.wait_for_success(outcome)
                    if number < kills:
                        # Neither a wait for anything nor a guess at how long something takes: the fault is the moment.
                        time.sleep(chance.uniform(_SHORTEST_LIFE, _LONGEST_LIFE))
                        server.kill()
                        load.record_fault()
                if number == kills:
                    audit(site, server, outcome, Expected(unknown=True))
    outcome.problems += load.surprises
    return outcome


class EditOf(TypedDict):
    """What an edit is made from."""

    inputs: list[Wish]
    mask: Wish


class Load:
    """Callers who create, get, change and delete images, and who ask again as the documentation tells them to.

    Attributes:
        surprises: answers that are not documented for what happened.
    """

    def __init__(self, site: Site, seed: int, *, call_timeout: float = 2.0, slow: str = "slow=0.05") -> None:
        """Start nothing yet; ``call_timeout`` is how long a caller waits for an answer, in seconds."""
        self._site = site
        self._seed = seed
        self._call_timeout = call_timeout
        self._slow = slow
        self._server: RunningServer | None = None
        self._fault_at = time.monotonic()
        self._success_at = 0.0
        self._over = threading.Event()
        self._calling: set[int] = set()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(_WORKERS)]
        self.surprises: list[str] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(WAIT_TIMEOUT)

    @contextlib.contextmanager
    def turned_to(self, server: RunningServer) -> Iterator[None]:
        """Call this server meanwhile; at the end no call is under way."""
        server.images  # noqa: B018  made here, so that two callers do not make it at once
        self._server = server
        yield
        self._server = None
        wait_until(lambda: not self._calling, WAIT_TIMEOUT, "the last calls to end")

    def record_fault(self) -> None:
        """Remember when it was."""
        self._fault_at = time.monotonic()

    def wait_for_success(self, outcome: Outcome) -> None:
        """Wait until anybody is served again, and record how long after the fault."""
        fault_at = self._fault_at
        wait_until(lambda: self._success_at > fault_at, WAIT_TIMEOUT, "any call to succeed")
        outcome.recovered(self._success_at - fault_at)

    def _work(self, number: int) -> None:
        chance = random.Random(self._seed * 1000 + number)
        waiting: list[Wish] = []
        mine: list[Wish] = []
        while not self._over.is_set():
            self._calling.add(number)
            server = self._server
            answer = None if server is None else self._act(server, chance, waiting, mine)
            self._calling.discard(number)
            if answer is not None and answer.is_ok and self._server is server:
                self._success_at = time.monotonic()
            elif answer is None or answer.code == "UNAVAILABLE":
                self._over.wait(_LULL)

    def _act(self, server: RunningServer, chance: random.Random, waiting: list[Wish], mine: list[Wish]) -> Answer:
        what = chance.random()
        if mine and what < 0.25:
            return self._read(server, chance.choice(mine))
        if mine and what < 0.4:
            return self._site.update(
                server, chance.choice(mine), [f"tag {chance.randrange(1_000_000)}"], self._call_timeout
            )
        if mine and what < 0.5:
            return self._site.delete(server, mine.pop(chance.randrange(len(mine))), self._call_timeout)
        return self._create(server, chance, waiting, mine)

    def _create(self, server: RunningServer, chance: random.Random, waiting: list[Wish], mine: list[Wish]) -> Answer:
        # Where nobody answers, nothing new is asked for: it would only be asked for again at the end.
        is_again = waiting and (len(waiting) >= _MOST_WAITING or chance.random() < 0.5)
        wish = waiting.pop(chance.randrange(len(waiting))) if is_again else self._new_wish(chance)
        answer = self._site.create(server, wish, self._call_timeout)
        if answer.is_ok:
            mine.append(wish)
        elif answer.reason != OUTCOME_UNKNOWN:
            waiting.append(wish)
        return answer

    def _new_wish(self, chance: random.Random) -> Wish:
        return self._site.wish(self._slow if chance.random() < 0.7 else "")

    def _read(self, server: RunningServer, wish: Wish) -> Answer:
        assert wish.image is not None
        answer = self._site.content(server, wish.image.guid, self._call_timeout)
        if answer.is_ok:
            size = sum(len(message.data) for message in answer.value)
            if size != wish.image.size_bytes:
                self.surprises.append(f"{size} of {wish.image.size_bytes} bytes: {wish}")
        elif answer.reason not in ("", "DATABASE_UNAVAILABLE", "CONFLICT"):
            self.surprises.append(f"reading gave {answer.as_told}: {wish}")
        return answer
