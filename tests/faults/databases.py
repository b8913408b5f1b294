"""A database that goes away while images are made and read, and comes back."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import grpc
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.faults.audit import Expected, audit
from tests.faults.crashes import Load
from tests.faults.outcome import Outcome
from tests.faults.site import WAIT_TIMEOUT, Answer, Bench, Site, Wish, failed, wait_until_submitted
from tests.faults.tcp_proxy import TcpProxy, tcp_proxy
from tests.support.database_servers import DatabaseKind, PrivateServer, fresh_database, private_server
from tests.support.servers import RunningServer
from tests.support.waiting import wait_until

DEADLINE = 10.0
"""Seconds that readers give a call."""
_MARGIN = 2.0
"""Seconds by which the answer must come sooner than that."""
_RESUMED_WITHIN = 1.0
_EVERY = 0.05
"""Seconds between two reads, whether the ones before are answered or not."""
_PENDING = 4
_GENERATION = "slow=3"
_AWAY = "UNAVAILABLE DATABASE_UNAVAILABLE"


@dataclass(frozen=True)
class Absence:
    """A way for the database to go away.

    Attributes:
        name: for people.
        leave: makes it go.
        come_back: brings it back, and returns when it is there.
    """

    name: str
    leave: Callable[[PrivateServer, TcpProxy], None]
    come_back: Callable[[PrivateServer, TcpProxy], None]


ABSENCES = {
    "restarted": Absence("restarted", lambda server, _: server.stop(), lambda server, _: server.start()),
    "killed": Absence("killed with -9", lambda server, _: server.kill(), lambda server, _: server.start()),
    "frozen": Absence("frozen", lambda server, _: server.freeze(), lambda server, _: server.thaw()),
    "cut off": Absence("cut off silently", lambda _, network: network.silence(), lambda _, network: network.resume()),
    "refused": Absence("cut off, refusing", lambda _, network: network.refuse(), lambda _, network: network.resume()),
}


@contextlib.contextmanager
def _site_behind_network(
    bench: Bench, kind: DatabaseKind, **settings: str
) -> Iterator[tuple[Site, PrivateServer, TcpProxy]]:
    """A site whose database is reached through a network that can be cut; the database is nobody else's."""
    with private_server(kind) as database, fresh_database(database) as url:
        parts = urlsplit(url)
        with tcp_proxy(database.host, database.port) as network:
            address = parts._replace(netloc=parts.netloc.replace(f":{database.port}", f":{network.port}"))
            yield bench.site(address.geturl(), **settings), database, network


def goes_away(
    bench: Bench,
    kind: DatabaseKind,
    absence: Absence,
    *,
    times: int,
    seconds: float = 0.0,
    database_timeout: float = 5.0,
    generation: str = _GENERATION,
) -> Outcome:
    """Take the database away while images are read and made. The server runs on.

    Args:
        bench: where to do it.
        kind: of database.
        absence: how it goes away.
        times: how often.
        seconds: for how long at least; in any case until a reader was told.
        database_timeout: PIXYPROXY_DATABASE_TIMEOUT, in seconds.
        generation: what the provider does with the images that it works on meanwhile.
    """
    outcome = Outcome(f"database {absence.name} under load")
    slow: list[float] = []
    settings = {"PIXYPROXY_DATABASE_TIMEOUT": f"{database_timeout:g}"}
    with _site_behind_network(bench, kind, **settings) as (site, database, network), site.server() as server:
        for number in range(times):
            seen = _Reads(site, server)
            load = Load(site, number, call_timeout=DEADLINE)
            with seen, load, load.turned_to(server):
                seen.wait_for_success()
                pending = _submitted(site, server, generation)
                absence.leave(database, network)
                left_at = time.monotonic()
                outcome.injected += 1
                seen.wait_for_failure(left_at)
                _let_pass(left_at + seconds)
                absence.come_back(database, network)
                returned_at = time.monotonic()
                seen.wait_for_steady_success(returned_at, outcome)
            outcome.problems += load.surprises
            seen.check(left_at, outcome)
            slow += seen.seconds_between(left_at, returned_at)
            for one in pending:
                one.check(outcome)
        audit(site, server, outcome, Expected())
    outcome.measured[f"a read while the database is {absence.name}"] = slow
    return outcome


def goes_away_and_we_die(bench: Bench, kind: DatabaseKind, *, times: int) -> Outcome:
    """Have images come while the database is away, and kill the server before it is back."""
    outcome = Outcome("images come while the database is away, then kill -9")
    with _site_behind_network(bench, kind) as (site, _, network):
        for number in range(times):
            with site.server() as server:
                pending = _submitted(site, server, "hold")
                network.refuse()
                for one in pending:
                    site.stand_in.release(one.wish.prompt)
                wait_until(lambda: _stored(site) == _PENDING, WAIT_TIMEOUT, "the images to be stored")
                server.kill()
                killed_at = time.monotonic()
                outcome.injected += 1
                for one in pending:
                    one.answer()
            network.resume()
            with site.server() as server:
                for one in pending:
                    again = site.create(server, one.wish)
                    outcome.expect(again.is_ok, f"stored, and not committed: {again.as_told}: {one.wish}")
                outcome.recovered(time.monotonic() - killed_at)
                if number == times - 1:
                    audit(site, server, outcome, Expected())
    return outcome


