"""Inputs of edits: pinned when they are recorded, read and compared when they are submitted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixyproxy.core.call import CallScope
from pixyproxy.core.error_records import from_record
from pixyproxy.core.exceptions import (
    ContentDamagedError,
    DBConnectionError,
    ImageNotFoundError,
    InvalidFieldError,
    ProviderUnavailableError,
    RequestIdReusedError,
    StorageUnavailableError,
)
from pixyproxy.core.fields import Origin, Visibility, new_guid
from pixyproxy.core.models import Caller, ImageCreation, ImageDetailCreate, ImageInput
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.stores.image_store import ContentReader
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.generation.circuit_breaker import FAILURES_TO_OPEN, FIRST_PAUSE
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, OnPartial, ignore_partial
from tests.support.waiting import wait_until
from tests.unit.service.conftest import make_caller
from tests.unit.service.creation.parts import COST, FakeGenerator, Server, make_detail
from tests.unit.service.creation.test_worker import open_circuit

TIMEOUT = 20.0
_CHUNK = 1000


class ReadingGenerator(FakeGenerator):
    """Reads all inputs and the mask by their sizes, as a provider's client does, and then generates.

    Attributes:
        received: of each request, name, content type and bytes of its inputs, and of its mask.
        on_read: is called before each read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received: list[list[tuple[str, str, bytes]]] = []
        self.on_read: Callable[[], object] = lambda: None

    def generate(self, request: GenerationRequest, on_partial: OnPartial = ignore_partial) -> GeneratedImage:
        files = [*request.inputs, *([request.mask] if request.mask else [])]
        received = []
        for file in files:
            data = b""
            while chunk := self._read(file):
                data += chunk
                if len(data) == file.size:
                    break
            assert len(data) == file.size
            received.append((file.name, file.content_type, data))
        self.received.append(received)
        assert all(file.read(_CHUNK) == b"" for file in files)
        return super().generate(request, on_partial)

    def _read(self, file: Any) -> bytes:
        self.on_read()
        chunk: bytes = file.read(_CHUNK)
        return chunk


@pytest.fixture
def generator() -> ReadingGenerator:
    return ReadingGenerator()


