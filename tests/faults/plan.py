"""The full run: which faults, how often, and what runs beside what."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.faults import (
    busy,
    callers,
    cancelling,
    conflicts,
    crashes,
    databases,
    edits,
    imports,
    providers,
    queued,
    quotas,
    races,
    renditions,
    stopping,
    storage,
    streams,
)
from tests.faults.outcome import Outcome
from tests.faults.site import Bench
from tests.support.database_servers import DatabaseKind, DatabaseServer, fresh_database, private_server
from tests.support.object_stores import RunningObjectStore, running_s3

Scenario = Callable[[], Outcome]

_LANES = 4
_KILLS_A_LANE = 26
"""Twice on SQLite, once on each server: at least 200 in all by the rounds below."""
_KILL_ROUNDS = 2
_SHORT_LEASE = 6.0
_AWAY_SECONDS = 6.0
"""Longer than the product waits for its database, so that every wait is seen to end."""
_BUSY_SECONDS = 60.0


@dataclass(frozen=True)
class Databases:
    """The shared servers, for all that does not harm them."""

    mysql: DatabaseServer
    mariadb: DatabaseServer
    _stack: ExitStack

    def on_mysql(self) -> str:
        """A fresh database on MySQL."""
        return self._stack.enter_context(fresh_database(self.mysql))

    def on_mariadb(self) -> str:
        """A fresh database on MariaDB."""
        return self._stack.enter_context(fresh_database(self.mariadb))

    def object_store(self) -> RunningObjectStore:
        """An S3 server with an empty bucket."""
        folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="pixyproxy-s3-")))
        return self._stack.enter_context(running_s3(folder))

    def everywhere(self) -> list[str | None]:
        """SQLite, and fresh databases on MySQL and MariaDB."""
        return [None, self.on_mysql(), self.on_mariadb()]


@dataclass(frozen=True)
class Stage:
    """Scenarios that run at the same time, so many at once."""

    name: str
    at_once: int
    scenarios: Sequence[Scenario]


def run(bench: Bench, say: Callable[[str], None]) -> tuple[list[Outcome], Databases]:
    """Run everything and return what came of each kind of fault, in the order of the table."""
    outcomes: dict[str, Outcome] = {}
    with ExitStack() as stack:
        servers = Databases(
            stack.enter_context(private_server(DatabaseKind.MYSQL)),
            stack.enter_context(private_server(DatabaseKind.MARIADB)),
            stack,
        )
        for stage in stages(bench, servers):
            say(f"{stage.name} …")
            with ThreadPoolExecutor(stage.at_once) as pool:
                for outcome in pool.map(_tried, stage.scenarios):
                    say(f"  {' | '.join(outcome.cells())}")
                    if not outcome.is_good:
                        say(outcome.report())
                    if outcome.fault in outcomes:
                        outcomes[outcome.fault].add(outcome)
                    else:
                        outcomes[outcome.fault] = outcome
        return list(outcomes.values()), servers


def _tried(scenario: Scenario) -> Outcome:
    try:
        return scenario()
    except pytest.skip.Exception as skipped:
        return Outcome(_name_of(scenario), not_run=str(skipped))
    except Exception as error:  # One that broke off is a result too, and must not end the others.
        return Outcome(_name_of(scenario), problems=[f"broken off: {type(error).__name__}: {error}"])


def _name_of(scenario: Scenario) -> str:
    function = scenario.func if isinstance(scenario, partial) else scenario
    return function.__name__.replace("_", " ")


def stages(bench: Bench, servers: Databases) -> Iterator[Stage]:
    """All scenarios. What is timed most finely runs with the least beside it."""
    yield Stage("kill -9 at named points", 1, [partial(_crash_points, bench, servers)])
    yield Stage("kill -9 during an import", 1, list(_imports(bench, servers)))
    yield Stage("kill -9 of one of several processes", 1, [partial(_crash_points_of_processes, bench, servers)])
    yield Stage("edits", 1, list(_edits(bench, servers)))
    yield Stage("renditions", 1, list(_renditions(bench, servers)))
    yield Stage("an object store", 1, list(_object_store(bench, servers)))
    yield Stage("a busy machine", 1, list(_busy_machine(bench, servers)))
    yield Stage("asleep at named points", 1, [partial(_pauses, bench, servers)])
    yield Stage("kill -9 at random moments", _LANES, list(_random_kills(bench, servers)))
    yield Stage("races, callers, provider, storage, stopping, conflicts", 3, list(_others(bench, servers)))
    yield Stage("databases that go away", 2, list(_absences(bench)))


def _crash_points(bench: Bench, servers: Databases) -> Outcome:
    points = crashes.ALL_POINTS
    urls = [*(None for _ in points), *(servers.on_mysql() for _ in points)]
    return crashes.crash_points(bench, urls, points * 2, at_once=11)


def _crash_points_of_processes(bench: Bench, servers: Databases) -> Outcome:
    points = crashes.ALL_POINTS
    urls = [*(None for _ in points), *(servers.on_mysql() for _ in points)]
    return crashes.crash_points_of_processes(bench, urls, points * 2, at_once=6)


def _imports(bench: Bench, servers: Databases) -> Iterator[Scenario]:
    # The product would wait for minutes for a server that is dead.
    bench = replace(bench, lease=_SHORT_LEASE)
    points = imports.ALL_POINTS
    urls = [*(None for _ in points), *(servers.on_mysql() for _ in points), *(servers.on_mariadb() for _ in points)]
    yield partial(imports.crash_points, bench, urls, points * 3, at_once=9)
    points = imports.ALL_OBJECT_STORE_POINTS
    bench = replace(bench, object_store=servers.object_store())
    yield partial(imports.crash_points, bench, [servers.on_mysql() for _ in points], points, at_once=9)


def _edits(bench: Bench, servers: Databases) -> Iterator[Scenario]:
    points = crashes.ALL_EDIT_POINTS
    urls = [*(None for _ in points), *(servers.on_mysql() for _ in points)]
    yield partial(crashes.edit_crash_points, bench, urls, points * 2, at_once=8)
    urls = [servers.on_mariadb() for _ in points]
    yield partial(crashes.edit_crash_points_of_processes, bench, urls, points, at_once=6)
    yield partial(edits.inputs_change, bench, lambda: None, at_once=6)
    yield partial(edits.inputs_change, bench, servers.on_mysql, at_once=6)
    for url in servers.everywhere():
        yield partial(providers.faulty_edits, bench, url, rounds=1)
    for url in servers.everywhere():
        yield partial(providers.faulty_streams_of_edits, bench, url, rounds=1)


def _renditions(bench: Bench, servers: Databases) -> Iterator[Scenario]:
    points = renditions.ALL_POINTS
    for scenario in (renditions.worker_killed, renditions.image_deleted):
        urls = [url for _ in points for url in servers.everywhere()]
        yield partial(scenario, bench, urls, [point for point in points for _ in range(3)], at_once=6)
    bench = replace(bench, object_store=servers.object_store())
    points = renditions.ALL_OBJECT_STORE_POINTS
    for scenario in (renditions.worker_killed, renditions.image_deleted):
        yield partial(scenario, bench, [servers.on_mysql() for _ in points], points, at_once=6)


def _object_store(bench: Bench, servers: Databases) -> Iterator[Scenario]:
    bench = replace(bench, object_store=servers.object_store())
    points = crashes.ALL_OBJECT_STORE_POINTS
    yield partial(crashes.crash_points, bench, [servers.on_mysql() for _ in points], points, at_once=11)
    points = crashes.OWN_EDIT_POINTS
    yield partial(crashes.edit_crash_points, bench, [servers.on_mysql() for _ in points], points, at_once=6)
    yield partial(crashes.random_kills, bench, servers.on_mysql(), kills=_KILLS_A_LANE, seed=100)


def _busy_machine(bench: Bench, servers: Databases) -> Iterator[Scenario]:
    for url, workers in ((None, 1), (None, 2), (servers.on_mysql(), 2)):
        yield partial(busy.busy_machine, bench, url, seconds=_BUSY_SECONDS, workers=workers)


def _pauses(bench: Bench, servers: Databases) -> Outcome:
    points = crashes.PAUSE_POINTS
    urls = [*(servers.on_mysql() for _ in points), *(servers.on_mariadb() for _ in points)]
    return crashes.pauses(bench, urls, points * 2, at_once=11)


def _random_kills(bench: Bench, servers: Databases) -> Iterator[Scenario]:
    for number in range(_KILL_ROUNDS):
        for lane, url in enumerate([None, *servers.everywhere()]):
            yield partial(crashes.random_kills, bench, url, kills=_KILLS_A_LANE, seed=10 * number + lane)


def _others(bench: Bench, servers: Databases) -> Iterator[Scenario]:
    yield from _generations(bench, servers)
    for hold in queued.HOLDS:
        for url in (None, servers.on_mysql()):
            yield partial(queued.everything_killed, bench, url, hold, times=2)
    for url in servers.everywhere():
        yield partial(queued.one_of_two_killed, bench, url, times=2)
    yield from _races(bench, servers)
    for url in servers.everywhere():
        yield partial(callers.leaving, bench, url, times=5)
    for url in servers.everywhere():
        yield partial(callers.leaving_the_queue, bench, url, times=5)
    for url in servers.everywhere():
        yield partial(providers.faulty_answers, bench, url, rounds=2)
    yield partial(providers.unreachable, bench, None, times=3, calls=200)
    for scenario in (storage.full_disk, storage.read_only, storage.full_after_answer):
        for url in (None, servers.on_mysql()):
            yield partial(scenario, bench, url, times=5)
    yield partial(storage.damaged_bytes, bench, None)
    for stop in (stopping.stopped_under_load, stopping.stopped_without_caller, stopping.stopped_twice):
        for url in (None, servers.on_mysql()):
            yield partial(stop, bench, url, times=3)
    for seed, url in enumerate(servers.everywhere()):
        yield partial(
            conflicts.concurrent_changes, bench, url, changes=2000, servers=1 if url is None else 2, seed=seed
        )


def _generations(bench: Bench, servers: Databases) -> Iterator[Scenario]:
    # Each with a database of its own: the servers of one would claim the generations of another.
    for url in servers.everywhere():
        yield partial(cancelling.races_with_claims, bench, url, races=334, servers=1 if url is None else 2)
    for url in servers.everywhere():
        yield partial(streams.generation_worker_killed, bench, url, times=3)
    for url in servers.everywhere():
        yield partial(providers.faulty_streams, bench, url, rounds=2)


def _races(bench: Bench, servers: Databases) -> Iterator[Scenario]:
    for url in servers.everywhere():
        yield partial(races.one_server, bench, url, rounds=5)
    yield partial(races.several_servers, bench, servers.on_mysql(), rounds=10)
    yield partial(races.one_of_several_killed, bench, servers.on_mysql(), rounds=4, seed=1)
    yield partial(races.one_of_several_killed, bench, servers.on_mariadb(), rounds=4, seed=2)
    for seed, url in enumerate(servers.everywhere()):
        yield partial(quotas.raced, bench, url, callers=64, limit=50, servers=1 if url is None else 3, seed=seed)


def _absences(bench: Bench) -> Iterator[Scenario]:
    kinds = (DatabaseKind.MYSQL, DatabaseKind.MARIADB)
    for absence, kind in itertools.product(databases.ABSENCES.values(), kinds):
        yield partial(databases.goes_away, bench, kind, absence, times=2, seconds=_AWAY_SECONDS)
    for kind in kinds:
        # Leases last 15 seconds.
        yield partial(
            databases.goes_away,
            bench,
            kind,
            databases.ABSENCES["refused"],
            times=2,
            seconds=20,
            generation="slow=25",
        )
        yield partial(databases.goes_away_and_we_die, bench, kind, times=2)