def _stored(site: Site) -> int:
    """Count the images that are stored whole and not committed yet."""
    guids = [path.name for path in (site.store / ".notes").glob("*")]
    return sum((site.store / guid[0:2] / guid[2:4] / guid).exists() for guid in guids)


def _let_pass(until: float) -> None:
    # How long it is away is the fault itself; there is nothing to wait for.
    time.sleep(max(0.0, until - time.monotonic()))


def _submitted(site: Site, server: RunningServer, generation: str = _GENERATION) -> list[_Pending]:
    pending = [_Pending(site, server, generation) for _ in range(_PENDING)]
    for one in pending:
        wait_until_submitted(site, one.wish)
    return pending


class _Pending:
    """A generation that the provider is working on when the database goes."""

    def __init__(self, site: Site, server: RunningServer, generation: str) -> None:
        self.wish: Wish = site.wish(generation)
        self._site, self._server = site, server
        self._call = site.begin(server, self.wish)

    def answer(self) -> Answer:
        return self._site.end(self.wish, self._call)

    def check(self, outcome: Outcome) -> None:
        """It was submitted once, is stored, and is found under its request id."""
        first = self.answer()
        outcome.expect(first.is_ok or first.as_told == _AWAY, f"nothing happened to its image: {first.as_told}")
        outcome.expect(first.seconds < WAIT_TIMEOUT, f"told after {first.seconds:.1f} s")
        again = self._site.create(self._server, self.wish)
        outcome.expect(again.is_ok, f"stored, and not committed: {again.as_told}: {self.wish}")


@dataclass(frozen=True)
class _Read:
    began: float
    ended: float
    answer: Answer


@dataclass
class _Reads:
    """Reads that begin at fixed times, whatever becomes of those before: so that nothing that hangs hides anything."""

    site: Site
    server: RunningServer
    longest_wanted: float = DEADLINE - _MARGIN
    _done: list[_Read] = field(default_factory=list)
    _open: set[int] = field(default_factory=set)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> _Reads:
        answer = self.site.create(self.server, self.site.wish())
        assert answer.is_ok, answer.as_told
        self._guid = answer.value.image.guid
        self._thread = threading.Thread(target=self._read_on)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        wait_until(lambda: not self._open, WAIT_TIMEOUT, "the last reads to end")

    def wait_for_success(self) -> None:
        wait_until(lambda: self._done, WAIT_TIMEOUT, "a read")

    def wait_for_failure(self, left_at: float) -> None:
        """Wait until somebody was told that the database is away."""
        wait_until(
            lambda: any(read.ended > left_at and not read.answer.is_ok for read in list(self._done)),
            WAIT_TIMEOUT,
            "a read to fail",
        )

    def wait_for_steady_success(self, returned_at: float, outcome: Outcome) -> None:
        """Wait until reads succeed again, and record how long the last one failed that began after the return."""
        wait_until(lambda: self._successes_in_a_row(returned_at) >= 20, WAIT_TIMEOUT, "reads to succeed again")
        later = [read for read in list(self._done) if read.began > returned_at]
        first_success = min(read.ended for read in self._done if read.answer.is_ok and read.ended > returned_at)
        last_failure = max((read.ended for read in later if not read.answer.is_ok), default=returned_at)
        seconds = max(first_success, last_failure) - returned_at
        outcome.recovered(seconds)
        outcome.expect(seconds < _RESUMED_WITHIN, f"reads failed until {seconds:.2f} s after its return")

    def check(self, left_at: float, outcome: Outcome) -> None:
        """Every read is answered, or told so in time, and told when to try again."""
        for read in self._done:
            answer = read.answer
            is_told = answer.as_told == _AWAY and answer.retry_after is not None
            when = f"{read.began - left_at:+.2f} s"
            outcome.expect(answer.is_ok or is_told, f"a read begun {when} after it went: {answer.as_told}")
            outcome.expect(answer.seconds < self.longest_wanted, f"a read begun {when} took {answer.seconds:.2f} s")

    def seconds_between(self, left_at: float, returned_at: float) -> list[float]:
        """How long the reads took that began while the database was away."""
        return [read.answer.seconds for read in self._done if left_at < read.began < returned_at]

    def _successes_in_a_row(self, since: float) -> int:
        later = sorted((read for read in list(self._done) if read.began > since), key=lambda read: read.began)
        count = 0
        for read in reversed(later):
            if not read.answer.is_ok:
                break
            count += 1
        return count

    def _read_on(self) -> None:
        stub = self.server.images
        request = pb.GetImageRequest(guid=self._guid)
        number = 0
        while not self._over.wait(_EVERY):
            number += 1
            self._open.add(number)
            call = stub.GetImage.future(request, metadata=self.site.login.metadata, timeout=DEADLINE)
            call.add_done_callback(_Noting(self, number))


class _Noting:
    """Records how a read ended."""

    def __init__(self, reads: _Reads, number: int) -> None:
        self._reads, self._number = reads, number
        self._began = time.monotonic()

    def __call__(self, call: Any) -> None:
        ended = time.monotonic()
        seconds = ended - self._began
        is_ok = call.code() is grpc.StatusCode.OK
        answer = Answer("OK", seconds=seconds) if is_ok else failed(call, seconds)
        self._reads._done.append(_Read(self._began, ended, answer))
        self._reads._open.discard(self._number)
