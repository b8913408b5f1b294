"""Renditions: requested by many, made once, and made again or deleted where they must be."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image as Pillow

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    ContentDamagedError,
    ContentUnreadableError,
    DBConnectionError,
    ImageNotFoundError,
    OffsetOutOfRangeError,
    PixyProxyException,
    StorageFullError,
    StorageUnavailableError,
    TooBusyError,
)
from pixyproxy.core.fields import new_guid
from pixyproxy.core.local_signal import LocalSignal
from pixyproxy.core.models import Caller, ContentRequest, Image, Thumbnails, ThumbnailsRequest
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.deletions import DeletionRepository
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.renditions import PLACEHOLDER, Rendition, RenditionRepository, RenditionState
from pixyproxy.data.stores.image_store import ContentReader, content_path
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.data.transactions import in_transaction
from pixyproxy.generation.rendering import decode_small, placeholder_of
from pixyproxy.service.creation.recovery import Recovery
from pixyproxy.service.creation.storing import ImageStoring
from pixyproxy.service.image_copying import CopyOutcome, ImageCopying
from pixyproxy.service.page_tokens import PageTokens, new_page_token_key
from pixyproxy.service.public_images import PublicImageService
from pixyproxy.service.renditions.placeholders import take_step
from pixyproxy.service.renditions.requesting import RenditionRequests
from pixyproxy.service.renditions.thumbnails import ThumbnailReader
from pixyproxy.service.renditions.worker import RenditionWorker
from tests.contract.records import add_image
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from typing_extensions import Buffer

LONG = 30.0
LEASE = timedelta(seconds=15)
NOW = CallScope(0.0)


def picture(colour: str = "red", size: tuple[int, int] = (600, 400)) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


class CountingStore(LocalImageStore):
    """Counts the renditions that are written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.written: list[tuple[str, int]] = []

    def write_rendition(self, guid: str, edge: int, data: Buffer) -> None:
        self.written.append((guid, edge))
        super().write_rendition(guid, edge, data)


@dataclass
class Site:
    """A database, a store, and what requests and makes renditions."""

    database: Database
    store: CountingStore
    author: Caller

    def __post_init__(self) -> None:
        self.signal = LocalSignal()
        self.storing = ImageStoring(self.database, self.store, lease=LEASE)
        self.recovery = Recovery(self.database, self.store, self.storing, lease=LEASE)

    def add(self, data: bytes | None = None) -> Image:
        data = picture() if data is None else data
        image = add_image(
            self.database, self.author, guid=new_guid(), size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
        )
        self.store.write(image.guid, data)
        return image

    def requests(self, longest_wait: float = LONG) -> RenditionRequests:
        return RenditionRequests(self.database, on_request=self.signal.send, longest_wait=longest_wait)

    def service(self, requests: RenditionRequests) -> PublicImageService:
        return PublicImageService(self.database, self.store, PageTokens(new_page_token_key()), requests)

    def worker(self, owner: str = "worker") -> RenditionWorker:
        return RenditionWorker(self.database, self.store, owner=owner, requested=self.signal)

    @contextmanager
    def serving(self, workers: int = 1) -> Iterator[PublicImageService]:
        with ExitStack() as stack:
            requests = stack.enter_context(closing(self.requests()))
            requests.start()
            for number in range(workers):
                stack.enter_context(closing(self.worker(f"worker {number}"))).start()
            yield self.service(requests)

    def read(self, service: PublicImageService, image: Image, edge: int | None = 256) -> bytes:
        with service.get_image_file(
            ContentRequest(guid=image.guid, rendition=edge), self.author, CallScope(LONG)
        ) as content:
            data = b"".join(content.chunks())
            assert (content.image.size_bytes, content.image.sha256) == (len(data), hashlib.sha256(data).hexdigest())
            return data

    def rows(self, image: Image) -> list[Rendition]:
        with self.database.reading() as context:
            return RenditionRepository(context).get_of_image(image.guid)

    def request(self, image: Image, edge: int = 256) -> None:
        in_transaction(
            self.database,
            lambda context: RenditionRepository(context).request([image.guid], edge),
        )

    def claim(self, image: Image, owner: str, lease: timedelta) -> None:
        in_transaction(self.database, lambda context: RenditionRepository(context).claim(image.guid, owner, lease))

    def delete(self, image: Image) -> None:
        """Delete an image as DeleteImage does."""

        def delete(context: DatabaseContext) -> None:
            ImageRepository(context).delete(image.id)
            DeletionRepository(context).insert(image.guid)

        in_transaction(self.database, delete)
        self.storing.delete_bytes(image.guid)

    def files(self) -> set[str]:
        folder = self.store._folder
        return {path.name for path in folder.rglob("*") if path.is_file()}

    def deletions(self) -> int:
        with self.database.reading() as context:
            return len(DeletionRepository(context).get_next(10, after=0))


