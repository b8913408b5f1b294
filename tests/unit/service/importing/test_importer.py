"""Imports that fail: nothing is left of them, neither in the store nor in the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pixyproxy.core.exceptions import (
    CredentialsInvalidError,
    DBConnectionError,
    InvalidFieldError,
    StorageFullError,
    StorageUnavailableError,
)
from pixyproxy.core.fields import new_guid
from pixyproxy.core.models import Caller, Image, ImageImport
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.deletions import DeletionRepository
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.pending_imports import PendingImportRepository
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.data.transactions import in_transaction
from pixyproxy.service.creation.recovery import Recovery
from pixyproxy.service.creation.storing import ImageStoring
from pixyproxy.service.importing import importer
from pixyproxy.service.importing.importer import ImageImporter
from tests.contract.records import add_caller
from tests.support.image_files import encode

if TYPE_CHECKING:
    from typing_extensions import Buffer

LEASE = timedelta(seconds=15)


def nothing(*_: object) -> None:
    pass


class Store(LocalImageStore):
    """A folder that does something right before and right after it writes, and right before it deletes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.before: Callable[[], object] = nothing
        self.after: Callable[[], object] = nothing
        self.deleting: Callable[[], object] = nothing
        self.guid_written = ""

    def write(self, guid: str, data: Buffer) -> None:
        self.guid_written = guid
        self.before()
        super().write(guid, data)
        self.after()

    def delete(self, guid: str) -> None:
        self.deleting()
        super().delete(guid)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "images")


@pytest.fixture
def storing(database: Database, store: Store) -> ImageStoring:
    return ImageStoring(database, store, lease=LEASE, retry_interval=0.01, give_up_after=0.1)


@pytest.fixture
def ann(database: Database) -> Caller:
    return add_caller(database, "ann")


def import_image(database: Database, store: Store, storing: ImageStoring, author: Caller, **options: Any) -> Image:
    chosen = ImageImporter(database, store, storing, max_bytes=100_000, **options)
    return chosen.import_image(ImageImport(request_id=new_guid()), iter([encode("png")]), author)


def left(database: Database, store: Store) -> list[str]:
    """What is stored, and what is recorded as unfinished."""
    files = [path.name for path in store._folder.rglob("*") if path.is_file()]
    with database.reading() as context:
        deletions = DeletionRepository(context).get_next(9, after=0)
        rows = context.fetch_all("SELECT image_guid FROM pending_imports", {})
        generations = context.fetch_all("SELECT image_guid FROM generations", {})
    found = [*rows, *generations]
    return files + [row["image_guid"] for row in found] + [deletion.image_guid for deletion in deletions]


def failing(error: Exception) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


def test_data_that_comes_too_slowly_is_refused(
    database: Database, store: Store, storing: ImageStoring, ann: Caller
) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        import_image(database, store, storing, ann, min_rate=10**15, slow_start=0.0)
    assert caught.value.violations[0].field == "data"
    assert "KiB a second or more" in caught.value.message
    assert left(database, store) == []
    # Slow for a while, and slow all the time, but fast enough.
    assert import_image(database, store, storing, ann, min_rate=10**15).guid
    assert import_image(database, store, storing, ann, min_rate=1, slow_start=0.0).guid


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("error", [StorageUnavailableError("away"), StorageFullError("full"), RuntimeError("a bug")])
def test_a_store_that_fails(
    database: Database, store: Store, storing: ImageStoring, ann: Caller, moment: str, error: Exception
) -> None:
    setattr(store, moment, failing(error))
    with pytest.raises(type(error)):
        import_image(database, store, storing, ann)
    assert store.guid_written
    assert left(database, store) == []


def test_a_store_that_is_gone_is_left_to_recovery(
    database: Database, store: Store, storing: ImageStoring, ann: Caller
) -> None:
    store.after = store.deleting = failing(StorageUnavailableError("away"))
    with pytest.raises(StorageUnavailableError):
        import_image(database, store, storing, ann)
    assert left(database, store) == [store.guid_written] * 2  # the bytes, and their deletion
    store.deleting = nothing
    Recovery(database, store, storing, lease=LEASE).run()
    assert left(database, store) == []