class CountingStore(LocalImageStore):
    """Counts its open readers, and may fail to open."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.open_readers: list[ContentReader] = []
        self.before_open: Callable[[str], object] = lambda _: None

    def open(self, guid: str) -> ContentReader:
        self.before_open(guid)
        reader = super().open(guid)
        self.open_readers.append(reader)
        close = reader.close

        def closed_once() -> None:
            self.open_readers.remove(reader)
            close()

        reader.close = closed_once  # type: ignore[method-assign]
        return reader


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path / "images")


def add(database: Database, store: LocalImageStore, author: Caller, data: bytes, **values: Any) -> str:
    """Store an image."""
    detail = make_detail(new_guid(), data).model_copy(update=values)
    store.write(detail.guid, data)
    with database.transaction() as context:
        ImageRepository(context).insert(detail, author.user_id)
        context.commit()
    return detail.guid


def edit(*guids: str, mask: str | None = None, request_id: str | None = None, prompt: str = "a hat") -> ImageCreation:
    return ImageCreation(
        detail=ImageDetailCreate(prompt=prompt),
        request_id=request_id,
        inputs=tuple(ImageInput(guid=guid) for guid in guids),
        mask=None if mask is None else ImageInput(guid=mask),
    )


def delete(database: Database, guid: str) -> None:
    with database.transaction() as context:
        images = ImageRepository(context)
        images.delete(images.get_any(guid).id)
        context.commit()


def last_row(database: Database) -> dict[str, Any]:
    with database.reading() as context:
        return context.fetch_all("SELECT request, state, error, attempts FROM generations ORDER BY id", {})[-1]


def failure_of(database: Database, server: Server, creation: ImageCreation, author: Caller) -> Any:
    """Record a request, change nothing, let it be submitted, and return the error that it failed with."""
    server.creator.start(creation, author)
    return wait_for_failure(database, server)


def wait_for_failure(database: Database, server: Server) -> Any:
    with server.running():
        wait_until(lambda: last_row(database)["state"] == "failed", TIMEOUT, "the failure")
    return from_record(last_row(database)["error"])


# --- Recorded --------------------------------------------------------------------------------------------------------


def test_inputs_are_pinned_in_the_record(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller
) -> None:
    first, second = add(database, store, alice, b"first"), add(database, store, alice, b"second")
    server = Server(database, store, generator)
    server.creator.start(edit(first, second, first, mask=second), alice)
    recorded = json.loads(last_row(database)["request"])
    sums = {guid: make_detail(guid, data).sha256 for guid, data in ((first, b"first"), (second, b"second"))}
    assert recorded["inputs"] == [{"guid": guid, "sha256": sums[guid]} for guid in (first, second, first)]
    assert recorded["mask"] == {"guid": second, "sha256": sums[second]}


def test_a_request_without_inputs_is_recorded_as_before(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller
) -> None:
    Server(database, store, generator).creator.start(edit(), alice)
    assert json.loads(last_row(database)["request"]).keys() == {"detail", "options"}


def test_the_fingerprint_is_that_of_the_request_as_it_was_asked(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller
) -> None:
    first, second = add(database, store, alice, b"first"), add(database, store, alice, b"second")
    request_id = new_guid()
    with Server(database, store, generator).running() as server:
        image = server.creator.create(edit(first, mask=second, request_id=request_id), alice, CallScope())
        delete(database, first)
        delete(database, second)
        again = server.creator.create(edit(first, mask=second, request_id=request_id), alice, CallScope())
        assert again.guid == image.guid
        for other in (edit(first), edit(second, mask=first), edit(first, first, mask=second), edit()):
            with pytest.raises(RequestIdReusedError):
                server.creator.create(other.model_copy(update={"request_id": request_id}), alice, CallScope())
    assert len(generator.requests) == 1


def test_sources_are_looked_up_as_the_author_sees_them(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller
) -> None:
    bob = make_caller(database, "bob")
    own, public = add(database, store, alice, b"own"), add(database, store, bob, b"public")
    private = add(database, store, bob, b"private")
    with database.transaction() as context:
        images = ImageRepository(context)
        images.update(images.get_any(public).model_copy(update={"visibility": Visibility.PUBLIC}))
        context.commit()
    creator = Server(database, store, generator).creator
    creator.start(edit(own, public, mask=own), alice)
    for creation, field in ((edit(own, private), "inputs[1]"), (edit(own, mask=private), "mask")):
        with pytest.raises(ImageNotFoundError) as caught:
            creator.start(creation, alice)
        assert (caught.value.guid, caught.value.field) == (private, field)


def test_all_wrong_inputs_are_named(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller
) -> None:
    too_large = 50 * 1024 * 1024
    large = add(database, store, alice, b"large", size_bytes=too_large)
    fits = add(database, store, alice, b"fits", size_bytes=too_large - 1)
    creator = Server(database, store, generator).creator
    with pytest.raises(InvalidFieldError) as caught:
        creator.start(edit(large, fits, large, mask=large), alice)
    assert [violation.field for violation in caught.value.violations] == ["inputs[0]", "inputs[2]", "mask"]
    largest_mask = 4 * 1024 * 1024 - 1
    mask = add(database, store, alice, b"mask", size_bytes=largest_mask)
    creator.start(edit(fits, mask=mask), alice)
    for wrong in ({"size_bytes": largest_mask + 1}, {"content_type": "image/webp"}):
        mask = add(database, store, alice, b"mask", **wrong)
        with pytest.raises(InvalidFieldError) as caught:
            creator.start(edit(mask, mask=mask), alice)
        assert [violation.field for violation in caught.value.violations] == ["mask"]


# --- Submitted -------------------------------------------------------------------------------------------------------


def test_the_generator_reads_what_was_pinned(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller
) -> None:
    first = add(database, store, alice, b"first" * _CHUNK, content_type="image/jpeg")
    second, mask = add(database, store, alice, b"s", content_type="image/webp"), add(database, store, alice, b"m")
    with Server(database, store, generator).running() as server:
        image = server.creator.create(edit(first, second, first), alice, CallScope())
        server.creator.create(edit(first, mask=mask), alice, CallScope())
    assert generator.received == [
        [
            ("inputs-0.jpeg", "image/jpeg", b"first" * _CHUNK),
            ("inputs-1.webp", "image/webp", b"s"),
            ("inputs-2.jpeg", "image/jpeg", b"first" * _CHUNK),
        ],
        [("inputs-0.jpeg", "image/jpeg", b"first" * _CHUNK), ("mask.png", "image/png", b"m")],
    ]
    assert image.source_guids == (first, second, first)
    assert store.open_readers == []


def test_an_edit_is_told_from_a_generation(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller
) -> None:
    source = add(database, store, alice, b"source")
    with Server(database, store, generator).running() as server:
        edited = server.creator.create(edit(source), alice, CallScope())
        generated = server.creator.create(edit(), alice, CallScope())
    assert (generated.origin, generated.cost) == (Origin.GENERATED, COST)
    # Which of its input tokens were an image's is not known.
    assert (edited.origin, edited.cost) == (Origin.EDITED, None)


@pytest.mark.parametrize("number", [0, 1])
def test_a_deleted_input_fails_before_it_is_submitted(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller, number: int
) -> None:
    guids = [add(database, store, alice, b"first"), add(database, store, alice, b"second")]
    server = Server(database, store, generator)
    server.creator.start(edit(*guids), alice)
    delete(database, guids[number])  # Its bytes are still there.
    error = wait_for_failure(database, server)
    assert isinstance(error, ImageNotFoundError)
    assert (error.guid, error.field) == (guids[number], f"inputs[{number}]")
    assert (generator.requests, generator.received) == ([], [])
    assert store.open_readers == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
        lambda path: path.write_bytes(path.read_bytes() + b"!"),
        lambda path: os.truncate(path, 2 * _CHUNK),
        lambda path: os.truncate(path, 0),
        lambda path: path.unlink(),
    ],
    ids=["changed", "longer", "shorter", "empty", "missing"],
)
def test_a_damaged_input_costs_nothing(
    database: Database,
    store: CountingStore,
    generator: ReadingGenerator,
    alice: Caller,
    tmp_path: Path,
    damage: Callable[[Path], object],
) -> None:
    first, second = add(database, store, alice, b"first"), add(database, store, alice, b"second" * _CHUNK)
    damage(tmp_path / "images" / second[0:2] / second[2:4] / second)
    error = failure_of(database, Server(database, store, generator), edit(first, second), alice)
    assert isinstance(error, ContentDamagedError)
    assert error.field == "inputs[1]"
    assert (generator.requests, generator.received) == ([], [])
    assert store.open_readers == []


def test_an_input_that_loses_bytes_while_it_is_read_costs_nothing(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller, tmp_path: Path
) -> None:
    guid = add(database, store, alice, b"first" * _CHUNK)
    path = tmp_path / "images" / guid[0:2] / guid[2:4] / guid
    reads: list[int] = []

    def cut() -> None:
        reads.append(1)
        if len(reads) == 3:
            os.truncate(path, 2 * _CHUNK)

    generator.on_read = cut
    error = failure_of(database, Server(database, store, generator), edit(guid), alice)
    assert isinstance(error, ContentDamagedError)
    assert len(reads) == 3
    assert store.open_readers == []


def test_an_input_that_is_deleted_while_inputs_are_opened_is_named(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller
) -> None:
    first, second = add(database, store, alice, b"first"), add(database, store, alice, b"second")

    def delete_second(guid: str) -> None:
        if guid == second:
            delete(database, second)
            store.delete(second)

    store.before_open = delete_second
    error = failure_of(database, Server(database, store, generator), edit(first, second), alice)
    assert isinstance(error, ImageNotFoundError)
    assert (error.guid, error.field) == (second, "inputs[1]")
    assert store.open_readers == []


def test_an_unavailable_store_costs_nothing(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller
) -> None:
    guid = add(database, store, alice, b"first")

    def fail(_: str) -> None:
        raise StorageUnavailableError("The image store is away.")

    store.before_open = fail
    error = failure_of(database, Server(database, store, generator), edit(guid), alice)
    assert isinstance(error, StorageUnavailableError)
    assert generator.requests == []


def test_an_unavailable_database_is_waited_for(
    database: Database,
    store: CountingStore,
    generator: ReadingGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guid = add(database, store, alice, b"first")
    failures = [DBConnectionError("away"), DBConnectionError("away")]
    find_any = ImageRepository.find_any

    def find(images: ImageRepository, guids: Any) -> Any:
        if failures:
            raise failures.pop()
        return find_any(images, guids)

    monkeypatch.setattr(ImageRepository, "find_any", find)
    with Server(database, store, generator).running() as server:
        assert server.creator.create(edit(guid), alice, CallScope()).source_guids == (guid,)
    assert failures == []


def test_readers_are_closed_when_the_provider_fails_before_it_has_read_them(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller
) -> None:
    guid = add(database, store, alice, b"first" * _CHUNK)

    def fail() -> None:
        raise ProviderUnavailableError("It hung up.", may_have_billed=True)

    generator.on_read = fail
    with Server(database, store, generator).running() as server:
        server.creator.start(edit(guid), alice)
        wait_until(lambda: last_row(database)["state"] == "unknown", TIMEOUT, "the end")
    assert store.open_readers == []


def test_each_attempt_reads_the_inputs_again(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller
) -> None:
    guid = add(database, store, alice, b"first")
    failures = [ProviderUnavailableError("503")]

    def fail_once() -> None:
        if failures:
            raise failures.pop()

    generator.behave = fail_once
    with Server(database, store, generator).running() as server:
        server.creator.create(edit(guid), alice, CallScope())
    assert generator.received == [[("inputs-0.png", "image/png", b"first")]] * 2


def test_an_unreadable_input_says_nothing_of_the_provider(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller
) -> None:
    guids = [add(database, store, alice, b"gone") for _ in range(FAILURES_TO_OPEN)]
    server = Server(database, store, generator)
    for guid in guids:
        server.creator.start(edit(guid), alice)
        delete(database, guid)
    with server.running():
        wait_until(lambda: last_row(database)["state"] == "failed", TIMEOUT, "the failures")
        # The circuit is closed.
        assert server.creator.create(edit(), alice, CallScope())


def test_an_unreadable_input_is_no_trial_of_the_provider(
    database: Database, store: CountingStore, generator: ReadingGenerator, alice: Caller
) -> None:
    now = 1000.0
    guid = add(database, store, alice, b"gone")
    server = Server(database, store, generator, clock=lambda: now)
    for _ in range(2):
        server.creator.start(edit(guid), alice)
    server.creator.start(edit(), alice)
    delete(database, guid)
    open_circuit(server)
    now += FIRST_PAUSE
    with server.running():
        wait_until(lambda: last_row(database)["state"] == "stored", TIMEOUT, "the trial")
    assert len(generator.requests) == 1
