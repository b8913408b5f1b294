"""How an image comes about, with every way to be cut off that one process can show."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    ContentDamagedError,
    CredentialsInvalidError,
    DBConnectionError,
    ImageNotFoundError,
    InvalidFieldError,
    OutcomeUnknownError,
    PixyProxyException,
    PromptRefusedError,
    ProviderMisconfiguredError,
    ProviderModelUnknownError,
    ProviderRequestInvalidError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RequestIdReusedError,
    StorageFullError,
    UnreadableAnswerError,
)
from pixyproxy.core.fields import GenerationState, Visibility, new_guid
from pixyproxy.core.models import Caller, GenerationOptions, Image, ImageCreation, ImageDetailCreate, ImageInput, Usage
from pixyproxy.core.provider_limits import fidelity_problem
from pixyproxy.core.request_context import call_id
from pixyproxy.data.database import Database, DatabaseContext
from pixyproxy.data.repositories.deletions import DeletionRepository
from pixyproxy.data.repositories.generations import GenerationRepository, RequestContext
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.users import UserRepository
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.service.creation import recording
from pixyproxy.service.creation.recording import ImageCreator
from pixyproxy.service.creation.storing import ImageStoring, _Manifest
from tests.support.waiting import wait_until
from tests.unit.service.conftest import make_caller
from tests.unit.service.creation.parts import DEFAULTS, LEASE, FakeGenerator, Server, make_detail

KEY = "123e4567-e89b-42d3-a456-426614174000"


@pytest.fixture
def generator() -> FakeGenerator:
    return FakeGenerator()


@pytest.fixture
def server(database: Database, store: LocalImageStore, generator: FakeGenerator) -> Iterator[Server]:
    with Server(database, store, generator).running() as server:
        yield server


@pytest.fixture
def creator(server: Server) -> ImageCreator:
    return server.creator


def request(prompt: str = "A Castle, at night!", key: str | None = KEY, **options: Any) -> ImageCreation:
    return ImageCreation(
        detail=ImageDetailCreate(prompt=prompt, tags=("a",), visibility=Visibility.PUBLIC),
        options=GenerationOptions(**options),
        request_id=key,
    )


def states(database: Database) -> list[str]:
    with database.reading() as context:
        return [row["state"] for row in context.fetch_all("SELECT state FROM generations ORDER BY id", {})]


def count_images(database: Database) -> int:
    with database.reading() as context:
        (row,) = context.fetch_all("SELECT COUNT(*) AS n FROM images", {})
    return int(row["n"])


def test_an_image_is_made_stored_and_entered(
    creator: ImageCreator, database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    image = creator.create(request(model="m", size="16x16"), alice, CallScope())

    with store.open(image.guid) as reader:
        data = reader.read(1000)
    assert data == b"picture 1"
    assert (image.size_bytes, image.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (image.content_type, image.width, image.height, image.model) == ("image/webp", 2, 3, "m")
    assert (image.filename, image.author, image.tags) == ("a-castle-at-night.webp", "alice", ("a",))
    assert image.usage == Usage(input_tokens=1, output_tokens=2, total_tokens=3)
    assert image.created_at == image.updated_at
    with database.reading() as context:
        assert ImageRepository(context).get(image.guid, None).model_dump() == image.model_dump()
    assert states(database) == ["stored"]
    (asked,) = generator.requests
    assert (asked.model, asked.size, asked.quality, asked.author_guid) == ("m", "16x16", "auto", alice.guid)


@pytest.mark.parametrize(("prompt", "filename"), [("🦊!", "image.webp"), ("A fox.", "a-fox.webp")])
def test_an_image_is_named_after_its_prompt(creator: ImageCreator, alice: Caller, prompt: str, filename: str) -> None:
    assert creator.create(request(prompt), alice, CallScope()).filename == filename


def test_what_was_recorded_is_claimed_before_the_next_poll(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    with Server(database, store, generator, poll_interval=1000).running() as server:
        assert server.creator.create(request(), alice, CallScope(30)).size_bytes > 0


def test_a_generation_belongs_to_the_log_and_the_trace_of_its_call(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    logged: list[str] = []
    generator.behave = lambda: logged.append(call_id.get())
    before = call_id.set("the-call")
    try:
        with Server(database, store, generator, trace_headers=headers).running() as server:
            server.creator.create(request(), alice, CallScope())
    finally:
        call_id.reset(before)

    assert logged == ["the-call"]
    assert server.continued == [headers]


@pytest.mark.parametrize(
    ("defaults", "options", "refused"),
    [
        (
            {"output_format": "jpeg"},
            {"background": "transparent"},
            ("background", "webp; the default output format is jpeg"),
        ),
        (
            {"background": "transparent"},
            {"output_format": "jpeg"},
            ("background", "webp; the default background is transparent"),
        ),
        (
            {"background": "transparent", "output_format": "jpeg"},
            {},
            ("background", "webp; the default background is transparent; the default output format is jpeg"),
        ),
        ({"output_format": "jpeg"}, {"background": "transparent", "output_format": "webp"}, None),
        ({"background": "transparent"}, {"output_format": "jpeg", "background": "opaque"}, None),
        ({}, {"output_compression": 0}, ("output_compression", "jpeg; the default output format is png")),
        ({"output_format": "webp"}, {"output_compression": 0}, None),
        ({"output_format": "jpeg"}, {"output_compression": 100}, None),
        ({}, {"output_compression": 50, "output_format": "webp"}, None),
        (
            {"model": "gpt-image-2"},
            {"size": "1000x1000"},
            ("size", "multiples of 16; the default model is gpt-image-2"),
        ),
        (
            {"size": "1000x1000"},
            {"model": "gpt-image-2.5-flare"},
            ("size", "multiples of 16; the default size is 1000x1000"),
        ),
        ({"size": "1000x1000"}, {"model": "gpt-image-2", "size": "1024x1024"}, None),
        ({}, {"model": "gpt-image-2", "size": "1000x1000"}, ("size", "multiples of 16")),
        ({"model": "gpt-image-2"}, {"model": "gpt-image-2.6-flare", "size": "1000x9999", "quality": "max"}, None),
        (
            {"model": "gpt-image-2"},
            {"quality": "max"},
            ("quality", "than gpt-image-2; the default model is gpt-image-2"),
        ),
        ({"quality": "xhigh"}, {"model": "gpt-image-2"}, ("quality", "than gpt-image-2; the default quality is xhigh")),
        ({"quality": "xhigh"}, {"model": "gpt-image-2.5-sunburst"}, None),
    ],
)
def test_a_request_must_go_together_with_the_defaults(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    defaults: dict[str, str],
    options: dict[str, Any],
    refused: tuple[str, str] | None,
) -> None:
    with Server(database, store, generator, defaults=DEFAULTS.model_copy(update=defaults)).running() as server:
        if refused is None:
            assert server.creator.create(request(**options), alice, CallScope()).size_bytes > 0
            return
        for _ in range(2):
            with pytest.raises(InvalidFieldError) as caught:
                server.creator.create(request(**options), alice, CallScope())
            [violation] = caught.value.violations
            assert violation.field == f"options.{refused[0]}"
            assert violation.description.endswith(refused[1])
            with pytest.raises(InvalidFieldError) as caught:
                server.creator.start(request(**options), alice)
            assert caught.value.violations == (violation,)
    assert states(database) == []


def violations(creator: ImageCreator, creation: ImageCreation, author: Caller) -> dict[str, str]:
    with pytest.raises(InvalidFieldError) as refused:
        creator.create(creation, author, CallScope())
    return {violation.field: violation.description for violation in refused.value.violations}


def test_low_moderation_is_refused_where_the_operator_forbids_it(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    with Server(database, store, generator, allows_low_moderation=False).running() as server:
        assert violations(server.creator, request(moderation="low"), alice) == {
            "options.moderation": "the operator of this server does not allow low"
        }
        for moderation in ("auto", None):
            server.creator.create(request(key=None, moderation=moderation), alice, CallScope())
    assert [asked.moderation for asked in generator.requests] == ["auto", None]


def test_low_moderation_is_allowed_by_default(creator: ImageCreator, generator: FakeGenerator, alice: Caller) -> None:
    creator.create(request(moderation="low"), alice, CallScope())
    assert [asked.moderation for asked in generator.requests] == ["low"]


def test_an_image_that_was_made_before_the_operator_forbade_its_moderation_is_still_returned(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    with Server(database, store, generator).running() as server:
        image = server.creator.create(request(moderation="low"), alice, CallScope())
    with Server(database, store, generator, allows_low_moderation=False).running() as server:
        assert server.creator.create(request(moderation="low"), alice, CallScope()).guid == image.guid


def test_an_input_fidelity_needs_inputs(creator: ImageCreator, alice: Caller) -> None:
    assert violations(creator, request(input_fidelity="high"), alice) == {
        "options.input_fidelity": "needs at least one image in inputs"
    }


def test_all_options_that_do_not_go_together_are_named_at_once(creator: ImageCreator, alice: Caller) -> None:
    wrong = request(model="gpt-image-2", size="65x64", quality="max", input_fidelity="low")
    assert violations(creator, wrong, alice).keys() == {"options.size", "options.quality", "options.input_fidelity"}


def test_options_of_an_edit_are_those_that_edits_have(creator: ImageCreator, alice: Caller) -> None:
    source = ImageInput(guid=creator.create(request(key=None), alice, CallScope()).guid)
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"moderation": "auto"}, "moderation", "cannot be chosen for edits; leave it out, or the inputs"),
        ({"model": "gpt-image-2", "input_fidelity": "low"}, "input_fidelity", fidelity_problem("gpt-image-2") or ""),
    ]
    for options, refused, why in cases:
        edit = request(key=None, **options).model_copy(update={"inputs": (source,)})
        assert violations(creator, edit, alice) == {f"options.{refused}": why}


def test_the_model_of_a_submission_is_recorded_for_the_usage(
    creator: ImageCreator, database: Database, alice: Caller
) -> None:
    for model in ("m", None):
        creator.create(request(key=None, model=model), alice, CallScope())
    with database.reading() as context:
        rows = context.fetch_all("SELECT model FROM generations ORDER BY id", {})
    assert [row["model"] for row in rows] == ["m", DEFAULTS.model]


def test_all_options_reach_the_generator_and_the_image(
    creator: ImageCreator, database: Database, generator: FakeGenerator, alice: Caller
) -> None:
    options: dict[str, Any] = {
        "output_format": "jpeg",
        "output_compression": 0,
        "moderation": "low",
        "partial_images": 3,
    }
    image = creator.create(request(**options), alice, CallScope())

    (asked,) = generator.requests
    assert (asked.output_compression, asked.moderation, asked.input_fidelity) == (0, "low", None)
    used = GenerationOptions.model_validate(dict(DEFAULTS) | options)
    with database.reading() as context:
        assert ImageRepository(context).get(image.guid, alice).options == used


def test_the_same_request_under_the_same_key_is_made_once(
    creator: ImageCreator, generator: FakeGenerator, alice: Caller
) -> None:
    images = [creator.create(request(), alice, CallScope()) for _ in range(3)]

    assert len({image.guid for image in images}) == 1
    assert len(generator.requests) == 1


def test_without_a_key_every_request_is_made(creator: ImageCreator, generator: FakeGenerator, alice: Caller) -> None:
    images = [creator.create(request(key=None), alice, CallScope()) for _ in range(3)]

    assert len({image.guid for image in images}) == 3
    assert len(generator.requests) == 3


def test_racing_requests_under_one_key_are_made_once(
    creator: ImageCreator, generator: FakeGenerator, alice: Caller
) -> None:
    together = threading.Barrier(8)

    def create() -> Image:
        together.wait()
        return creator.create(request(), alice, CallScope(30))

    with ThreadPoolExecutor(8) as pool:
        guids = {future.result().guid for future in [pool.submit(create) for _ in range(8)]}

    assert len(guids) == 1
    assert len(generator.requests) == 1


@pytest.mark.parametrize("other", [request("Another"), request(quality="low")])
def test_another_request_under_the_same_key_is_refused(
    creator: ImageCreator, generator: FakeGenerator, alice: Caller, other: ImageCreation
) -> None:
    creator.create(request(), alice, CallScope())

    with pytest.raises(RequestIdReusedError):
        creator.create(other, alice, CallScope())
    assert len(generator.requests) == 1


def test_a_request_is_the_same_one_for_all_releases() -> None:
    """An earlier release may have recorded it, and its caller asks this one for the image."""
    asked = (
        '{"detail":{"prompt":"A Castle, at night!","filename":null,"tags":["a"],"visibility":2},'
        '"options":{"model":"m","size":null,"quality":null,"output_format":null,"background":null}}'
    )
    assert recording._fingerprint(request(model="m")) == hashlib.sha256(asked.encode()).hexdigest()
    partial = asked.replace("null}}", 'null,"partial_images":2}}')
    assert recording._fingerprint(request(model="m", partial_images=2)) == hashlib.sha256(partial.encode()).hexdigest()


def test_requests_differ_in_every_option() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"moderation": "auto"},
        {"moderation": "low"},
        {"output_compression": 0},
        {"output_compression": 1},
        {"input_fidelity": "low"},
        {"input_fidelity": "high"},
    ]
    assert len({recording._fingerprint(request(**options)) for options in changes}) == len(changes)


def test_another_author_may_use_the_same_key(
    creator: ImageCreator, database: Database, generator: FakeGenerator, alice: Caller
) -> None:
    first = creator.create(request(), alice, CallScope())
    second = creator.create(request("Another"), make_caller(database, "bob"), CallScope())

    assert first.guid != second.guid
    assert len(generator.requests) == 2


def test_a_deleted_image_is_not_made_again(
    creator: ImageCreator, database: Database, generator: FakeGenerator, alice: Caller
) -> None:
    image = creator.create(request(), alice, CallScope())
    with database.transaction() as context:
        ImageRepository(context).delete(image.id)
        context.commit()

    with pytest.raises(ImageNotFoundError):
        creator.create(request(), alice, CallScope())
    assert len(generator.requests) == 1


@pytest.mark.parametrize(
    "error", [PromptRefusedError("no"), ProviderMisconfiguredError("key"), ProviderTimeoutError("over")]
)
def test_what_failed_and_cost_nothing_may_be_tried_again(
    creator: ImageCreator, database: Database, generator: FakeGenerator, alice: Caller, error: PixyProxyException
) -> None:
    generator.fails_with(error)
    with pytest.raises(type(error)):
        creator.create(request(), alice, CallScope())
    assert states(database) == ["failed"]

    generator.behave = lambda: None
    assert creator.create(request(), alice, CallScope()).size_bytes > 0
    assert states(database) == ["stored"]
    assert len(generator.requests) == 2


@pytest.mark.parametrize(
    "error",
    [
        OutcomeUnknownError("cut"),
        ProviderUnavailableError("nonsense", may_have_billed=True),
        ProviderTimeoutError("slow", may_have_billed=True),
        RuntimeError("not foreseen"),
    ],
)
def test_what_may_have_cost_is_never_sent_again(
    creator: ImageCreator, database: Database, generator: FakeGenerator, alice: Caller, error: Exception
) -> None:
    generator.fails_with(error)
    told = type(error) if isinstance(error, PixyProxyException) else PixyProxyException
    with pytest.raises(told):
        creator.create(request(), alice, CallScope())
    assert states(database) == ["unknown"]

    for _ in range(2):
        with pytest.raises(OutcomeUnknownError):
            creator.create(request(), alice, CallScope())
    assert len(generator.requests) == 1


def test_an_answer_that_cannot_be_read_is_kept_aside(
    creator: ImageCreator,
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    caplog: pytest.LogCaptureFixture,
) -> None:
    generator.fails_with(UnreadableAnswerError("no image", body=b"the answer"))

    with pytest.raises(ProviderUnavailableError) as refused:
        creator.create(request(), alice, CallScope())

    [guid] = store.list_aside()
    assert store.read_aside(guid) == b"the answer"
    assert refused.value.message == (
        "The image provider's answer has no readable image. The answer is kept for the server's operator under the "
        f"guid {guid}; pixyproxy generations salvage saves it as a file."
    )
    assert refused.value.may_have_billed
    assert "body" not in vars(refused.value)
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f": {store.write_aside(guid, b'the answer')}. " in line
    assert f"pixyproxy generations salvage {guid} --output FILE" in line
    with pytest.raises(OutcomeUnknownError):
        creator.create(request(), alice, CallScope())
    assert (states(database), count_images(database)) == (["unknown"], 0)
    assert len(generator.requests) == 1


def test_what_is_kept_aside_outlives_recovery(
    server: Server, creator: ImageCreator, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    generator.fails_with(UnreadableAnswerError("no image", body=b"the answer"))
    with pytest.raises(ProviderUnavailableError):
        creator.create(request(), alice, CallScope())
    [guid] = store.list_aside()

    server.recovery.run()
    server.storing.delete_bytes(guid)

    assert store.read_aside(guid) == b"the answer"


def test_an_answer_that_cannot_be_kept_aside_is_not_said_to_be(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(store: LocalImageStore, guid: str, body: bytes) -> str:
        raise StorageFullError("There is no room left for images.")

    monkeypatch.setattr(LocalImageStore, "write_aside", full)
    generator.fails_with(UnreadableAnswerError("no image", body=b"the answer"))

    with (
        Server(database, store, generator, store_give_up_after=0).running() as server,
        pytest.raises(ProviderUnavailableError) as refused,
    ):
        server.creator.create(request(), alice, CallScope())

    assert refused.value.message == "The image provider's answer has no readable image."
    assert "is lost: There is no room left" in caplog.text
    assert states(database) == ["unknown"]


def test_a_model_that_the_caller_named_is_the_callers_mistake(
    creator: ImageCreator, generator: FakeGenerator, alice: Caller
) -> None:
    generator.fails_with(ProviderModelUnknownError("no such model"))

    with pytest.raises(ProviderRequestInvalidError) as refused:
        creator.create(request(model="m"), alice, CallScope())
    assert refused.value.field == "options.model"
    with pytest.raises(ProviderModelUnknownError):
        creator.create(request(key=None), alice, CallScope())
    generator.fails_with(PromptRefusedError("no"))
    with pytest.raises(PromptRefusedError):
        creator.create(request(key=None, model="m"), alice, CallScope())


def begin(database: Database, alice: Caller, state: GenerationState, *, is_alive: bool, owner: str = "") -> str:
    """Leave behind what another process has begun, and return the guid of its image."""
    lease = LEASE if is_alive else -LEASE
    with database.transaction() as context:
        generation = GenerationRepository(context).insert(
            request(), alice.user_id, recording._fingerprint(request()), RequestContext()
        )
        context.execute(
            "UPDATE generations SET state = :state, owner = :owner, lease_expires_at = :expires_at WHERE id = :id",
            {
                "id": generation.id,
                "state": state.value,
                "owner": owner or new_guid(),
                "expires_at": datetime.now(UTC) + lease,
            },
        )
        context.commit()
    return generation.image_guid


def test_what_died_before_sending_is_taken_over(
    creator: ImageCreator, database: Database, generator: FakeGenerator, alice: Caller
) -> None:
    begin(database, alice, GenerationState.RECORDED, is_alive=False)

    assert creator.create(request(), alice, CallScope()).size_bytes > 0
    assert len(generator.requests) == 1


def test_what_died_after_sending_is_never_sent_again(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    begin(database, alice, GenerationState.SUBMITTED, is_alive=False)

    # The dead one's lease counts for as long as one of this server lasts.
    with Server(database, store, generator, lease=timedelta(seconds=2)).running() as server:
        for _ in range(2):
            with pytest.raises(OutcomeUnknownError):
                server.creator.create(request(), alice, CallScope())
    assert states(database) == ["unknown"]
    assert generator.requests == []


@pytest.mark.parametrize("state", [GenerationState.RECORDED, GenerationState.SUBMITTED])
def test_what_another_server_works_on_is_waited_for(
    creator: ImageCreator, database: Database, generator: FakeGenerator, alice: Caller, state: GenerationState
) -> None:
    begin(database, alice, state, is_alive=True)

    with pytest.raises(ProviderTimeoutError, match="still being generated"):
        creator.create(request(), alice, CallScope(0.2))
    assert generator.requests == []
    assert states(database) == [state.value]


def test_a_caller_that_leaves_gets_the_picture_later(
    creator: ImageCreator, database: Database, generator: FakeGenerator, alice: Caller
) -> None:
    answer = threading.Event()
    generator.behave = lambda: _wait(answer)

    with pytest.raises(ProviderTimeoutError, match="still being generated"):
        creator.create(request(), alice, CallScope(0.2))
    answer.set()

    image = creator.create(request(), alice, CallScope(30))
    assert image.size_bytes > 0
    assert len(generator.requests) == 1
    assert states(database) == ["stored"]


def test_nothing_is_sent_for_a_caller_that_has_gone(
    creator: ImageCreator, database: Database, generator: FakeGenerator, alice: Caller
) -> None:
    gone = CallScope()
    gone.leave()

    with pytest.raises(ProviderTimeoutError):
        creator.create(request(), alice, gone)
    assert generator.requests == []
    assert states(database) == []


def test_over_the_limit_requests_are_queued(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    answer = threading.Event()
    generator.behave = lambda: _wait(answer)
    with Server(database, store, generator, limit=2).running() as server, ThreadPoolExecutor(5) as pool:
        calls = [pool.submit(server.creator.create, request(key=None), alice, CallScope(30)) for _ in range(5)]
        wait_until(lambda: len(generator.requests) == 2, timeout=20, what="two submissions")
        wait_until(lambda: len(states(database)) == 5, timeout=20, what="all records")
        assert sorted(states(database)) == ["queued"] * 3 + ["sent"] * 2
        answer.set()
        assert len({call.result().guid for call in calls}) == 5
    assert states(database) == ["stored"] * 5


def test_no_room_is_told_before_anything_is_sent(
    creator: ImageCreator,
    database: Database,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: LocalImageStore, images: int) -> None:
        raise StorageFullError("full")

    monkeypatch.setattr(LocalImageStore, "require_room", full)

    with pytest.raises(StorageFullError):
        creator.create(request(), alice, CallScope())
    assert generator.requests == []
    assert states(database) == ["failed"]


def test_bytes_that_cannot_be_stored_leave_no_detail_and_are_not_paid_for_again(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(store: LocalImageStore, guid: str, data: bytes) -> None:
        raise StorageFullError("full")

    monkeypatch.setattr(LocalImageStore, "write", full)

    with Server(database, store, generator, store_give_up_after=0).running() as server:
        with pytest.raises(StorageFullError):
            server.creator.create(request(), alice, CallScope())
        with pytest.raises(OutcomeUnknownError):
            server.creator.create(request(), alice, CallScope())
        wait_until(lambda: store.list_manifests() == [], timeout=30, what="the manifest to be deleted")
    assert count_images(database) == 0
    assert len(generator.requests) == 1


@pytest.mark.parametrize("error", [DBConnectionError("away"), RuntimeError("not foreseen")])
def test_a_picture_made_while_the_database_is_away_is_entered_when_it_is_back(
    creator: ImageCreator,
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    insert = ImageRepository.insert
    is_away = threading.Event()
    is_away.set()

    def insert_unless_away(images: ImageRepository, *arguments: object) -> Image:
        if is_away.is_set():
            raise error
        return insert(images, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageRepository, "insert", insert_unless_away)

    with pytest.raises(ProviderTimeoutError, match="still being generated"):
        creator.create(request(), alice, CallScope(0.5))
    assert count_images(database) == 0
    is_away.clear()

    image = creator.create(request(), alice, CallScope(30))
    assert image.size_bytes > 0
    assert len(generator.requests) == 1
    assert (count_images(database), states(database)) == (1, ["stored"])
    assert store.list_manifests() == []


def test_a_commit_whose_answer_was_lost_is_found_out(
    creator: ImageCreator,
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    insert = ImageRepository.insert
    lost: list[bool] = []

    def insert_and_lose_the_answer(images: ImageRepository, *arguments: object) -> Image:
        image = insert(images, *arguments)  # type: ignore[arg-type]
        if not lost:
            lost.append(True)
            context: DatabaseContext = images._context
            context.commit()
            raise DBConnectionError("cut off after the commit")
        return image

    monkeypatch.setattr(ImageRepository, "insert", insert_and_lose_the_answer)

    assert creator.create(request(), alice, CallScope(30)).size_bytes > 0
    assert len(generator.requests) == 1
    assert (count_images(database), states(database)) == (1, ["stored"])
    wait_until(lambda: store.list_manifests() == [], timeout=10, what="the manifest to be deleted")


def test_workers_are_told_of_what_is_recorded(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    server, asked = Server(database, store, generator), request()
    for _ in range(2):  # The second time nothing is recorded.
        server.creator.start(asked, alice)
    assert len(server.recorded.read()) == 1


# --- After a crash: what the process that died has left --------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in GenerationState if state is not GenerationState.SUCCEEDED])
@pytest.mark.parametrize("has_recovered", [True, False])
def test_a_picture_that_was_kept_is_entered(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    state: GenerationState,
    has_recovered: bool,
) -> None:
    guid = begin(database, alice, state, is_alive=False)
    other = Server(database, store, generator)
    other.storing.store(make_detail(guid, b"picture"), b"picture")

    if has_recovered:
        other.recovery.run()
        assert (count_images(database), states(database)) == (1, ["stored"])
    with other.running() as server:
        image = server.creator.create(request(), alice, CallScope(30))

    assert image.guid == guid
    assert image.author == "alice"
    assert generator.requests == []
    assert (count_images(database), states(database)) == (1, ["stored"])
    assert store.list_manifests() == []


@pytest.mark.parametrize("state", [GenerationState.OUTCOME_UNKNOWN, GenerationState.FAILED])
def test_a_picture_that_another_process_enters_meanwhile_is_found(
    database: Database,
    store: LocalImageStore,
    generator: FakeGenerator,
    alice: Caller,
    state: GenerationState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guid = begin(database, alice, state, is_alive=False)
    server, other = Server(database, store, generator), Server(database, store, generator)
    other.storing.store(make_detail(guid, b"picture"), b"picture")
    read_manifest = store.read_manifest

    def read_after_recovery(guid: str) -> str | None:
        monkeypatch.undo()
        other.recovery.run()
        return read_manifest(guid)

    monkeypatch.setattr(store, "read_manifest", read_after_recovery)
    with server.taking_calls():
        assert server.creator.create(request(), alice, CallScope(30)).guid == guid
    assert generator.requests == []


def test_a_picture_that_was_kept_is_there_while_the_provider_is_down(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller
) -> None:
    guid = begin(database, alice, GenerationState.FAILED, is_alive=False)
    server = Server(database, store, generator)
    server.storing.store(make_detail(guid, b"picture"), b"picture")
    server.circuits.publish(0, time.monotonic() + 60)

    with server.taking_calls():
        assert server.creator.create(request(), alice, CallScope(30)).guid == guid


def test_a_picture_that_another_process_is_about_to_enter_is_left_to_it(
    database: Database, store: LocalImageStore, alice: Caller
) -> None:
    guid = begin(database, alice, GenerationState.SUBMITTED, is_alive=True)
    server = Server(database, store, FakeGenerator())
    server.storing.store(make_detail(guid, b"picture"), b"picture")

    server.recovery.run()

    assert (count_images(database), states(database)) == (0, ["sent"])
    assert store.list_manifests() == [guid]


@pytest.mark.parametrize("there_is", [None, b"pict", b"PICTURE"])
def test_a_note_without_its_bytes_is_thrown_away(
    database: Database, store: LocalImageStore, generator: FakeGenerator, alice: Caller, there_is: bytes | None
) -> None:
    guid = begin(database, alice, GenerationState.SUBMITTED, is_alive=False)
    server = Server(database, store, generator)
    server.storing.store(make_detail(guid, b"picture"), b"picture")
    store.delete(guid)
    if there_is is not None:
        store.write(guid, there_is)

    server.recovery.run()

    assert store.list_manifests() == []
    with pytest.raises(ContentDamagedError):
        store.open(guid)
    with server.taking_calls(), pytest.raises(OutcomeUnknownError):
        server.creator.create(request(), alice, CallScope(30))
    assert count_images(database) == 0
    assert generator.requests == []


def test_a_note_that_outlived_its_entry_goes(creator: ImageCreator, store: LocalImageStore, alice: Caller) -> None:
    image = creator.create(request(), alice, CallScope())
    store.write_manifest(image.guid, _Manifest(detail=make_detail(image.guid, b"x")).model_dump_json())

    wait_until(lambda: store.list_manifests() == [], timeout=20, what="recovery to run")
    with store.open(image.guid) as reader:
        assert reader.size == image.size_bytes


def test_a_note_of_an_earlier_release_is_understood(database: Database, store: LocalImageStore, alice: Caller) -> None:
    guid = begin(database, alice, GenerationState.SUBMITTED, is_alive=False)
    store.write(guid, b"picture")
    store.write_manifest(guid, f'{{"detail": {make_detail(guid, b"picture").model_dump_json()}, "author_id": 1}}')

    Server(database, store, FakeGenerator()).recovery.run()

    assert (count_images(database), states(database)) == (1, ["stored"])


def test_a_note_that_was_thrown_away_while_its_writer_slept_is_written_again(
    database: Database, store: LocalImageStore, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right then, the writer would otherwise leave bytes that nothing points to."""
    guid = begin(database, alice, GenerationState.SUBMITTED, is_alive=False)
    write = store.write
    now = time.time()

    def write_after_sleeping(guid: str, data: bytes) -> None:
        Server(database, store, FakeGenerator()).recovery.run()
        assert store.list_manifests() == []
        monkeypatch.setattr(time, "time", lambda: now + 2 * LEASE.total_seconds())
        write(guid, data)

    monkeypatch.setattr(store, "write", write_after_sleeping)
    ImageStoring(database, store, lease=LEASE).store(make_detail(guid, b"picture"), b"picture")

    assert store.list_manifests() == [guid]
    Server(database, store, FakeGenerator()).recovery.run()
    assert (count_images(database), states(database)) == (1, ["stored"])