def test_recovery_deletes_what_an_import_has_left(database: Database, store: Store, storing: ImageStoring) -> None:
    dead, alive = new_guid(), new_guid()
    for guid, lifetime in ((dead, -LEASE), (alive, LEASE)):
        store.write(guid, b"bytes")
        record(database, guid, lifetime)
    Recovery(database, store, storing, lease=LEASE).run()
    assert left(database, store) == [alive] * 2


def record(database: Database, guid: str, lifetime: timedelta) -> None:
    expires_at = datetime.now(UTC) + lifetime
    in_transaction(database, lambda context: PendingImportRepository(context).insert(guid, expires_at))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_import_that_outlives_its_time_is_discarded(
    database: Database, store: Store, storing: ImageStoring, ann: Caller, moment: str
) -> None:
    recovery = Recovery(database, store, storing, lease=LEASE)
    setattr(store, moment, recovery.run)
    with pytest.raises(StorageUnavailableError, match="longer than 0 s"):
        import_image(database, store, storing, ann, longest_write=timedelta(0))
    assert left(database, store) == []


def test_an_image_whose_commit_was_not_answered_is_kept(
    database: Database, store: Store, storing: ImageStoring, ann: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_answer(database: Database, work: Callable[[DatabaseContext], Image | None]) -> Image | None:
        result = in_transaction(database, work)
        if isinstance(result, Image):
            raise DBConnectionError("The database is unavailable.")
        return result

    monkeypatch.setattr(importer, "in_transaction", without_answer)
    with pytest.raises(DBConnectionError):
        import_image(database, store, storing, ann)
    with database.reading() as context:
        image = ImageRepository(context).get(store.guid_written, ann)
    assert left(database, store) == [image.guid] * 2  # the bytes, and the request id
    with store.open(image.guid) as reader:
        assert reader.size == image.size_bytes


def test_a_user_who_is_removed_meanwhile(database: Database, store: Store, storing: ImageStoring, ann: Caller) -> None:
    def remove() -> None:
        in_transaction(database, lambda context: context.execute("DELETE FROM users", {}))

    store.before = remove
    with pytest.raises(CredentialsInvalidError):
        import_image(database, store, storing, ann)
    assert left(database, store) == []


def test_a_sender_that_fails_leaves_nothing(
    database: Database, store: Store, storing: ImageStoring, ann: Caller
) -> None:
    def pieces() -> Iterator[bytes]:
        yield encode("png")[:50]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        ImageImporter(database, store, storing, max_bytes=100_000).import_image(ImageImport(), pieces(), ann)
    assert left(database, store) == []


def test_a_temporary_folder_that_is_full(
    database: Database, store: Store, storing: ImageStoring, ann: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A device on which every write fails for want of space.
    monkeypatch.setattr("tempfile.TemporaryFile", partial(open, "/dev/full", "w+b"))
    with pytest.raises(StorageFullError):
        import_image(database, store, storing, ann)
    assert left(database, store) == []


def test_without_a_usable_temporary_folder(
    database: Database, store: Store, storing: ImageStoring, ann: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc/no-such-folder")
    with pytest.raises(StorageUnavailableError):
        import_image(database, store, storing, ann)
    assert left(database, store) == []


@pytest.mark.parametrize("size", [0, 100_001])
def test_the_number_of_bytes(database: Database, store: Store, storing: ImageStoring, ann: Caller, size: int) -> None:
    pieces = iter([bytes(50_000)] * (size // 50_000) + [b"x"] * (size % 50_000))
    with pytest.raises(InvalidFieldError) as caught:
        ImageImporter(database, store, storing, max_bytes=100_000).import_image(ImageImport(), pieces, ann)
    assert [violation.field for violation in caught.value.violations] == ["data"]
    assert next(pieces, None) is None
