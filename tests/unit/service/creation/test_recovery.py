"""Storing, committing and recovering images: from stores that fail, that lie, and whose listings cost."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
from obstore.store import MemoryStore

from pixyproxy.core.exceptions import (
    DBConnectionError,
    PixyProxyException,
    PromptRefusedError,
    StorageFullError,
    StorageMisconfiguredError,
    StorageUnavailableError,
)
from pixyproxy.core.fields import GenerationState, Origin, new_guid
from pixyproxy.core.models import Caller, GenerationOptions, ImageCreation, ImageDetail, ImageDetailCreate, Usage
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.deletions import DeletionRepository
from pixyproxy.data.repositories.generation_details import GenerationDetailRepository
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, RequestContext
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.stores.image_store import content_path
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.data.stores.object_image_store import ObjectImageStore
from pixyproxy.data.transactions import in_transaction
from pixyproxy.generation.observer import GenerationObserver
from pixyproxy.service.creation import storing
from pixyproxy.service.creation.changes import read_changes
from pixyproxy.service.creation.storing import ImageStoring
from tests.support.unusual_files import UNUSUAL, in_time, put_in_place
from tests.support.waiting import wait_until
from tests.unit.service.creation.parts import LEASE, FakeGenerator, Server, make_detail

PICTURE = b"picture"
OWNER = new_guid()
ALIVE, DEAD = timedelta(seconds=60), timedelta(seconds=-60)


class FailingStore(ObjectImageStore):
    """A store in memory that fails as often as it is told to, and counts its listings."""

    def __init__(self) -> None:
        objects = MemoryStore()
        super().__init__(objects, objects)
        self.failures: list[Exception] = []
        self.listings = 0

    def write(self, guid: str, data: object) -> None:
        if self.failures:
            raise self.failures.pop()
        super().write(guid, data)  # type: ignore[arg-type]

    def write_aside(self, guid: str, body: object) -> str:
        if self.failures:
            raise self.failures.pop()
        return super().write_aside(guid, body)  # type: ignore[arg-type]

    def list_manifests(self) -> list[str]:
        self.listings += 1
        return super().list_manifests()


@pytest.fixture
def store() -> FailingStore:
    return FailingStore()


@pytest.fixture
def server(database: Database, store: FailingStore) -> Server:
    return Server(database, store, FakeGenerator())


def begin(database: Database, author: Caller, lease: timedelta) -> Generation:
    """A generation that was submitted."""
    creation = ImageCreation(detail=ImageDetailCreate(prompt="a castle"))
    with database.transaction() as context:
        generations = GenerationRepository(context)
        begun = generations.insert(creation, author.user_id, "ab" * 32, RequestContext())
        assert generations.submit(begun.id, OWNER, lease)
        (submitted,) = generations.get_several([begun.id])
        context.commit()
    return submitted


def detail_of(generation: Generation) -> ImageDetail:
    return make_detail(generation.image_guid, PICTURE)


def is_committed(database: Database, generation: Generation) -> bool:
    with database.reading() as context:
        rows = context.fetch_all("SELECT id FROM images WHERE guid = :guid", {"guid": generation.image_guid})
    return bool(rows)


@pytest.mark.parametrize(
    "error", [StorageUnavailableError("away"), StorageMisconfiguredError("denied"), StorageFullError("full")]
)
def test_a_store_that_is_away_or_full_is_waited_for(
    database: Database,
    store: FailingStore,
    server: Server,
    alice: Caller,
    error: PixyProxyException,
    caplog: pytest.LogCaptureFixture,
) -> None:
    generation = begin(database, alice, ALIVE)
    store.failures = [error] * 5

    server.storing.store(detail_of(generation), PICTURE)
    server.storing.commit(generation, detail_of(generation))

    assert store.failures == []
    assert is_committed(database, generation)
    assert store.list_manifests() == []
    # Once, and not for each attempt.
    (warning,) = (record.getMessage() for record in caplog.records)
    assert re.fullmatch(
        rf"The image {generation.image_guid} cannot be stored yet; retrying for \d+ s: {error.message}", warning
    )


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_an_image_folder_that_fails_for_a_while_loses_no_image(
    database: Database, alice: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Such as a network file system whose server is restarted."""
    failures = [number] * 3
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if failures:
            raise OSError(failures.pop(), "the store failed")
        fsync(descriptor)

    with Server(database, LocalImageStore(tmp_path / "images"), FakeGenerator()).running() as server:
        monkeypatch.setattr(os, "fsync", fail)
        creation = ImageCreation(detail=ImageDetailCreate(prompt="a castle"))
        generation = server.creator.start(creation, alice)
        wait_until(lambda: is_committed(database, generation), timeout=20, what="the image to be committed")

    assert not failures


