"""Images that are made from other images: what is sent, what is shown, and what is refused."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from PIL import Image
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.core.fields import UserClass, new_guid
from tests.integration.conftest import People, asking
from tests.support.generation_client import FAILED, SUCCEEDED, GenerationClient
from tests.support.image_client import SMALL, ImageClient
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT, Refusal
from tests.support.servers import Login, RunningServer, running_server
from tests.support.stored_images import make_detail, store_details, store_image
from tests.support.waiting import wait_until

_MIB = 1024 * 1024
_NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND")
_DAMAGED = (grpc.StatusCode.DATA_LOSS, "CONTENT_DAMAGED")


def source(guid: str) -> pb.ImageInput:
    return pb.ImageInput(guid=guid)


def edit(client: ImageClient, prompt: str, *guids: str, mask: str = "", **fields: Any) -> pb.ImageDetail:
    return client.create(prompt, **edit_of(*guids, mask=mask), **fields)


def edit_of(*guids: str, mask: str = "") -> dict[str, Any]:
    return {"inputs": [source(guid) for guid in guids], **({"mask": source(mask)} if mask else {})}


def painted(colour: tuple[int, ...], size: tuple[int, int] = (64, 64), kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def put(server: RunningServer, author: Login, data: bytes, **values: Any) -> str:
    with Image.open(io.BytesIO(data)) as picture:
        kind, (width, height) = Image.MIME[str(picture.format)], picture.size
    return store_image(server, author, data, content_type=kind, width=width, height=height, **values).guid


@pytest.fixture
def ann(provider_server: RunningServer, artists: People) -> ImageClient:
    return ImageClient(provider_server, artists.ann)


# --- Drawn by the server itself, on each database --------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawing(any_server: RunningServer) -> tuple[ImageClient, ImageClient, ImageClient]:
    """Ann, bob and an admin of a server without a provider."""
    logins = (any_server.new_login(), any_server.new_login(), any_server.new_login(UserClass.ADMIN))
    return tuple(ImageClient(any_server, login) for login in logins)  # type: ignore[return-value]


def test_an_edit_says_what_it_was_made_from(drawing: tuple[ImageClient, ...]) -> None:
    ann = drawing[0]
    first, second = ann.create("a castle"), ann.create("a moat")
    made = edit(ann, "a castle in a moat", first.guid, second.guid, first.guid)
    assert (made.origin, list(made.source_guids)) == (pb.ORIGIN_EDITED, [first.guid, second.guid, first.guid])
    assert made.prompt == "a castle in a moat"
    assert (first.origin, list(first.source_guids)) == (pb.ORIGIN_GENERATED, [])
    assert ann.get(made.guid) == made
    assert list(ann.page(guid=made.guid).images) == [made]
    again = edit(ann, "with a flag", made.guid)
    assert list(again.source_guids) == [made.guid]


def test_a_mask_is_no_source(drawing: tuple[ImageClient, ...]) -> None:
    ann = drawing[0]
    first = ann.create("a castle")
    mask = put(ann.server, ann.login, painted((0, 0, 0, 0)))  # type: ignore[arg-type]
    made = edit(ann, "another sky", first.guid, mask=mask)
    assert list(made.source_guids) == [first.guid]
    generation = GenerationClient(ann.server, ann.login).page(page_size=1).generations[0]
    assert generation.request.inputs == [source(first.guid)]
    assert generation.request.mask == source(mask)
    assert generation.image == made


def test_sources_that_a_reader_may_not_see_are_left_out(drawing: tuple[ImageClient, ...]) -> None:
    ann, bob, root = drawing
    private, public = ann.create("a secret"), ann.create_public("a fact")
    made = edit(ann, f"both {uuid.uuid4()}", private.guid, public.guid, visibility=pb.VISIBILITY_PUBLIC)
    anybody = ImageClient(ann.server)
    everything = [private.guid, public.guid]
    for client, expected in ((ann, everything), (root, everything), (bob, [public.guid]), (anybody, [public.guid])):
        assert list(client.get(made.guid).source_guids) == expected
        [listed] = client.page(guid=made.guid).images
        assert list(listed.source_guids) == expected

    ann.delete(public.guid)
    assert list(ann.get(made.guid).source_guids) == [private.guid]
    assert list(bob.get(made.guid).source_guids) == []


def test_a_generation_leaves_out_sources_that_its_author_may_no_longer_see(drawing: tuple[ImageClient, ...]) -> None:
    ann, bob, _ = drawing
    lent = bob.create_public("lent by bob")
    made = edit(ann, f"borrowed {uuid.uuid4()}", lent.guid, request_id=new_guid())
    generations = GenerationClient(ann.server, ann.login)
    [shown] = [one for one in generations.page().generations if one.image_guid == made.guid]
    assert list(shown.image.source_guids) == [lent.guid]

    bob.update(lent.guid, visibility=pb.VISIBILITY_PRIVATE)
    assert list(generations.get(shown.guid).image.source_guids) == []
    assert list(ann.get(made.guid).source_guids) == []
    assert list(bob.create("unrelated").source_guids) == []


@pytest.mark.parametrize("part", ["input", "mask"])
@pytest.mark.parametrize("which", ["missing", "private", "deleted"])
def test_a_source_that_the_author_may_not_see_does_not_exist(
    drawing: tuple[ImageClient, ...], part: str, which: str
) -> None:
    ann, bob, _ = drawing
    first = ann.create("a castle").guid
    hidden = new_guid() if which == "missing" else (bob if which == "private" else ann).create("hidden").guid
    if which == "deleted":
        ann.delete(hidden)
    fields = edit_of(first, hidden) if part == "input" else edit_of(first, mask=hidden)
    name = "inputs[1]" if part == "input" else "mask"
    request = pb.CreateImageRequest(prompt=f"no {which}", request_id=new_guid(), options=SMALL, **fields)
    refused = ann.refused(request)
    _check_not_found(refused, hidden, name)
    generations = GenerationClient(ann.server, ann.login)
    refused = generations.refused("CreateGeneration", gpb.CreateGenerationRequest(request=request))
    _check_not_found(refused, hidden, f"request.{name}")
    # Nothing was recorded, not even the request id.
    assert ann.create("another one", request_id=request.request_id)


def _check_not_found(refused: Refusal, guid: str, field: str) -> None:
    assert (refused.code, refused.reason) == _NOT_FOUND
    assert refused.metadata == {"field": field}
    assert refused.message == f"{field}: There is no such image, or you may not see it."
    assert refused.resource is not None
    assert (refused.resource.resource_type, refused.resource.resource_name) == ("pixyproxy.v1.Image", guid)


def test_an_admin_edits_any_image(drawing: tuple[ImageClient, ...]) -> None:
    ann, _, root = drawing
    private = ann.create("a secret")
    assert list(edit(root, "no secret any more", private.guid).source_guids) == [private.guid]


# --- What is refused before it is recorded ---------------------------------------------------------------------------


def test_what_the_provider_cannot_take_is_refused(drawing: tuple[ImageClient, ...]) -> None:
    ann = drawing[0]
    assert ann.login is not None
    usual = ann.create("a castle").guid
    odd: dict[str, dict[str, Any]] = {
        "huge": {"size_bytes": 50 * _MIB},
        "nearly huge": {"size_bytes": 50 * _MIB - 1},
        "large": {"size_bytes": 4 * _MIB},
        "webp": {"content_type": "image/webp"},
        "wide": {"width": 65},
        "high": {"height": 65},
    }
    details = {name: make_detail(ann.login, **({"width": 64, "height": 64} | values)) for name, values in odd.items()}
    store_details(ann.server, ann.login, details.values())
    guids = {name: detail.guid for name, detail in details.items()}
    rules = {
        "huge": "must have less than 50 MiB",
        "large": "must have less than 4 MiB",
        "webp": "must be a PNG",
        "wide": "must be as large as the first input, 64x64 pixels",
        "high": "must be as large as the first input, 64x64 pixels",
    }
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [
        (edit_of(guids["huge"]), {"inputs[0]": rules["huge"]}),
        (edit_of(usual, guids["nearly huge"], guids["huge"]), {"inputs[2]": rules["huge"]}),
        *((edit_of(usual, mask=guids[name]), {"mask": rules[name]}) for name in ("large", "webp", "wide", "high")),
        (edit_of(guids["huge"], mask=guids["webp"]), {"inputs[0]": rules["huge"], "mask": rules["webp"]}),
        (edit_of(mask=usual), {"mask": "needs at least one image in inputs, to which it applies"}),
        (edit_of(*[usual] * 17), {"inputs": "must be at most 16 images, not 17"}),
        (edit_of(usual, "no guid"), {"inputs[1].guid": "must be a UUID of 36 characters, such as"}),
        (edit_of(""), {"inputs[0].guid": "must be a UUID of 36 characters, such as"}),
        ({**edit_of(usual), "mask": pb.ImageInput()}, {"mask.guid": "must be a UUID of 36 characters, such as"}),
    ]
    generations = GenerationClient(ann.server, ann.login)
    for fields, violations in cases:
        request = pb.CreateImageRequest(prompt="refused", options=SMALL, **fields)
        refused = ann.refused(request)
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert refused.violations.keys() == violations.keys()
        for field, rule in violations.items():
            assert refused.violations[field].startswith(rule)
        nested = generations.refused("CreateGeneration", gpb.CreateGenerationRequest(request=request))
        assert nested.violations.keys() == {f"request.{field}" for field in violations}
    assert "refused" not in {one.request.prompt for one in generations.page(page_size=200).generations}


@pytest.mark.parametrize(
    ("options", "has_inputs", "field"),
    [
        ({"moderation": "low"}, True, "options.moderation"),
        ({"moderation": "auto"}, True, "options.moderation"),
        ({"input_fidelity": "high"}, False, "options.input_fidelity"),
        ({"input_fidelity": "high", "model": "gpt-image-2"}, True, "options.input_fidelity"),
    ],
)
def test_options_that_do_not_go_with_an_edit_are_refused(
    ann: ImageClient, stand_in: RunningStandIn, prompt: str, options: dict[str, Any], has_inputs: bool, field: str
) -> None:
    inputs = edit_of(ann.create("a castle").guid) if has_inputs else {}
    refused = ann.refused(pb.CreateImageRequest(prompt=prompt, options=pb.GenerationOptions(**options), **inputs))
    assert (refused.reason, list(refused.violations)) == ("INVALID_FIELD", [field])
    assert stand_in.count(prompt) == 0


# --- What the provider is sent ---------------------------------------------------------------------------------------


def test_the_provider_is_sent_the_bytes_and_the_options(
    ann: ImageClient, artists: People, stand_in: RunningStandIn, prompt: str
) -> None:
    pictures = [painted((10, 20, 30), kind=kind) for kind in ("png", "webp", "jpeg")]
    guids = [put(ann.server, artists.ann, data, filename=f"secret-{number}") for number, data in enumerate(pictures)]
    hole = painted((0, 0, 0, 0))
    options = pb.GenerationOptions(size="96x64", input_fidelity="high", output_format="webp", output_compression=60)
    mask = put(ann.server, artists.ann, hole)
    made = edit(ann, prompt, *guids, mask=mask, options=options)

    [sent] = stand_in.submissions(prompt)["requests"]
    assert [(one["field"], one["filename"], one["content_type"], one["sha256"]) for one in sent["image"]] == [
        ("image[]", f"inputs-{number}.{kind}", f"image/{kind}", hashlib.sha256(data).hexdigest())
        for number, (kind, data) in enumerate(zip(("png", "webp", "jpeg"), pictures, strict=True))
    ]
    assert (sent["mask"]["filename"], sent["mask"]["sha256"]) == ("mask.png", hashlib.sha256(hole).hexdigest())
    assert {name: sent[name] for name in ("size", "input_fidelity", "output_format", "output_compression")} == {
        "size": "96x64",
        "input_fidelity": "high",
        "output_format": "webp",
        "output_compression": 60,
    }
    assert "moderation" not in sent
    assert (made.content_type, made.width, made.height) == ("image/webp", 96, 64)
    assert made.usage.input_image_tokens == 300
    assert (made.options.input_fidelity, made.options.size) == ("high", "96x64")


def test_partial_images_of_an_edit_are_shown(ann: ImageClient, stand_in: RunningStandIn, prompt: str) -> None:
    generations = GenerationClient(ann.server, ann.login)
    held = f"{prompt} [[fault:hold=0,1,2]]"
    started = generations.start(held, partial_images=2, **edit_of(ann.create("a castle").guid))
    watch = generations.watch(started.guid)
    for index in range(2):
        stand_in.release(held)
        while not isinstance(event := watch.next(), tuple):
            pass
        assert event[0] == index
    stand_in.release(held)
    assert watch.to_the_end()[-1] == SUCCEEDED
    assert watch.generations[-1].image.origin == pb.ORIGIN_EDITED


def test_a_request_id_gives_the_same_image_after_an_input_is_deleted(
    ann: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    first, second = ann.create("a castle").guid, ann.create("a moat").guid
    request_id = new_guid()
    made = edit(ann, prompt, first, second, request_id=request_id)
    ann.delete(second)
    again = edit(ann, prompt, first, second, request_id=request_id)
    assert again.guid == made.guid
    assert list(again.source_guids) == [first]
    assert stand_in.count(prompt) == 1
    for others in ((second, first), (first,), ()):
        request = pb.CreateImageRequest(prompt=prompt, request_id=request_id, options=SMALL, **edit_of(*others))
        assert ann.refused(request).reason == "REQUEST_ID_REUSED"


# --- Inputs that go, or change, before they are sent -----------------------------------------------------------------


@pytest.fixture(scope="module")
def paused_server(
    tmp_path_factory: pytest.TempPathFactory, stand_in: RunningStandIn
) -> Iterator[tuple[RunningServer, ImageClient]]:
    """A server whose generation worker, a process of its own, tests may stop."""
    settings = asking(stand_in) | {"PIXYPROXY_WORKERS": "2"}
    with running_server(tmp_path_factory.mktemp("paused"), settings) as running:
        yield running, ImageClient(running, running.admin)


Change = Callable[[RunningServer, ImageClient, str], object]


def _flip(server: RunningServer, _: ImageClient, guid: str) -> None:
    path = server.image_file(guid)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _only_detail(server: RunningServer, _: ImageClient, guid: str) -> None:
    """As a server that was killed in the middle of a deletion leaves it."""
    with server.database() as database, database.transaction() as context:
        context.execute("DELETE FROM images WHERE guid = :guid", {"guid": guid})
        context.commit()


@pytest.mark.parametrize(
    ("change", "expected", "message"),
    [
        (
            lambda _, client, guid: client.delete(guid),
            _NOT_FOUND,
            "inputs[1]: The image was deleted before the request was submitted; nothing was generated.",
        ),
        (
            _only_detail,
            _NOT_FOUND,
            "inputs[1]: The image was deleted before the request was submitted; nothing was generated.",
        ),
        (_flip, _DAMAGED, "inputs[1]: The stored bytes of the image are damaged; nothing was generated."),
        (
            lambda server, _, guid: server.image_file(guid).unlink(),
            _DAMAGED,
            "inputs[1]: The stored bytes of the image are damaged; nothing was generated.",
        ),
        (
            lambda server, _, guid: os.truncate(server.image_file(guid), 200),
            _DAMAGED,
            "inputs[1]: The stored bytes of the image are damaged; nothing was generated.",
        ),
        (
            lambda server, _, guid: server.image_file(guid).write_bytes(b""),
            _DAMAGED,
            "inputs[1]: The stored bytes of the image are damaged; nothing was generated.",
        ),
    ],
    ids=["deleted", "half deleted", "flipped", "missing", "truncated", "empty"],
)
def test_an_input_that_changes_after_the_record_costs_nothing(
    paused_server: tuple[RunningServer, ImageClient],
    stand_in: RunningStandIn,
    prompt: str,
    change: Change,
    expected: tuple[grpc.StatusCode, str],
    message: str,
) -> None:
    server, client = paused_server
    generations = GenerationClient(server, server.admin)
    first, second = client.create("a castle").guid, client.create("a moat").guid
    request_id = new_guid()
    worker = server.stop_generation_worker()
    try:
        started = generations.start(prompt, request_id=request_id, **edit_of(first, second))
        change(server, client, second)
    finally:
        os.kill(worker, signal.SIGCONT)
    failed = generations.wait_for(started.guid, FAILED)
    code, reason = expected
    assert (failed.error.code, failed.error.reason, failed.error.message) == (code.name, reason, message)
    assert dict(failed.error.metadata) == {"field": "inputs[1]"}
    assert [one.guid for one in failed.request.inputs] == [first, second]
    # It cost nothing, so that it is tried again, with the same end.
    request = pb.CreateImageRequest(prompt=prompt, request_id=request_id, options=SMALL, **edit_of(first, second))
    refused = client.refused(request)
    assert (refused.code, refused.reason, refused.metadata) == (*expected, {"field": "inputs[1]"})
    assert stand_in.count(prompt) == 0


def test_an_input_that_is_hidden_after_the_record_is_sent(
    paused_server: tuple[RunningServer, ImageClient], stand_in: RunningStandIn, prompt: str
) -> None:
    server, owner = paused_server
    login = server.new_login()
    lent = owner.create_public("lent")
    generations = GenerationClient(server, login)
    worker = server.stop_generation_worker()
    try:
        started = generations.start(prompt, **edit_of(lent.guid))
        owner.update(lent.guid, visibility=pb.VISIBILITY_PRIVATE)
    finally:
        os.kill(worker, signal.SIGCONT)
    ended = generations.wait_for(started.guid, SUCCEEDED)
    assert list(ended.image.source_guids) == []
    assert list(owner.get(ended.image_guid).source_guids) == [lent.guid]
    [sent] = stand_in.submissions(prompt)["requests"]
    assert [one["sha256"] for one in sent["image"]] == [lent.sha256]


def _create_large(ann: ImageClient) -> pb.ImageDetail:
    """Create an image that takes several reads. Only an edit opens its file later: its placeholder is made."""
    image = ann.create(f"a moat {new_guid()} [[fault:large={24 * _MIB}]]")
    wait_until(lambda: ann.placeholder(image.guid), TIMEOUT, "the placeholder")
    return image


def test_an_input_that_is_deleted_while_it_is_sent_is_sent_in_full(
    ann: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    first, second = ann.create("a castle"), _create_large(ann)
    held = f"{prompt} [[fault:body_hold={_MIB}]]"
    call = ann.stub.CreateImage.future(
        pb.CreateImageRequest(prompt=held, options=SMALL, **edit_of(second.guid, first.guid)),
        metadata=ann.metadata,
        timeout=TIMEOUT,
    )
    paths = {ann.server.image_file(image.guid) for image in (first, second)}
    # The second one is read; the first one, which is opened after it, must be open, too.
    wait_until(lambda: paths <= {*ann.server.open_images}, TIMEOUT, "the inputs to be open")
    ann.delete(second.guid)
    ann.delete(first.guid)
    stand_in.release(held)
    made = call.result().image
    [sent] = stand_in.submissions(held)["requests"]
    assert [one["sha256"] for one in sent["image"]] == [second.sha256, first.sha256]
    assert (made.origin, list(made.source_guids)) == (pb.ORIGIN_EDITED, [])
    # The new image is read once more, for its placeholder.
    wait_until(lambda: ann.server.open_images == [], TIMEOUT, "all files to be closed")


def test_an_input_that_is_damaged_while_it_is_sent_leaves_the_request_incomplete(
    ann: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    large = _create_large(ann)
    held = f"{prompt} [[fault:body_hold={_MIB}]]"
    request = pb.CreateImageRequest(prompt=held, options=SMALL, request_id=new_guid(), **edit_of(large.guid))
    call = ann.stub.CreateImage.future(request, metadata=ann.metadata, timeout=TIMEOUT)
    path = ann.server.image_file(large.guid)
    wait_until(lambda: path in ann.server.open_images, TIMEOUT, "the input to be read")
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"damage")
    stand_in.release(held)
    assert call.exception().code() is grpc.StatusCode.DATA_LOSS
    wait_until(lambda: stand_in.count_incomplete(held) == 1, TIMEOUT, "the incomplete body")
    assert stand_in.count(held) == 0
    wait_until(lambda: ann.server.open_images == [], TIMEOUT, "all files to be closed")
    assert GenerationClient(ann.server, ann.login).get(request_id=request.request_id).state == FAILED


def test_an_upload_that_breaks_is_repeated(ann: ImageClient, stand_in: RunningStandIn, prompt: str) -> None:
    large = ann.create(f"a moat {new_guid()} [[fault:large={24 * _MIB}]]")
    broken = f"{prompt} [[fault:body_drop={_MIB}:times=1]]"
    assert edit(ann, broken, large.guid).origin == pb.ORIGIN_EDITED
    assert (stand_in.count_incomplete(broken), stand_in.count(broken)) == (1, 1)


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_sixteen_inputs_take_little_memory(ann: ImageClient, stand_in: RunningStandIn, prompt: str) -> None:
    size, count = 10 * _MIB, 16
    guids = [ann.create(f"{number} {new_guid()} [[fault:large={size}]]").guid for number in range(count)]
    edit(ann, "whatever the first edit takes, it takes now", guids[0])
    # Their placeholders take memory, too.
    wait_until(lambda: all(ann.placeholder(guid) for guid in guids), TIMEOUT, "all placeholders")
    before = most = ann.server.rss
    call = ann.stub.CreateImage.future(
        pb.CreateImageRequest(prompt=prompt, options=SMALL, **edit_of(*guids)), metadata=ann.metadata, timeout=TIMEOUT
    )

    def is_done() -> bool:
        nonlocal most
        most = max(most, ann.server.rss)
        return bool(call.done())

    wait_until(is_done, TIMEOUT, "the edit")
    assert call.result().image.usage.input_image_tokens == 100 * count
    [sent] = stand_in.submissions(prompt)["requests"]
    assert [one["size"] for one in sent["image"]] == [size] * count
    assert most - before < size
    for guid in guids:
        ann.delete(guid)
