"""Entering pictures from stores that fail, that lie, and whose listings cost."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from obstore.store import MemoryStore
from pixyproxy.service.entry import ImageEntry

from pixyproxy.core.exceptions import StorageMisconfiguredError, StorageUnavailableError
from pixyproxy.core.models import Caller, ImageDetail, new_guid
from pixyproxy.data.database import Database
from pixyproxy.data.object_image_store import ObjectImageStore
from pixyproxy.data.repositories.generations import Generation, GenerationRepository, GenerationState
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.service import entry as entry_module

PICTURE = b"picture"
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

    def noted(self) -> list[str]:
        self.listings += 1
        return super().noted()


@pytest.fixture
def store() -> FailingStore:
    return FailingStore()


@pytest.fixture
def entry(database: Database, store: FailingStore, monkeypatch: pytest.MonkeyPatch) -> ImageEntry:
    monkeypatch.setattr(entry_module, "_KEEP_RETRY_SECONDS", 0.001)
    return ImageEntry(database, store)


def begin(database: Database, author: Caller, lease: timedelta) -> Generation:
    """A generation that was sent."""
    with database.transaction() as context:
        generations = GenerationRepository(context)
        begun = generations.insert(author_id=author.user_id, request_id=None, fingerprint="ab" * 32, lease=lease)
        sent = generations.move(begun, GenerationState.SENT, lease=lease)
        context.commit()
    assert sent is not None
    return sent


def detail_of(generation: Generation) -> ImageDetail:
    now = datetime.now(UTC)
    return ImageDetail(
        guid=generation.image_guid,
        prompt="a castle",
        filename="castle.png",
        author="alice",
        content_type="image/png",
        size_bytes=len(PICTURE),
        sha256=hashlib.sha256(PICTURE).hexdigest(),
        width=1,
        height=1,
        model="m",
        created_at=now,
        updated_at=now,
    )


def is_entered(database: Database, generation: Generation) -> bool:
    with database.reading() as context:
        rows = context.fetch_all("SELECT id FROM images WHERE guid = :guid", {"guid": generation.image_guid})
    return bool(rows)


@pytest.mark.parametrize("error", [StorageUnavailableError("away"), StorageMisconfiguredError("denied")])
def test_a_store_that_is_away_is_waited_for(
    database: Database, store: FailingStore, entry: ImageEntry, alice: Caller, error: Exception
) -> None:
    generation = begin(database, alice, ALIVE)
    store.failures = [error] * 5

    entry.keep(detail_of(generation), PICTURE)
    entry.enter(generation, detail_of(generation))

    assert store.failures == []
    assert is_entered(database, generation)
    assert store.noted() == []


def test_a_picture_that_a_store_has_after_all_is_entered(
    database: Database, store: FailingStore, entry: ImageEntry, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry_module, "_KEEP_SECONDS", 0)
    generation = begin(database, alice, DEAD)
    store.failures = [StorageUnavailableError("the answer was lost")] * 100
    with pytest.raises(StorageUnavailableError):
        entry.keep(detail_of(generation), PICTURE)
    store.failures = []
    store.write(generation.image_guid, PICTURE)

    entry.finish_abandoned()

    assert is_entered(database, generation)
    assert store.noted() == []


def test_notes_are_listed_seldom_and_those_under_way_are_kept_an_eye_on(
    database: Database, store: FailingStore, entry: ImageEntry, alice: Caller
) -> None:
    generation = begin(database, alice, ALIVE)
    ImageEntry(database, store).keep(detail_of(generation), PICTURE)
    for _ in range(3):
        entry.finish_abandoned()
    assert not is_entered(database, generation)
    with database.transaction() as context:
        GenerationRepository(context).renew_leases([generation.owner], lease=DEAD)
        context.commit()

    entry.finish_abandoned()

    assert is_entered(database, generation)
    assert store.listings == 1


def test_a_note_that_is_gone_is_forgotten(
    database: Database, store: FailingStore, entry: ImageEntry, alice: Caller
) -> None:
    generation = begin(database, alice, ALIVE)
    other = ImageEntry(database, store)
    other.keep(detail_of(generation), PICTURE)
    entry.finish_abandoned()
    other.enter(generation, detail_of(generation))

    entry.finish_abandoned()

    assert entry._waiting == set()


def test_a_picture_of_no_generation_is_reported_once_and_left(
    store: FailingStore, entry: ImageEntry, caplog: pytest.LogCaptureFixture
) -> None:
    """It was begun after the backup that the database was restored from."""
    guid = new_guid()
    store.write_note(guid, "{}")

    for _ in range(2):
        entry.finish_abandoned()

    assert [record.levelname for record in caplog.records if guid in record.message] == ["ERROR"]
    assert store.noted() == [guid]


def test_bytes_that_differ_from_read_to_read_are_not_thrown_away(
    database: Database, store: FailingStore, entry: ImageEntry, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = begin(database, alice, DEAD)
    entry.keep(detail_of(generation), PICTURE)
    hashes = iter(["00" * 32, "11" * 32])
    with monkeypatch.context() as lying:
        lying.setattr(ImageEntry, "_sha256_of", lambda *_: next(hashes))
        with pytest.raises(StorageUnavailableError):
            entry.finish_abandoned()

    entry.rescue(generation)

    with database.reading() as context:
        assert ImageRepository(context).get_any(generation.image_guid).size_bytes == len(PICTURE)
