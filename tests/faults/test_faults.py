"""The short form of all faults; `make faults` runs the long one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import (
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
from tests.support.database_servers import DatabaseKind, DatabaseServer, fresh_database
from tests.support.object_stores import RunningObjectStore
from tests.support.openai_stand_in import RunningStandIn, start_stand_in

_LEASE = 2.0
"""Seconds: what waits for a lease to run out is not worth the product's own fifteen here."""


@pytest.fixture(scope="module")
def stand_in() -> Iterator[RunningStandIn]:
    with start_stand_in() as stand_in:
        yield stand_in


@pytest.fixture
def bench(tmp_path: Path, stand_in: RunningStandIn) -> Bench:
    return Bench(tmp_path, stand_in, _LEASE)


@pytest.fixture
def mysql_url(mysql_server: DatabaseServer) -> Iterator[str]:
    with fresh_database(mysql_server) as url:
        yield url


@pytest.fixture
def mariadb_url(mariadb_server: DatabaseServer) -> Iterator[str]:
    with fresh_database(mariadb_server) as url:
        yield url


@contextlib.contextmanager
def _databases(server: DatabaseServer, count: int) -> Iterator[list[str]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(fresh_database(server)) for _ in range(count)]


def check(outcome: Outcome, *, recovered_within: float) -> None:
    """What must be true of every fault."""
    assert outcome.injected > 0
    assert outcome.is_good, outcome.report()
    assert max(outcome.recovery, default=0.0) < recovered_within


# --- Killed ----------------------------------------------------------------------------------------------------------


# Here a third of the points are reached, each in one way: on SQLite, on MySQL, in one of several processes, or with an
# object store. `make faults` reaches all of them in all of these ways.


def test_a_crash_at_any_point_on_sqlite(bench: Bench) -> None:
    points = crashes.ALL_POINTS[::6]
    check(crashes.crash_points(bench, [None for _ in points], points, at_once=4), recovered_within=30)


def test_a_crash_at_any_point_on_mysql(bench: Bench, mysql_server: DatabaseServer) -> None:
    points = crashes.ALL_POINTS[1::9]
    with _databases(mysql_server, len(points)) as urls:
        check(crashes.crash_points(bench, urls, points, at_once=4), recovered_within=30)


def test_a_crash_of_one_of_several_processes(bench: Bench, mysql_server: DatabaseServer) -> None:
    points = crashes.ALL_POINTS[2::9]
    with _databases(mysql_server, len(points)) as urls:
        check(crashes.crash_points_of_processes(bench, urls, points, at_once=4), recovered_within=30)


def test_a_crash_at_any_point_with_an_object_store(bench: Bench, s3_server: RunningObjectStore) -> None:
    points = [point for point in crashes.ALL_OBJECT_STORE_POINTS if point not in crashes.ALL_POINTS]
    bench = replace(bench, object_store=s3_server)
    check(crashes.crash_points(bench, [None for _ in points], points, at_once=4), recovered_within=30)


def test_a_crash_during_an_import_on_sqlite(bench: Bench) -> None:
    points = imports.ALL_POINTS[::4]
    check(imports.crash_points(bench, [None for _ in points], points, at_once=4), recovered_within=30)


def test_a_crash_during_an_import_on_mysql(bench: Bench, mysql_server: DatabaseServer) -> None:
    points = imports.ALL_POINTS[1::5]
    with _databases(mysql_server, len(points)) as urls:
        check(imports.crash_points(bench, urls, points, at_once=4), recovered_within=30)


def test_a_crash_during_an_import_with_an_object_store(bench: Bench, s3_server: RunningObjectStore) -> None:
    points = [point for point in imports.ALL_OBJECT_STORE_POINTS if point not in imports.ALL_POINTS]
    bench = replace(bench, object_store=s3_server)
    check(imports.crash_points(bench, [None for _ in points], points, at_once=4), recovered_within=30)


def test_a_crash_of_an_edit_on_sqlite(bench: Bench) -> None:
    points = crashes.OWN_EDIT_POINTS[::3]
    check(crashes.edit_crash_points(bench, [None for _ in points], points, at_once=4), recovered_within=30)


def test_a_crash_of_an_edit_of_one_of_several_processes(bench: Bench, mysql_server: DatabaseServer) -> None:
    points = crashes.OWN_EDIT_POINTS[1::3]
    with _databases(mysql_server, len(points)) as urls:
        check(crashes.edit_crash_points_of_processes(bench, urls, points, at_once=4), recovered_within=30)


def test_a_crash_of_an_edit_with_an_object_store(bench: Bench, s3_server: RunningObjectStore) -> None:
    points = crashes.OWN_EDIT_POINTS[2::3]
    bench = replace(bench, object_store=s3_server)
    check(crashes.edit_crash_points(bench, [None for _ in points], points, at_once=4), recovered_within=30)


def test_an_input_of_an_edit_changes(bench: Bench) -> None:
    moments = edits.MOMENTS[::4]
    check(edits.inputs_change(bench, lambda: None, at_once=3, moments=moments), recovered_within=15)


def test_a_worker_that_makes_a_rendition_is_killed(bench: Bench, mysql_server: DatabaseServer) -> None:
    points = renditions.ALL_POINTS[::4]
    with _databases(mysql_server, len(points)) as urls:
        check(renditions.worker_killed(bench, urls, points, at_once=3), recovered_within=30)