def test_bytes_of_a_deleted_image_go(database: Database, store: LocalImageStore, alice: Caller) -> None:
    """The process died between the commit of a deletion and the deletion of the bytes."""
    guid = begin(database, alice, GenerationState.SUCCEEDED, is_alive=False)
    store.write(guid, b"picture")
    with database.transaction() as context:
        DeletionRepository(context).insert(guid)
        context.commit()

    Server(database, store, FakeGenerator()).recovery.run()

    with pytest.raises(ContentDamagedError):
        store.open(guid)
    with database.reading() as context:
        assert DeletionRepository(context).get_next(10, after=0) == []


def test_a_half_written_file_goes_unless_its_writer_lives(store: LocalImageStore, tmp_path: Path) -> None:
    store.write("ab" * 16, b"picture")
    parts = tmp_path / "images" / ".parts"
    (parts / "abandoned").write_bytes(b"half")
    with (parts / "alive").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        store.delete_partial_writes()
        assert [path.name for path in parts.iterdir()] == ["alive"]
    store.delete_partial_writes()
    assert list(parts.iterdir()) == []


def test_no_temporary_files_stay(creator: ImageCreator, alice: Caller, tmp_path: Path) -> None:
    image = creator.create(request(), alice, CallScope())

    files = [path for path in (tmp_path / "images").rglob("*") if path.is_file()]
    assert [path.name for path in files] == [image.guid]


def _wait(event: threading.Event) -> None:
    assert event.wait(30)


@pytest.mark.parametrize("key", [KEY, None])
def test_a_removed_user_records_nothing(
    database: Database, creator: ImageCreator, alice: Caller, key: str | None
) -> None:
    """As when a user is removed while the credentials are still remembered."""
    with database.transaction() as context:
        UserRepository(context).remove(alice.user_id)
        context.commit()

    with pytest.raises(CredentialsInvalidError):
        creator.create(request(key=key), alice, CallScope())