@pytest.fixture
def site(database: Database, tmp_path: Path, alice: Caller) -> Site:
    return Site(database, CountingStore(tmp_path / "images"), alice)


# --- Made once -------------------------------------------------------------------------------------------------------


def test_a_hundred_callers_on_two_servers_get_what_is_made_once(site: Site) -> None:
    image = site.add()
    with ExitStack() as stack:
        services = []
        for _ in range(2):
            requests = stack.enter_context(closing(site.requests()))
            requests.start()
            services.append(site.service(requests))
        for number in range(2):
            stack.enter_context(closing(site.worker(f"worker {number}"))).start()
        start = threading.Barrier(20)

        def read(number: int) -> bytes:
            if number < 20:
                start.wait(LONG)
            return site.read(services[number % 2], image)

        with ThreadPoolExecutor(20) as pool:
            data = set(pool.map(read, range(100)))
    assert len(data) == 1
    assert site.store.written == [(image.guid, 256)]


def test_the_second_call_reads_what_the_first_has_had_made(site: Site) -> None:
    image = site.add()
    with site.serving() as service:
        first = {edge: site.read(service, image, edge) for edge in (256, 512, 1024, 2048)}
    assert len(site.store.written) == 4
    # Nobody makes anything any more.
    service = site.service(site.requests(longest_wait=0))
    assert {edge: site.read(service, image, edge) for edge in first} == first
    assert site.read(service, image, None) == picture()


def test_offsets_limits_and_what_the_caller_has(site: Site) -> None:
    image = site.add()
    with site.serving() as service:
        data = site.read(service, image)
        sha256 = hashlib.sha256(data).hexdigest()

        def ask(**fields: object) -> bytes | None:
            request = ContentRequest(guid=image.guid, rendition=256, **fields)
            with service.get_image_file(request, site.author, CallScope(LONG)) as content:
                assert (content.rendition, content.image.width, content.image.height) == (256, 256, 171)
                assert content.image.content_type == "image/webp"
                return b"".join(content.chunks()) if content.is_modified else None

        assert ask(read_offset=10, read_limit=20) == data[10:30]
        assert ask(read_offset=len(data)) == b""
        assert ask(if_none_match=sha256.upper()) is None
        assert ask(if_none_match=image.sha256) == data
        with pytest.raises(OffsetOutOfRangeError, match=f"{len(data):,}"):
            ask(read_offset=len(data) + 1)


def test_what_is_planned_is_made_and_preferred_when_somebody_waits(site: Site) -> None:
    image, other = site.add(), site.add(picture("blue"))
    storing = ImageStoring(site.database, site.store, lease=LEASE, planned_renditions=(256, 512))
    for each in (image, other):
        in_transaction(site.database, lambda context, each=each: storing.plan_renditions(context, each.guid))  # type: ignore[misc]
    service = site.service(site.requests(longest_wait=0))
    with pytest.raises(TooBusyError):
        site.read(service, other)

    worker = site.worker()
    assert worker.work() == 0
    assert sorted(site.store.written) == [(other.guid, 256), (other.guid, 512)]
    assert worker.work() > 0
    assert len(site.store.written) == 4
    assert worker.work() == 1.0
    assert len(site.store.written) == 4


def test_a_long_queue_keeps_neither_the_first_nor_the_last_waiting(site: Site) -> None:
    images = [site.add() for _ in range(8)]
    for image in images:
        site.request(image)

    worker = site.worker()
    for _ in range(4):
        worker.work()

    first, second, *_, last_but_one, last = (image.guid for image in images)
    assert [guid for guid, _ in site.store.written] == [first, last, second, last_but_one]


# --- Nobody waits for ever -------------------------------------------------------------------------------------------