def test_an_image_is_deleted_while_a_rendition_is_made(bench: Bench) -> None:
    points = renditions.ALL_POINTS[2::4]
    check(renditions.image_deleted(bench, [None for _ in points], points, at_once=3), recovered_within=30)


def test_a_server_sleeps_through_its_lease(bench: Bench, mysql_server: DatabaseServer) -> None:
    points = ("submitted, the provider not asked", "the manifest is written")
    with _databases(mysql_server, len(points)) as urls:
        check(crashes.pauses(bench, urls, points, at_once=len(points)), recovered_within=15)


def test_kills_at_random_moments_on_mysql(bench: Bench, mysql_url: str) -> None:
    check(crashes.random_kills(bench, mysql_url, kills=2, seed=2), recovered_within=30)


@pytest.mark.parametrize("hold", queued.HOLDS, ids=str)
def test_everything_is_killed_while_requests_are_queued(bench: Bench, hold: queued.Hold) -> None:
    check(queued.everything_killed(bench, None, hold, times=1), recovered_within=30)


def test_one_of_two_generation_workers_is_killed(bench: Bench, mysql_url: str) -> None:
    check(queued.one_of_two_killed(bench, mysql_url, times=1), recovered_within=30)


def test_a_generation_worker_is_killed_while_its_stream_runs(bench: Bench) -> None:
    check(streams.generation_worker_killed(bench, None, times=1), recovered_within=30)


# --- Raced, left -----------------------------------------------------------------------------------------------------


def test_callers_race_on_one_server(bench: Bench) -> None:
    check(races.one_server(bench, None, rounds=1), recovered_within=1)


def test_callers_race_on_several_servers(bench: Bench, mysql_url: str) -> None:
    check(races.several_servers(bench, mysql_url, rounds=1), recovered_within=1)


def test_callers_race_and_a_server_is_killed(bench: Bench, mysql_url: str) -> None:
    check(races.one_of_several_killed(bench, mysql_url, rounds=1, seed=1), recovered_within=30)


def test_callers_race_for_a_quota_and_a_server_is_killed(bench: Bench, mysql_url: str) -> None:
    check(quotas.raced(bench, mysql_url, callers=8, limit=6, servers=2, seed=1), recovered_within=30)


def test_cancellations_race_with_claims(bench: Bench, mysql_url: str) -> None:
    check(cancelling.races_with_claims(bench, mysql_url, races=20, servers=2), recovered_within=10)


def test_callers_leave_what_was_submitted(bench: Bench) -> None:
    check(callers.leaving(bench, None, times=1), recovered_within=15)


def test_callers_leave_the_queue(bench: Bench) -> None:
    check(callers.leaving_the_queue(bench, None, times=2), recovered_within=15)


# --- The provider ----------------------------------------------------------------------------------------------------


def test_the_provider_fails(bench: Bench) -> None:
    check(providers.faulty_answers(bench, None, rounds=1, faults=providers.FAULTS[::5]), recovered_within=10)


def test_the_provider_of_edits_fails(bench: Bench) -> None:
    check(providers.faulty_edits(bench, None, rounds=1, faults=providers.EDIT_FAULTS[::8]), recovered_within=10)


def test_the_provider_s_stream_fails_at_every_event(bench: Bench) -> None:
    faults = providers.STREAM_FAULTS[::3]
    check(providers.faulty_streams(bench, None, rounds=1, faults=faults), recovered_within=10)


def test_the_provider_cannot_be_reached(bench: Bench) -> None:
    check(providers.unreachable(bench, None, times=1, calls=6), recovered_within=15)


# --- The database ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("restarted", DatabaseKind.MYSQL),
        ("killed", DatabaseKind.MARIADB),
        ("frozen", DatabaseKind.MYSQL),
    ],
)
def test_the_database_goes_away(bench: Bench, name: str, kind: DatabaseKind) -> None:
    check(databases.goes_away(bench, kind, databases.ABSENCES[name], times=1, database_timeout=1), recovered_within=2)


def test_the_database_goes_away_and_the_server_is_killed(bench: Bench) -> None:
    check(databases.goes_away_and_we_die(bench, DatabaseKind.MYSQL, times=1), recovered_within=30)


def test_changes_get_in_each_others_way(bench: Bench, mysql_url: str) -> None:
    check(conflicts.concurrent_changes(bench, mysql_url, changes=60, servers=2, seed=1), recovered_within=10)


# --- The disk --------------------------------------------------------------------------------------------------------


def test_the_disk_is_full(bench: Bench) -> None:
    check(storage.full_disk(bench, None, times=1), recovered_within=5)


def test_the_image_folder_is_read_only(bench: Bench) -> None:
    check(storage.read_only(bench, None, times=1), recovered_within=5)


def test_the_disk_is_full_when_the_image_comes(bench: Bench) -> None:
    check(storage.full_after_answer(bench, None, times=1), recovered_within=5)


def test_stored_bytes_are_damaged(bench: Bench) -> None:
    check(storage.damaged_bytes(bench, None), recovered_within=5)


# --- Told to end -----------------------------------------------------------------------------------------------------


def test_told_to_end_under_load(bench: Bench) -> None:
    check(stopping.stopped_under_load(bench, None, times=1), recovered_within=15)


def test_told_to_end_while_a_generation_outlasts_its_caller(bench: Bench) -> None:
    check(stopping.stopped_without_caller(bench, None, times=1), recovered_within=15)


def test_told_twice(bench: Bench) -> None:
    check(stopping.stopped_twice(bench, None, times=1), recovered_within=30)