def test_a_store_that_is_away_is_waited_for_with_an_unreadable_answer(store: FailingStore, server: Server) -> None:
    guid = new_guid()
    store.failures = [StorageUnavailableError("away")] * 5

    assert server.storing.keep_aside(guid, b"the answer")
    assert store.read_aside(guid) == b"the answer"


@pytest.mark.parametrize(("seconds", "times_written"), [(0.1, 1), (LEASE.total_seconds() + 1, 2), (-1, 2)])
def test_a_manifest_is_written_again_only_where_the_lease_may_have_expired_meanwhile(
    database: Database,
    store: FailingStore,
    server: Server,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    times_written: int,
) -> None:
    """Also where the clock was set back, and it cannot be told."""
    generation = begin(database, alice, ALIVE)
    now = time.time()
    times = iter([now, now + seconds])
    written: list[str] = []
    write_manifest = store.write_manifest

    def counted(guid: str, text: str) -> None:
        written.append(guid)
        write_manifest(guid, text)

    monkeypatch.setattr(store, "write_manifest", counted)
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: next(times))
        server.storing.store(detail_of(generation), PICTURE)

    assert written == [generation.image_guid] * times_written


def test_an_image_is_stored_though_its_manifest_cannot_be_written_again(
    store: FailingStore, server: Server, alice: Caller, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was away for longer than a lease, and is away again."""
    generation = begin(database, alice, ALIVE)
    now = time.time()
    times = iter([now, now + LEASE.total_seconds() + 1])
    write_manifest = store.write_manifest

    def write_once(guid: str, text: str) -> None:
        if store.list_manifests():
            raise StorageUnavailableError("away again")
        write_manifest(guid, text)

    monkeypatch.setattr(store, "write_manifest", write_once)
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: next(times))
        server.storing.store(detail_of(generation), PICTURE)

    assert server.storing.has_content(generation.image_guid)


def test_a_picture_that_a_store_has_after_all_is_committed(
    database: Database, store: FailingStore, server: Server, alice: Caller
) -> None:
    server.storing = ImageStoring(database, store, lease=LEASE, retry_interval=0, give_up_after=0)
    generation = begin(database, alice, DEAD)
    store.failures = [StorageUnavailableError("the answer was lost")] * 100
    with pytest.raises(StorageUnavailableError):
        server.storing.store(detail_of(generation), PICTURE)
    store.failures = []
    store.write(generation.image_guid, PICTURE)

    server.recovery.run()

    assert is_committed(database, generation)
    assert store.list_manifests() == []


def test_a_manifest_keeps_everything_of_an_image(
    database: Database, store: FailingStore, server: Server, alice: Caller
) -> None:
    """Its worker died after it had stored the image."""
    generation = begin(database, alice, DEAD)
    detail = detail_of(generation).model_copy(
        update={
            "usage": Usage(input_tokens=7, output_tokens=5, total_tokens=12, input_text_tokens=3, input_image_tokens=4),
            "options": GenerationOptions(
                model="m", output_format="webp", output_compression=0, moderation="low", input_fidelity="high"
            ),
            "origin": Origin.EDITED,
        }
    )
    server.storing.store(detail, PICTURE)

    server.recovery.run()

    with database.reading() as context:
        committed = ImageRepository(context).get(generation.image_guid, alice)
    assert dict(committed).items() >= dict(detail).items()


def test_a_manifest_of_an_earlier_release_has_no_options(
    database: Database, store: FailingStore, server: Server, alice: Caller
) -> None:
    generation = begin(database, alice, DEAD)
    later = {"options", "origin", "source_guids"}
    manifest = {"detail": detail_of(generation).model_dump(mode="json", exclude=later)}
    store.write_manifest(generation.image_guid, json.dumps(manifest))
    store.write(generation.image_guid, PICTURE)

    server.recovery.run()

    with database.reading() as context:
        committed = ImageRepository(context).get(generation.image_guid, alice)
    assert (committed.options, committed.origin, committed.source_guids) == (None, Origin.GENERATED, ())


@pytest.mark.parametrize("later", [{"cost": {"nano_usd": 1}}, {"options": {"frame_count": 9}}])
def test_a_manifest_that_only_a_later_release_understands_is_left_to_it(
    database: Database, store: FailingStore, server: Server, alice: Caller, later: dict[str, object]
) -> None:
    generation = begin(database, alice, DEAD)
    manifest = {"detail": detail_of(generation).model_dump(mode="json") | later}
    store.write_manifest(generation.image_guid, json.dumps(manifest))
    store.write(generation.image_guid, PICTURE)
    other = begin(database, alice, DEAD)
    server.storing.store(detail_of(other), PICTURE)

    server.recovery.run()

    assert is_committed(database, other)
    assert store.list_manifests() == [generation.image_guid]
    with database.reading() as context:
        (left,) = GenerationRepository(context).get_several([generation.id])
    assert left.state is GenerationState.SUBMITTED


def test_manifests_are_listed_seldom_and_leased_ones_are_looked_at_again(
    database: Database, store: FailingStore, server: Server, alice: Caller
) -> None:
    generation = begin(database, alice, ALIVE)
    ImageStoring(database, store, lease=LEASE).store(detail_of(generation), PICTURE)
    for _ in range(3):
        server.recovery.run()
    assert not is_committed(database, generation)
    with database.transaction() as context:
        GenerationRepository(context).renew_leases([OWNER], DEAD)
        context.commit()

    server.recovery.run()

    assert is_committed(database, generation)
    assert store.listings == 1


def test_a_manifest_that_is_gone_is_forgotten(
    database: Database, store: FailingStore, server: Server, alice: Caller
) -> None:
    generation = begin(database, alice, ALIVE)
    other = ImageStoring(database, store, lease=LEASE)
    other.store(detail_of(generation), PICTURE)
    server.recovery.run()
    other.commit(generation, detail_of(generation))

    server.recovery.run()

    assert server.recovery._waiting == set()


def test_an_image_of_no_generation_is_reported_once_and_left(
    store: FailingStore, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """It was generated after the backup that the database was restored from."""
    guid = new_guid()
    store.write_manifest(guid, "{}")

    for _ in range(2):
        server.recovery.run()

    [reported] = [record for record in caplog.records if guid in record.message]
    assert (reported.levelname, bool(reported.exc_info)) == ("ERROR", False)
    assert store.list_manifests() == [guid]


def test_no_more_than_so_many_images_are_reported(
    database: Database, store: FailingStore, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(database, store, FakeGenerator(), max_reported=2)
    for _ in range(3):
        store.write_manifest(new_guid(), "{}")

    for _ in range(2):
        server.recovery.run()

    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2


def test_bytes_that_differ_from_read_to_read_are_not_deleted(
    database: Database, store: FailingStore, server: Server, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = begin(database, alice, DEAD)
    server.storing.store(detail_of(generation), PICTURE)
    hashes = iter(["00" * 32, "11" * 32])
    with monkeypatch.context() as lying:
        lying.setattr(storing, "sha256_of", lambda *_: next(hashes))
        server.recovery.run()
    assert store.list_manifests() == [generation.image_guid]

    assert server.storing.rescue(generation)

    with database.reading() as context:
        assert ImageRepository(context).get_any(generation.image_guid).size_bytes == len(PICTURE)


def test_bytes_that_cannot_be_read_for_a_while_are_not_given_up(
    database: Database, alice: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    store, opened = LocalImageStore(folder), os.open
    server = Server(database, store, FakeGenerator())
    generation = begin(database, alice, DEAD)
    server.storing.store(detail_of(generation), PICTURE)
    content = folder / content_path(generation.image_guid)

    def open_for_writing(path: Path, flags: int, *mode: int) -> int:
        # Each read then fails, as on a network file system whose server is restarted.
        return opened(path, os.O_WRONLY if path == content else flags, *mode)

    with monkeypatch.context() as failing:
        failing.setattr(os, "open", open_for_writing)
        server.recovery.run()
    assert store.list_manifests() == [generation.image_guid]

    server.recovery.run()

    assert is_committed(database, generation)


def test_it_is_said_whether_an_image_was_rescued(
    database: Database, store: FailingStore, server: Server, alice: Caller
) -> None:
    generation = begin(database, alice, DEAD)
    assert not server.storing.rescue(generation)
    server.storing.store(detail_of(generation), PICTURE[1:])
    assert not server.storing.rescue(generation)
    assert store.list_manifests() == [generation.image_guid]
    assert not server.storing.rescue(generation, discards=True)
    assert store.list_manifests() == []

    server.storing.store(detail_of(generation), PICTURE)
    assert server.storing.rescue(generation)
    with database.reading() as context:
        (succeeded,) = GenerationRepository(context).get_several([generation.id])
    # Its manifest could not be deleted.
    store.write_manifest(generation.image_guid, "{}")
    assert server.storing.rescue(succeeded)
    assert store.list_manifests() == []


def test_requests_are_forgotten_now_and_then(
    database: Database, store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(database, store, FakeGenerator(), retention=timedelta(days=30))
    calls: list[datetime] = []
    seen = datetime.now(UTC) - timedelta(days=40)

    def forget(_: GenerationDetailRepository, before: datetime, limit: int, *, since: datetime) -> datetime | None:
        calls.append(since)
        return seen if len(calls) % 2 else None

    monkeypatch.setattr(GenerationDetailRepository, "forget_requests", forget)
    for _ in range(4):
        server.recovery.run()
    # As there were more, the second run went on.
    beginning = calls[0]
    assert beginning < seen
    assert calls == [beginning, seen]
    # The next time, all are looked at again: some may have ended meanwhile.
    server.recovery._forget_at = 0.0
    server.recovery.run()
    assert calls == [beginning, seen, beginning]


def test_what_could_not_be_committed_is_committed_by_the_next_run_and_forgotten(
    database: Database, server: Server, alice: Caller
) -> None:
    """Though its lease has not expired: nobody else works on it."""
    generation = begin(database, alice, ALIVE)
    detail = detail_of(generation)
    server.storing.store(detail, PICTURE)
    server.recovery.finish_later(generation, lambda: server.storing.commit(generation, detail))

    server.recovery.run()

    assert is_committed(database, generation)
    assert read_changes(server.changed) == ({generation.id}, set())
    assert server.recovery._unfinished == []


def test_a_submission_that_ends_while_the_end_of_an_earlier_one_is_recorded_ends_too(
    database: Database, store: FailingStore, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the commit of the first failure was lost, and its caller has repeated the request."""
    creation = ImageCreation(detail=ImageDetailCreate(prompt="a castle"), request_id=new_guid())
    generator = FakeGenerator()
    generator.fails_with(PromptRefusedError("no"))
    server = Server(database, store, generator)
    finish_later, attempts = server.recovery.finish_later, itertools.count()
    left: list[Generation] = []
    is_recording, may_record = threading.Event(), threading.Event()

    def leave(generation: Generation, finish: Callable[[], object]) -> None:
        finish_later(generation, finish)
        left.append(generation)

    def end_slowly(database: Database, work: Callable[[DatabaseContext], Any]) -> Any:
        attempt = next(attempts) if work.__name__ == "end" else -1
        if attempt == 0:
            in_transaction(database, work)
        if attempt in (0, 2):
            raise DBConnectionError("away")
        if attempt == 1:
            is_recording.set()
            assert may_record.wait(20)
        return in_transaction(database, work)

    monkeypatch.setattr(server.recovery, "finish_later", leave)
    monkeypatch.setattr("pixyproxy.service.creation.runner.in_transaction", end_slowly)
    with server.running():
        first = server.creator.start(creation, alice)
        assert is_recording.wait(20)
        assert state_of(database, first) is GenerationState.FAILED
        server.creator.start(creation, alice)
        wait_until(lambda: len(left) == 2, timeout=20, what="the second submission to end")
        assert state_of(database, first) is GenerationState.SUBMITTED
        may_record.set()
        wait_until(lambda: state_of(database, first) is GenerationState.FAILED, timeout=20, what="that to be recorded")


def test_an_image_without_a_manifest_is_committed_when_the_database_is_back(
    database: Database, store: FailingStore, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server took its worker for dead, and found a manifest without bytes while the worker wrote these."""
    generator, other = FakeGenerator(), Server(database, store, FakeGenerator())
    write, succeed, is_away = store.write, GenerationRepository.succeed, threading.Event()

    def taken_for_dead() -> None:
        is_away.set()
        with database.transaction() as context:
            context.execute("UPDATE generations SET state = 'unknown', owner = ''", {})
            context.commit()

    def write_late(guid: str, data: object) -> None:
        other.recovery.run()
        assert store.list_manifests() == []
        write(guid, data)

    def succeed_later(generations: GenerationRepository, generation: Generation, *rest: Any) -> bool:
        if is_away.is_set():
            is_away.clear()
            raise DBConnectionError("away")
        return succeed(generations, generation, *rest)

    generator.behave = taken_for_dead
    monkeypatch.setattr(store, "write", write_late)
    monkeypatch.setattr(GenerationRepository, "succeed", succeed_later)
    monkeypatch.setattr("pixyproxy.data.transactions._ATTEMPTS", 1)
    with Server(database, store, generator).running() as server:
        detached = ImageCreation(detail=ImageDetailCreate(prompt="a castle"))
        generation = server.creator.start(detached, alice)
        wait_until(lambda: is_committed(database, generation), timeout=20, what="the image to be committed")


def test_a_deleted_image_is_not_committed_again(database: Database, server: Server, alice: Caller) -> None:
    """Another server committed it while its worker could not reach the database."""
    generation = begin(database, alice, ALIVE)
    detail = detail_of(generation)
    server.storing.store(detail, PICTURE)
    server.storing.commit(generation, detail)
    with database.transaction() as context:
        context.execute("DELETE FROM images", {})
        context.commit()

    server.recovery.finish_later(generation, lambda: server.storing.commit(generation, detail))
    server.recovery.run()

    assert not is_committed(database, generation)
    assert server.recovery._unfinished == []


def state_of(database: Database, generation: Generation) -> GenerationState:
    with database.reading() as context:
        (found,) = GenerationRepository(context).get_several([generation.id])
    return found.state


def test_what_a_dead_worker_had_submitted_is_unknown(database: Database, server: Server, alice: Caller) -> None:
    alive, dead = begin(database, alice, ALIVE), begin(database, alice, DEAD)

    server.recovery.run()

    assert state_of(database, dead) is GenerationState.OUTCOME_UNKNOWN
    assert state_of(database, alive) is GenerationState.SUBMITTED
    assert read_changes(server.changed) == ({dead.id}, set())


def test_what_turns_out_to_be_alive_is_left(
    database: Database, server: Server, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = begin(database, alice, DEAD)

    def renew_meanwhile(storing: ImageStoring, expired: Generation, **_: bool) -> bool:
        with database.transaction() as context:
            GenerationRepository(context).renew_leases([OWNER], ALIVE)
            context.commit()
        return False

    monkeypatch.setattr(ImageStoring, "rescue", renew_meanwhile)
    server.recovery.run()

    assert state_of(database, generation) is GenerationState.SUBMITTED
    assert read_changes(server.changed) == (set(), set())


def test_leases_that_expired_in_an_outage_of_the_database_can_be_renewed_after_it(
    database: Database, store: FailingStore, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then, their workers count as alive: they generate, or are storing the image."""

    def refuse() -> NoReturn:
        raise DBConnectionError("away")

    server = Server(database, store, FakeGenerator(), lease=timedelta(seconds=3))
    generating, storing = begin(database, alice, DEAD), begin(database, alice, DEAD)
    server.storing.store(detail_of(storing), PICTURE)
    store.delete(storing.image_guid)
    away_at = time.monotonic()
    with monkeypatch.context() as outage:
        outage.setattr(database, "reading", refuse)
        with pytest.raises(DBConnectionError):
            server.recovery.run()

    def run() -> bool:
        server.recovery.run()
        return state_of(database, generating) is not GenerationState.SUBMITTED

    server.recovery.run()
    assert {state_of(database, generation) for generation in (generating, storing)} == {GenerationState.SUBMITTED}
    assert store.list_manifests() == [storing.image_guid]

    wait_until(run, timeout=20, what="the lease to be over")
    assert time.monotonic() - away_at > 2.9
    assert {state_of(database, generation) for generation in (generating, storing)} == {GenerationState.OUTCOME_UNKNOWN}
    assert store.list_manifests() == []


def test_a_server_that_starts_lets_the_workers_of_others_renew_their_leases(
    database: Database, store: FailingStore, alice: Caller
) -> None:
    """An outage of the database may have ended just before. But nobody renews the leases of a predecessor."""
    server = Server(database, store, FakeGenerator(), lease=timedelta(seconds=3))
    owned, released = begin(database, alice, DEAD), begin(database, alice, DEAD)
    with database.transaction() as context:
        context.execute("UPDATE generations SET owner = '' WHERE id = :id", {"id": released.id})
        context.commit()

    def has_ended(generation: Generation) -> bool:
        return state_of(database, generation) is GenerationState.OUTCOME_UNKNOWN

    started_at = time.monotonic()
    with closing(server.recovery):
        server.recovery.start()
        wait_until(lambda: has_ended(released), timeout=20, what="the end of the predecessor's generation")
        assert not has_ended(owned)
        wait_until(lambda: has_ended(owned), timeout=20, what="the lease to be over")
    assert time.monotonic() - started_at > 2.9


@pytest.mark.parametrize("jump", [ALIVE, DEAD])
def test_leases_that_expired_while_the_machine_was_suspended_can_be_renewed(
    database: Database, server: Server, alice: Caller, monkeypatch: pytest.MonkeyPatch, jump: timedelta
) -> None:
    """Or in a run of recovery that hung, or because the clock was set."""
    server.recovery.run()
    generation = begin(database, alice, DEAD)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump.total_seconds())

    server.recovery.run()

    assert state_of(database, generation) is GenerationState.SUBMITTED


@pytest.mark.parametrize(("pause", "state"), [(0, GenerationState.OUTCOME_UNKNOWN), (1.5, GenerationState.SUBMITTED)])
def test_a_lease_is_left_alone_after_three_quarters_of_one_without_an_answer(
    database: Database, store: FailingStore, alice: Caller, monkeypatch: pytest.MonkeyPatch, pause: float, state: object
) -> None:
    now = float(2**30)
    monkeypatch.setattr(time, "time", lambda: now)
    server = Server(database, store, FakeGenerator(), lease=timedelta(seconds=2))
    generation = begin(database, alice, DEAD)
    now += pause

    server.recovery.run()

    assert state_of(database, generation) is state


def test_what_a_dead_server_of_the_first_release_had_recorded_may_be_queued_again(
    database: Database, store: FailingStore, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown: list[bool] = []
    monkeypatch.setattr(GenerationObserver, "outcome_unknown", lambda _: unknown.append(True))
    server = Server(database, store, FakeGenerator())
    dead = begin(database, alice, DEAD)
    with database.transaction() as context:
        context.execute("UPDATE generations SET state = :state", {"state": GenerationState.RECORDED.value})
        context.commit()

    server.recovery.run()

    assert state_of(database, dead) is GenerationState.FAILED
    assert not unknown


# --- What is wrong with one image -------------------------------------------------------------------------------------


class LocalServer:
    """Images that are stored in a folder, and what recovers them."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.folder = folder
        self.store = LocalImageStore(folder)
        self.server = Server(database, self.store, FakeGenerator())

    def store_images(self, author: Caller, count: int) -> list[Generation]:
        """Store images whose process died before it committed them."""
        generations = [begin(self.database, author, DEAD) for _ in range(count)]
        for generation in generations:
            self.server.storing.store(detail_of(generation), PICTURE)
        return generations

    def delete(self, count: int) -> list[str]:
        """Delete images whose bytes are still there."""
        guids = [new_guid() for _ in range(count)]
        with self.database.transaction() as context:
            for guid in guids:
                DeletionRepository(context).insert(guid)
            context.commit()
        for guid in guids:
            self.store.write(guid, PICTURE)
        return guids

    def file_of(self, guid: str) -> Path:
        return self.folder / guid[0:2] / guid[2:4] / guid


@pytest.fixture
def local(database: Database, tmp_path: Path) -> LocalServer:
    return LocalServer(database, tmp_path / "images")


@pytest.mark.parametrize("kind", [*UNUSUAL, "no JSON", "no UTF-8"])
def test_a_manifest_that_cannot_be_read_stops_no_other(
    database: Database, local: LocalServer, alice: Caller, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    generations = local.store_images(alice, 9)
    damaged, good = generations[::3], [generation for generation in generations if generation not in generations[::3]]
    for generation in damaged:
        note = local.folder / ".notes" / generation.image_guid
        if kind in UNUSUAL:
            put_in_place(kind, note)
        else:
            note.write_bytes(b"{" if kind == "no JSON" else b"\xff")

    for _ in range(3):
        in_time(local.server.recovery.run)

    assert all(is_committed(database, generation) for generation in good)
    assert not any(is_committed(database, generation) for generation in damaged)
    # Each is named, and not with every run; a person may still find out what it was.
    for generation in damaged:
        [record] = [record for record in caplog.records if generation.image_guid in record.getMessage()]
        assert bool(record.exc_info) is (kind == "no JSON")
    assert sorted(local.store.list_manifests()) == sorted(generation.image_guid for generation in damaged)


@pytest.mark.parametrize("kind", UNUSUAL)
def test_bytes_that_are_no_regular_file_stop_no_other(
    database: Database, local: LocalServer, alice: Caller, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    generations = local.store_images(alice, 6)
    for generation in generations[::2]:
        put_in_place(kind, local.file_of(generation.image_guid))

    for _ in range(3):
        in_time(local.server.recovery.run)

    assert [is_committed(database, generation) for generation in generations] == [False, True] * 3
    for generation in generations[::2]:
        assert len([record for record in caplog.records if generation.image_guid in record.getMessage()]) == 1


def test_bytes_that_may_not_be_read_are_committed_once_they_may(
    database: Database, local: LocalServer, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, good = local.store_images(alice, 2)
    really_open = os.open

    def deny(path: Any, *arguments: Any, **others: Any) -> int:
        if path == local.file_of(hidden.image_guid):
            raise PermissionError(errno.EACCES, "Permission denied")
        return really_open(path, *arguments, **others)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", deny)
        local.server.recovery.run()
    assert not is_committed(database, hidden)
    assert is_committed(database, good)

    local.server.recovery.run()
    assert is_committed(database, hidden)


def test_deletions_that_fail_stop_no_other(
    database: Database, local: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    """More of them than are looked at in one run."""
    failing = local.delete(130)
    for guid in failing:
        put_in_place("folder", local.file_of(guid))
    good = local.delete(3)

    for _ in range(len(failing) + 10):
        local.server.recovery.run()

    assert not any(local.file_of(guid).exists() for guid in good)
    with database.reading() as context:
        left = DeletionRepository(context).get_next(1000, after=0)
    assert [deletion.image_guid for deletion in left] == failing
    for guid in failing:
        assert len([record for record in caplog.records if guid in record.getMessage()]) == 1
    for mended in (failing[0], failing[50]):
        local.file_of(mended).rmdir()
    for _ in range(len(failing) + 10):
        local.server.recovery.run()
    with database.reading() as context:
        assert len(DeletionRepository(context).get_next(1000, after=0)) == len(failing) - 2


def test_a_listing_that_fails_stops_no_deletion(database: Database, local: LocalServer) -> None:
    """As that of a bucket does where one key is none that the client for object stores takes."""
    (local.folder / ".notes").write_bytes(b"no folder")
    guids = local.delete(3)
    (local.folder / ".parts" / "abandoned").write_bytes(b"half")

    with pytest.raises(PixyProxyException) as failed:
        local.server.recovery.run()

    assert str(local.folder) not in failed.value.message
    assert not any(local.file_of(guid).exists() for guid in guids)
    assert not (local.folder / ".parts" / "abandoned").exists()


def test_what_keeps_failing_is_logged_once_a_minute_and_named(
    local: LocalServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = local.folder / ".notes"
    notes.write_bytes(b"no folder")
    rounds: list[int] = []
    run = local.server.recovery.run

    def counted() -> None:
        rounds.append(1)
        run()

    monkeypatch.setattr(local.server.recovery, "run", counted)
    local.server.recovery.start()
    try:
        wait_until(lambda: len(rounds) > 5, 30, "several rounds")
    finally:
        local.server.recovery.close()

    assert len([record for record in caplog.records if str(notes) in record.getMessage()]) == 1