def test_a_call_ends_with_its_deadline_or_when_its_caller_leaves(site: Site) -> None:
    image = site.add()
    with closing(site.requests()) as requests:
        requests.start()
        with pytest.raises(TooBusyError):
            requests.get(image.guid, 256, CallScope(0.05))
        leaving = CallScope()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(requests.get, image.guid, 256, leaving)
            wait_until(lambda: requests._waits, LONG, "the call to wait")
            leaving.leave()
            with pytest.raises(TooBusyError):
                waiting.result(LONG)
        assert not requests._waits


def test_the_longest_wait(site: Site) -> None:
    image = site.add()
    with closing(site.requests(longest_wait=0.05)) as requests:
        requests.start()
        with pytest.raises(TooBusyError):
            requests.get(image.guid, 256, CallScope())


def test_many_who_wait_leave_half_of_the_time_to_others(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    image, times = site.add(), list[float]()

    def slowly(_: RenditionRepository, ids: set[int]) -> set[int]:
        times.append(time.monotonic())
        time.sleep(0.1)
        return ids

    monkeypatch.setattr(RenditionRepository, "get_pending", slowly)
    with closing(site.requests(longest_wait=1.0)) as requests:
        requests.start()
        with pytest.raises(TooBusyError):
            requests.get(image.guid, 256, CallScope())

    assert min(later - before for before, later in itertools.pairwise(times)) >= 0.2


# --- Failures --------------------------------------------------------------------------------------------------------


def _flip(site: Site, image: Image) -> None:
    path = site.store._folder / image.guid[:2] / image.guid[2:4] / image.guid
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def _remove(site: Site, image: Image) -> None:
    site.store.delete(image.guid)


def _cut(site: Site, image: Image) -> None:
    site.store.write(image.guid, picture()[:-10])


def _make_due(site: Site) -> None:
    in_transaction(site.database, lambda context: context.execute("UPDATE renditions SET due_at = updated_at", {}))


@pytest.mark.parametrize("damage", [_flip, _remove, _cut])
def test_a_damaged_original_is_an_error_until_it_is_repaired(site: Site, damage: Callable[[Site, Image], None]) -> None:
    image = site.add()
    damage(site, image)
    with site.serving() as service:
        for _ in range(2):
            with pytest.raises(ContentDamagedError):
                site.read(service, image)
    assert site.store.written == []

    site.store.write(image.guid, picture())
    _make_due(site)
    with site.serving() as service:
        assert Pillow.open(io.BytesIO(site.read(service, image))).size == (256, 171)


def test_bytes_that_cannot_be_decoded(site: Site) -> None:
    image = site.add(b"no picture at all")
    with site.serving() as service, pytest.raises(ContentDamagedError, match="decoded"):
        site.read(service, image)


@pytest.mark.parametrize("kind", ["missing", "cut"])
def test_lost_bytes_of_a_rendition_are_made_again(site: Site, kind: str) -> None:
    image = site.add()
    with site.serving() as service:
        data = site.read(service, image)
        if kind == "missing":
            site.store.delete_rendition(image.guid, 256)
        else:
            LocalImageStore.write_rendition(site.store, image.guid, 256, data[:-1])
        assert site.read(service, image) == data


def test_flipped_bytes_of_a_rendition_end_the_call_and_are_made_again(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    image = site.add()
    with site.serving() as service:
        data = site.read(service, image)
        LocalImageStore.write_rendition(site.store, image.guid, 256, data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ContentDamagedError):
            site.read(service, image)
        assert f"Image {image.guid}, rendition 256: " in caplog.text
        assert site.read(service, image) == data


def test_bytes_of_a_rendition_that_cannot_be_read_are_made_again(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image, opened = site.add(), os.open
    with site.serving() as service:
        data = site.read(service, image)

        def open_for_writing(path: Path, flags: int, *mode: int) -> int:
            # Each read then fails, as that of a broken disk.
            return opened(path, os.O_WRONLY if path.suffix == ".webp" else flags, *mode)

        with monkeypatch.context() as failing:
            failing.setattr(os, "open", open_for_writing)
            with pytest.raises(ContentUnreadableError):
                site.read(service, image)
        assert f"Image {image.guid}, rendition 256: " in caplog.text
        assert site.read(service, image) == data
    assert site.store.written == [(image.guid, 256)] * 2


def test_a_full_store(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    image = site.add()

    def is_full(*_: object) -> None:
        raise StorageFullError("There is no room left for images.")

    monkeypatch.setattr(site.store, "write_rendition", is_full)
    with site.serving() as service, pytest.raises(StorageFullError):
        site.read(service, image)


def test_an_unforeseen_failure_is_internal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    image = site.add()
    monkeypatch.setattr(site.store, "write_rendition", lambda *_: 1 / 0)
    with site.serving() as service, pytest.raises(PixyProxyException) as caught:
        site.read(service, image)
    assert type(caught.value) is PixyProxyException


# --- Workers that die ------------------------------------------------------------------------------------------------


def test_another_worker_makes_what_a_dead_one_has_claimed(site: Site) -> None:
    image = site.add()
    site.request(image)
    site.claim(image, "dead", timedelta(seconds=0.2))
    with site.serving() as service:
        assert site.read(service, image)


def test_the_replacement_of_a_dead_worker_does_not_wait_for_its_lease(site: Site) -> None:
    image = site.add()
    site.request(image)
    site.claim(image, "worker 0", timedelta(hours=1))
    with site.serving() as service:
        assert site.read(service, image)


def test_an_image_that_kills_its_workers_is_left_alone(site: Site) -> None:
    image = site.add()
    site.request(image)
    for _ in range(3):
        site.claim(image, "dead", timedelta(seconds=-1))
    site.worker().work()
    assert site.store.written == []
    [row] = site.rows(image)
    assert row.state is RenditionState.FAILED
    assert row.due_at - row.updated_at > timedelta(minutes=30)
    with pytest.raises(PixyProxyException, match="cannot be made"):
        site.requests().get(image.guid, 256, NOW)


# --- Deleted images --------------------------------------------------------------------------------------------------


def test_renditions_are_deleted_with_their_image(site: Site) -> None:
    image, other = site.add(), site.add(picture("blue"))
    with site.serving() as service:
        for edge in (256, 512):
            site.read(service, image, edge)
        site.read(service, other)
        site.delete(image)
        assert site.files() == {other.guid, f"{other.guid}.256.webp"}
        assert site.rows(image) == []
        assert site.deletions() == 0
        with pytest.raises(ImageNotFoundError):
            site.read(service, image)


def test_a_rendition_that_is_made_while_its_image_is_deleted_is_deleted_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = site.add()
    site.request(image)
    write = LocalImageStore.write_rendition

    def write_late(*args: object) -> None:
        site.delete(image)
        write(site.store, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(site.store, "write_rendition", write_late)
    site.worker().work()
    assert site.files() == {f"{image.guid}.256.webp"}
    assert site.deletions() == 1
    site.recovery.run()
    assert site.files() == set()
    assert (site.rows(image), site.deletions()) == ([], 0)


@pytest.mark.parametrize("method", ["claim", "complete"])
def test_a_rendition_is_made_as_soon_as_the_database_is_back(
    site: Site, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """However often it went away: its worker lives, so that its lease does not matter, nor its attempts."""
    image = site.add()
    work, failures = getattr(RenditionRepository, method), [DBConnectionError("away")] * 5

    def fail(*args: object, **options: object) -> object:
        done = work(*args, **options)
        if not failures:
            return done
        repository = args[0]
        assert isinstance(repository, RenditionRepository)
        context = repository._context
        if method == "claim":
            context.commit()  # Only the answer is lost.
        raise failures.pop()

    monkeypatch.setattr(RenditionRepository, method, fail)
    monkeypatch.setattr("pixyproxy.data.transactions._ATTEMPTS", 1)
    monkeypatch.setattr("pixyproxy.service.renditions.worker._POLL_SECONDS", 0.02)
    with site.serving() as service:
        started = time.monotonic()
        assert site.read(service, image)
    assert not failures
    assert time.monotonic() - started < LONG / 2


def test_a_worker_that_dies_between_the_bytes_and_the_row_leaves_nothing_of_a_deleted_image(site: Site) -> None:
    image = site.add()
    site.request(image)
    site.claim(image, "dead", timedelta(seconds=0.3))
    site.store.write_rendition(image.guid, 256, b"bytes")
    site.delete(image)
    assert site.deletions() == 1
    wait_until(lambda: not site.rows(image)[0].is_leased, LONG, "the lease to end")
    site.recovery.run()
    assert site.files() == set()
    assert site.rows(image) == []


def test_the_worker_after_the_dead_one_leaves_nothing_of_a_deleted_image_either(site: Site) -> None:
    image = site.add()
    site.request(image)
    site.claim(image, "dead", timedelta(hours=1))
    site.store.write_rendition(image.guid, 256, b"bytes")
    site.delete(image)
    in_transaction(site.database, lambda context: RenditionRepository(context).give_back("dead", was_attempt=True))
    site.worker().work()
    assert site.files() == set()
    site.recovery.run()
    assert (site.rows(image), site.deletions()) == ([], 0)


def test_an_image_that_is_deleted_just_before_its_bytes_are_read_is_not_damaged(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = site.add()
    site.request(image)

    def open_late(guid: str) -> ContentReader:
        site.delete(image)
        return LocalImageStore.open(site.store, guid)

    monkeypatch.setattr(site.store, "open", open_late)
    site.worker().work()
    assert site.rows(image) == []


def test_a_worker_that_is_slower_than_its_lease_deletes_what_it_made_of_a_deleted_image(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = site.add()
    site.request(image)
    write = LocalImageStore.write_rendition

    def write_late(*args: object) -> None:
        in_transaction(
            site.database, lambda context: RenditionRepository(context).give_back("worker", was_attempt=True)
        )
        site.delete(image)
        write(site.store, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(site.store, "write_rendition", write_late)
    site.worker().work()
    assert site.files() == set()
    assert (site.rows(image), site.deletions()) == ([], 0)


def test_a_call_whose_image_is_deleted_while_it_waits(site: Site) -> None:
    image = site.add()
    with closing(site.requests()) as requests, ThreadPoolExecutor(1) as pool:
        requests.start()
        waiting = pool.submit(requests.get, image.guid, 256, CallScope())
        wait_until(lambda: requests._waits, LONG, "the call to wait")
        site.delete(image)
        with pytest.raises(ImageNotFoundError):
            waiting.result(LONG)


def test_a_call_whose_image_is_deleted_is_told_so_even_if_another_one_requests_the_rendition_again(site: Site) -> None:
    image = site.add()
    with closing(site.requests()) as requests, ThreadPoolExecutor(1) as pool:
        requests.start()
        waiting = pool.submit(requests.get, image.guid, 256, CallScope())
        wait_until(lambda: requests._waits, LONG, "the call to wait")

        def drop_and_request(context: DatabaseContext) -> None:
            renditions = RenditionRepository(context)
            renditions.delete([row.id for row in renditions.get_of_image(image.guid)])
            renditions.request([image.guid], 256)

        in_transaction(site.database, drop_and_request)
        with pytest.raises(ImageNotFoundError):
            waiting.result(LONG)


def test_a_rendition_that_is_requested_of_an_image_that_does_not_exist_any_more(site: Site) -> None:
    image = site.add()
    site.delete(image)
    site.request(image)
    site.worker().work()
    assert site.rows(image) == []


def test_what_an_earlier_release_leaves_of_a_deleted_image_is_swept(site: Site) -> None:
    image, kept = site.add(), site.add(picture("blue"))
    with site.serving() as service:
        for each in (image, kept):
            site.read(service, each)
    in_transaction(site.database, lambda context: ImageRepository(context).delete(image.id))
    site.store.delete(image.guid)
    site.recovery.run()
    assert site.files() == {kept.guid, f"{kept.guid}.256.webp"}
    assert (site.rows(image), site.deletions(), len(site.rows(kept))) == ([], 0, 1)


def test_copying_leaves_renditions_to_be_made_again_and_deletes_them_in_the_source(site: Site, tmp_path: Path) -> None:
    image = site.add()
    with site.serving() as service:
        data = site.read(service, image)
    target = CountingStore(tmp_path / "target")
    copying = ImageCopying(site.database, site.store, target, deletes_source=True)
    assert [result.outcome for result in copying.run()] == [CopyOutcome.COPIED]
    assert site.files() == set()
    moved = Site(site.database, target, site.author)
    with moved.serving() as service:
        assert moved.read(service, image) == data
    assert moved.files() >= {image.guid, f"{image.guid}.256.webp"}


def test_copying_goes_on_after_a_file_that_cannot_be_opened(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, good = site.add(), site.add()
    open_file = os.open

    def fail(path: Path, *arguments: int) -> int:
        if path == site.store._folder / content_path(broken.guid):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return open_file(path, *arguments)

    monkeypatch.setattr(os, "open", fail)
    copying = ImageCopying(site.database, site.store, LocalImageStore(tmp_path / "target"), deletes_source=False)
    outcomes = {result.guid: result.outcome for result in copying.run()}
    assert outcomes == {broken.guid: CopyOutcome.FAILED, good.guid: CopyOutcome.COPIED}


# --- Thumbnails ------------------------------------------------------------------------------------------------------


def thumbnails(service: PublicImageService, caller: Caller | None, *guids: str, edge: int = 256) -> Thumbnails:
    return service.get_thumbnails(ThumbnailsRequest(guids=guids, rendition=edge), caller, CallScope(LONG))


def answered(found: Thumbnails) -> list[tuple[str, str]]:
    """The guids in order, each with the kind of its error."""
    return [(one.guid, type(one.error).__name__ if one.error else "") for one in found.thumbnails]


def test_thumbnails_come_in_the_order_asked_each_with_an_error_of_its_own(site: Site) -> None:
    first, second = site.add(), site.add(picture("blue", (400, 600)))
    broken, missing = site.add(b"no picture"), new_guid()
    with site.serving() as service:
        asked = (second.guid, missing, first.guid.upper(), broken.guid, second.guid)
        found = thumbnails(service, site.author, *asked)
        expected = ["", "ImageNotFoundError", "", "ContentDamagedError", ""]
        assert answered(found) == list(zip(map(str.lower, asked), expected, strict=True))
        assert [(one.width, one.height) for one in found.thumbnails] == [
            (171, 256),
            (0, 0),
            (256, 171),
            (0, 0),
            (171, 256),
        ]
        assert found.thumbnails[0].data == found.thumbnails[4].data == site.read(service, second)
        assert found.next_guids == []
        assert answered(thumbnails(service, None, first.guid)) == [(first.guid, "ImageNotFoundError")]
        assert thumbnails(service, None) == Thumbnails([], [])
        [large] = thumbnails(service, site.author, first.guid, edge=512).thumbnails
        assert large.width == 512


def test_thumbnails_beyond_the_limit_are_left_to_the_next_call(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [site.add(picture(colour)) for colour in ("red", "blue", "green", "white")]
    with site.serving() as service:
        sizes = [len(site.read(service, image)) for image in images]
        room = sizes[0] + sizes[1] + 96 * 4
        monkeypatch.setattr("pixyproxy.service.renditions.thumbnails.MAX_PAGE_BYTES", room)
        rest = [image.guid for image in images]
        calls = 0
        got: list[str] = []
        while rest:
            found = thumbnails(service, site.author, *rest)
            got += [one.guid for one in found.thumbnails]
            rest = found.next_guids
            calls += 1
        assert sorted(got) == sorted(image.guid for image in images)
        assert calls > 1


def test_those_that_are_not_made_in_time_are_left_to_the_next_call(site: Site) -> None:
    made, late = site.add(), site.add(picture("blue"))
    with site.serving() as service:
        site.read(service, made)
    with closing(site.requests()) as requests:
        requests.start()
        reader = ThumbnailReader(site.database, site.store, requests, longest_wait=0.05)
        found = reader.read(ThumbnailsRequest(guids=(late.guid, made.guid)), site.author, CallScope(LONG))
        assert (answered(found), found.next_guids) == ([(made.guid, "")], [late.guid])
        # There is nothing else to return: the call waits for longer.
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(reader.read, ThumbnailsRequest(guids=(late.guid,)), site.author, CallScope(LONG))
            wait_until(lambda: requests._waits, LONG, "the call to wait")
            site.worker().work()
            assert answered(waiting.result(LONG)) == [(late.guid, "")]


def test_a_call_that_gets_nothing_in_time(site: Site) -> None:
    image = site.add()
    with closing(site.requests()) as requests:
        requests.start()
        reader = ThumbnailReader(site.database, site.store, requests, longest_wait=0.01)
        with pytest.raises(TooBusyError):
            reader.read(ThumbnailsRequest(guids=(image.guid,)), site.author, CallScope(0.1))


def test_lost_bytes_of_thumbnails_are_made_again(site: Site) -> None:
    images = [site.add(picture(colour)) for colour in ("red", "blue", "green")]
    with site.serving() as service:
        before = {image.guid: site.read(service, image) for image in images}
        site.store.delete_rendition(images[0].guid, 256)
        LocalImageStore.write_rendition(site.store, images[1].guid, 256, bytes(len(before[images[1].guid])))
        rest = [image.guid for image in images]
        after: dict[str, bytes] = {}
        while rest:
            found = thumbnails(service, site.author, *rest)
            after |= {one.guid: one.data for one in found.thumbnails}
            rest = found.next_guids
        assert after == before
        for image in images:
            site.store.delete_rendition(image.guid, 256)
        assert thumbnails(service, site.author, *before).thumbnails[0].data == before[images[0].guid]


# --- Placeholders ----------------------------------------------------------------------------------------------------


def plan_placeholder(site: Site, image: Image) -> None:
    storing = ImageStoring(
        site.database, site.store, lease=timedelta(seconds=15), planned_renditions=(PLACEHOLDER, 256)
    )
    in_transaction(site.database, lambda context: storing.plan_renditions(context, image.guid))


def placeholder(site: Site, image: Image) -> bytes | None:
    with site.database.reading() as context:
        return ImageRepository(context).get_any(image.guid).placeholder


def test_a_placeholder_is_computed_with_the_renditions_of_an_image(site: Site) -> None:
    image = site.add()
    plan_placeholder(site, image)
    assert placeholder(site, image) is None
    site.worker().work()
    expected = placeholder_of(decode_small(picture(), 256))
    assert placeholder(site, image) == expected
    assert [(row.edge, row.state) for row in site.rows(image)] == [(256, RenditionState.MADE)]


def test_an_image_that_cannot_be_decoded_has_no_placeholder_and_is_not_tried_for_ever(site: Site) -> None:
    image = site.add(b"no picture")
    assert take_step(site.database, timedelta())
    site.worker().work()
    [row] = site.rows(image)
    assert (row.edge, row.state, placeholder(site, image)) == (PLACEHOLDER, RenditionState.FAILED, None)
    assert not take_step(site.database, timedelta())
    assert site.worker().work() == 1.0


def test_a_placeholder_is_computed_when_the_store_is_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    image, worker = site.add(), site.worker()
    plan_placeholder(site, image)

    def be_away(*_: object) -> None:
        raise StorageUnavailableError("The image store does not answer.")

    with monkeypatch.context() as outage:
        outage.setattr(site.store, "open", be_away)
        for _ in range(5):
            worker.work()
            assert worker.work() == 1.0  # Not at once again.
            _make_due(site)
    worker.work()
    assert placeholder(site, image) is not None
    assert [(row.edge, row.state) for row in site.rows(image)] == [(256, RenditionState.MADE)]


def test_a_requested_rendition_fails_while_the_store_is_away_and_a_planned_one_does_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = site.add()
    plan_placeholder(site, image)
    with closing(site.requests(longest_wait=0)) as requests, pytest.raises(TooBusyError):
        requests.get(image.guid, 256, NOW)

    def be_away(*_: object) -> None:
        raise StorageUnavailableError("The image store does not answer.")

    monkeypatch.setattr(site.store, "open", be_away)
    site.worker().work()
    states = {row.edge: row.state for row in site.rows(image)}
    assert states == {PLACEHOLDER: RenditionState.PLANNED, 256: RenditionState.FAILED}


def test_images_of_earlier_releases_get_placeholders_each_once(site: Site) -> None:
    images = [site.add() for _ in range(120)]
    plan_placeholder(site, images[-1])
    with ThreadPoolExecutor(4) as pool:
        steps = list(pool.map(lambda _: take_step(site.database, timedelta()), range(4)))
    assert any(steps)
    while take_step(site.database, timedelta()):
        pass
    # Enough is planned for now.
    assert sum(bool(site.rows(image)) for image in images) < 120
    worker = site.worker()
    while worker.work() != 1.0 or take_step(site.database, timedelta()):
        pass
    assert {placeholder(site, image) for image in images} == {placeholder_of(decode_small(picture(), 256))}
    assert [row.edge for image in images for row in site.rows(image)] == [256]
    assert not take_step(site.database, timedelta())


def test_new_images_are_left_to_those_who_commit_them(site: Site) -> None:
    data = picture()
    image = add_image(
        site.database,
        site.author,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        created_at=datetime.now(UTC),
    )
    assert not take_step(site.database)
    assert site.rows(image) == []
