"""Both clients alone: the test says what the server answers."""

from __future__ import annotations

import hashlib
import queue
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.client import (
    ContentDamagedError,
    Cost,
    CredentialsError,
    DeadlineExceededError,
    FieldViolation,
    GenerationOptions,
    InvalidRequestError,
    Keepalive,
    NotFoundError,
    Origin,
    OutcomeUnknownError,
    PixyProxyClient,
    PixyProxyClientError,
    RetryPolicy,
    TryLaterError,
    UnavailableError,
    Usage,
    Visibility,
)
from pixyproxy.core import exceptions as exc
from pixyproxy.resource.mapping import from_image
from pixyproxy.resource.statuses import status_of
from tests.faults.tcp_proxy import tcp_proxy
from tests.support.client_kinds import MakeClient
from tests.support.scripted_server import Rpc, ScriptedServer, scripted_server
from tests.support.waiting import wait_until
from tests.unit.resource.fakes import GUID, make_image

REQUEST_ID = "host-1"
TIMEOUT = 60.0  # as busy as tests beside these may keep the machine
DATA = b"picture" * 1000
INFO = pb.ContentInfo(
    guid=GUID, filename="x.png", content_type="image/png", size_bytes=len(DATA), sha256=hashlib.sha256(DATA).hexdigest()
)
DETAIL = from_image(make_image())
SOON: dict[str, Any] = {"retry_after": 0.01}


class Play:
    """A client in a thread, and the server's side of its calls."""

    def __init__(self, server: ScriptedServer, client: PixyProxyClient) -> None:
        self.server = server
        self.client = client
        self._last: Future[Any] = Future()

    def begin(self, call: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(call())
            except Exception as error:
                future.set_exception(error)

        # One whose call nobody answers, because a test has failed, must not keep the run from ending.
        threading.Thread(target=run, daemon=True).start()
        self._last = future
        return future

    def take(self, method: str) -> tuple[Any, Rpc]:
        """Wait for the next call, and return its request and what answers it."""
        try:
            rpc = self.server.take(method, TIMEOUT)
        except queue.Empty as error:
            outcome = self._last.exception() if self._last.done() else "none yet"
            raise TimeoutError(f"no call of {method} came; the outcome of the last one: {outcome!r}") from error
        return rpc.request, rpc

    def has_more(self, method: str) -> bool:
        """Whether there is a further call that nobody has taken."""
        return self.server.has_more(method)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def play(server: ScriptedServer, make_client: MakeClient) -> Iterator[Play]:
    with make_client(server.address, timeout=TIMEOUT) as client:
        yield Play(server, client)


def answer(rpc: Rpc, response: Message) -> None:
    rpc.send_initial_metadata(("x-request-id", REQUEST_ID))
    rpc.send(response)
    rpc.end()


def refuse(rpc: Rpc, error: BaseException) -> None:
    """End a call as the server does, before any message."""
    rpc.send_initial_metadata(("x-request-id", REQUEST_ID))
    end_with(rpc, error)


def end_with(rpc: Rpc, error: BaseException) -> None:
    status = status_of(error, REQUEST_ID)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    rpc.end(code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))


def cut(rpc: Rpc, *, was_taken: bool) -> None:
    """End a call as a connection does that breaks."""
    if was_taken:
        rpc.send_initial_metadata(("x-request-id", REQUEST_ID))
    rpc.end(grpc.StatusCode.UNAVAILABLE, "Socket closed")


def failure(call: Future[Any]) -> PixyProxyClientError:
    with pytest.raises(PixyProxyClientError) as caught:
        call.result(TIMEOUT)
    return caught.value


# --- Requests and answers --------------------------------------------------------------------------------------------


def test_a_detail_is_read_whole(play: Play) -> None:
    call = play.begin(lambda: play.client.get_image(GUID))
    request, rpc = play.take("GetImage")
    answer(rpc, pb.GetImageResponse(image=DETAIL))

    image, original = call.result(TIMEOUT), make_image()
    assert request == pb.GetImageRequest(guid=GUID)
    for name in image.__slots__:
        if name not in ("usage", "options", "cost"):
            assert getattr(image, name) == getattr(original, name), name
    assert original.cost is not None
    assert image.cost == Cost(original.cost.nano_usd, original.cost.price_list)
    assert original.usage is not None
    assert asdict(image.usage) == dict(original.usage)
    assert image.options == GenerationOptions(
        model="a-model", quality="low", output_format="webp", output_compression=0
    )


def test_options_of_a_detail_are_all_read(play: Play) -> None:
    fields: dict[str, Any] = {
        field.name: 1 if field.type == field.TYPE_INT32 else field.name
        for field in pb.GenerationOptions.DESCRIPTOR.fields
    }
    options = pb.GenerationOptions(**fields)
    call = play.begin(lambda: play.client.get_image(GUID))
    _, rpc = play.take("GetImage")
    detail = pb.ImageDetail()
    detail.CopyFrom(DETAIL)
    detail.options.CopyFrom(options)
    answer(rpc, pb.GetImageResponse(image=detail))

    read = call.result(TIMEOUT).options
    assert asdict(read) == read.as_dict() == fields
    assert GenerationOptions(output_compression=0).as_dict() == {"output_compression": 0}


def test_a_detail_of_the_first_release_has_no_options(play: Play) -> None:
    call = play.begin(lambda: play.client.get_image(GUID))
    _, rpc = play.take("GetImage")
    detail = pb.ImageDetail()
    detail.CopyFrom(DETAIL)
    for name in ("options", "origin", "source_guids"):
        detail.ClearField(name)
    detail.usage.CopyFrom(pb.Usage(total_tokens=3))
    answer(rpc, pb.GetImageResponse(image=detail))

    image = call.result(TIMEOUT)
    assert (image.options, image.origin, image.source_guids) == (None, Origin.GENERATED, ())
    assert image.usage == Usage(0, 0, 3)
    assert hash(image)


def test_a_creation_says_what_it_is_given_and_has_a_request_id_of_its_own(play: Play) -> None:
    requests = []
    for _ in range(2):
        call = play.begin(
            lambda: play.client.create_image(
                "a castle",
                tags=["a"],
                visibility=Visibility.PUBLIC,
                filename="c.png",
                size="64x64",
                quality="low",
                moderation="low",
                output_compression=0,
                input_fidelity="high",
            )
        )
        request, rpc = play.take("CreateImage")
        answer(rpc, pb.CreateImageResponse(image=DETAIL))
        assert call.result(TIMEOUT).guid == GUID
        requests.append(request)

    first, second = requests
    assert uuid.UUID(first.request_id) != uuid.UUID(second.request_id)
    first.request_id = ""
    assert first == pb.CreateImageRequest(
        prompt="a castle",
        tags=["a"],
        visibility=pb.VISIBILITY_PUBLIC,
        filename="c.png",
        options=pb.GenerationOptions(
            size="64x64", quality="low", moderation="low", output_compression=0, input_fidelity="high"
        ),
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tags": []}, pb.UpdateImageRequest(update_mask={"paths": ["tags"]})),
        ({"filename": "x"}, pb.UpdateImageRequest(filename="x", update_mask={"paths": ["filename"]})),
        (
            {"visibility": Visibility.PRIVATE, "tags": ["a"]},
            pb.UpdateImageRequest(
                tags=["a"], visibility="VISIBILITY_PRIVATE", update_mask={"paths": ["tags", "visibility"]}
            ),
        ),
    ],
    ids=str,
)
def test_an_update_names_only_what_is_given(play: Play, changes: Any, expected: pb.UpdateImageRequest) -> None:
    call = play.begin(lambda: play.client.update_image(GUID, **changes))
    request, rpc = play.take("UpdateImage")
    answer(rpc, pb.UpdateImageResponse(image=DETAIL))
    call.result(TIMEOUT)

    expected.guid = GUID
    assert request == expected


def test_pages_are_asked_for_as_they_are_needed(play: Play) -> None:
    images = play.client.list_images(
        page_size=2, tags=["a"], author="ann", created_after=datetime(2026, 1, 1, tzinfo=UTC)
    )
    call = play.begin(lambda: [next(images), next(images)])
    first, rpc = play.take("ListImages")
    answer(rpc, pb.ListImagesResponse(images=[DETAIL, DETAIL], next_page_token="more"))
    assert len(call.result(TIMEOUT)) == 2
    assert not play.has_more("ListImages")

    rest = play.begin(lambda: list(images))
    second, rpc = play.take("ListImages")
    answer(rpc, pb.ListImagesResponse(next_page_token="even more"))  # A page without images need not be the last.
    third, rpc = play.take("ListImages")
    answer(rpc, pb.ListImagesResponse(images=[DETAIL]))
    assert len(rest.result(TIMEOUT)) == 1
    assert (first.page_token, second.page_token, third.page_token) == ("", "more", "even more")
    second.page_token = ""
    assert first == second
    assert (first.page_size, first.author, first.created_after.seconds) == (2, "ann", 1_767_225_600)


def test_a_search_is_a_list_with_words(play: Play) -> None:
    call = play.begin(lambda: list(play.client.search_images("a castle", tags=["a"])))
    request, rpc = play.take("ListImages")
    answer(rpc, pb.ListImagesResponse())
    assert call.result(TIMEOUT) == []
    assert request == pb.ListImagesRequest(prompt="a castle", tags=["a"])


def test_a_time_without_a_zone_is_refused(play: Play) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        play.client.list_page(created_after=datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("tags", lambda client: client.create_image("a castle", tags="sea")),
        ("inputs", lambda client: client.create_generation("a castle", inputs=GUID)),
        ("tags", lambda client: client.import_image(b"bytes", tags="sea")),
        ("tags", lambda client: client.update_image(GUID, tags="sea")),
        ("tags", lambda client: list(client.list_images(tags="sea"))),
        ("guids", lambda client: list(client.get_thumbnails(GUID))),
    ],
)
def test_a_string_in_place_of_several_is_refused(play: Play, name: str, call: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a sequence of strings, not a string"):
        call(play.client)


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exc.ImageNotFoundError(GUID), NotFoundError),
        (exc.CredentialsInvalidError("wrong"), CredentialsError),
        (exc.CredentialsMissingError(), CredentialsError),
        (exc.NotYoursError("no"), CredentialsError),
        (exc.TooManySignInsError("no"), TryLaterError),
        (exc.PromptRefusedError("no", categories=["violence"]), InvalidRequestError),
        (exc.RequestIdReusedError(), InvalidRequestError),
        (exc.OffsetOutOfRangeError(9, 5), InvalidRequestError),
        (exc.OutcomeUnknownError("no"), OutcomeUnknownError),
        (exc.ProviderUnavailableError("no"), UnavailableError),
        (exc.ProviderTimeoutError("no"), DeadlineExceededError),
        (exc.ContentDamagedError("no"), ContentDamagedError),
        (exc.ProviderQuotaError("no"), PixyProxyClientError),
        (exc.ProviderMisconfiguredError("no"), PixyProxyClientError),
        (exc.StorageFullError("no"), PixyProxyClientError),
        (RuntimeError("secret"), PixyProxyClientError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_say_what_can_be_done_and_are_not_repeated(play: Play, error: Exception, kind: type) -> None:
    call = play.begin(lambda: play.client.create_image("a castle"))
    request, rpc = play.take("CreateImage")
    refuse(rpc, error)

    caught, status = failure(call), status_of(error, REQUEST_ID)
    assert type(caught) is kind
    assert (caught.message, caught.request_id) == (status.message, REQUEST_ID)
    assert caught.reason
    assert caught.creation_request_id == request.request_id
    assert not play.has_more("CreateImage")


def test_what_an_error_brings(play: Play) -> None:
    call = play.begin(lambda: play.client.create_image("x"))
    refuse(play.take("CreateImage")[1], exc.InvalidFieldError.of("tags[3]", "must not be blank"))
    caught = failure(call)
    assert (caught.code, caught.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert caught.violations == (FieldViolation("tags[3]", "must not be blank"),)

    call = play.begin(lambda: play.client.create_image("x"))
    refuse(play.take("CreateImage")[1], exc.PromptRefusedError("no", stage="input", categories=["violence"]))
    assert failure(call).metadata == {"stage": "input", "categories": "violence"}

    call = play.begin(lambda: play.client.create_image("x"))
    refuse(play.take("CreateImage")[1], exc.TooManySignInsError("no", retry_after=12.5))
    assert failure(call).retry_after == 12.5


@pytest.mark.parametrize("trailing", [(), (("grpc-status-details-bin", b"\xff"),)], ids=["none", "broken"])
def test_an_error_of_something_in_between_has_no_reason(play: Play, trailing: Any) -> None:
    call = play.begin(lambda: play.client.get_image(GUID))
    rpc = play.take("GetImage")[1]
    rpc.end(grpc.StatusCode.PERMISSION_DENIED, "by the proxy", trailing)
    caught = failure(call)
    assert type(caught) is CredentialsError
    assert (caught.message, caught.reason, caught.request_id) == ("by the proxy", "", "")


# --- Trying again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        exc.TooBusyError("no", **SOON),
        exc.ProviderRateLimitedError("no", **SOON),
        exc.ProviderUnavailableError("no", **SOON),
        exc.DBConnectionError("no", **SOON),
        exc.ConflictError("no"),
        None,
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_creation_is_asked_for_again_with_the_same_request_id(play: Play, error: Exception | None) -> None:
    call = play.begin(lambda: play.client.create_image("a castle"))
    requests = []
    for _ in range(3):
        request, rpc = play.take("CreateImage")
        requests.append(request)
        if error is None:
            cut(rpc, was_taken=True)
        else:
            refuse(rpc, error)
    request, rpc = play.take("CreateImage")
    answer(rpc, pb.CreateImageResponse(image=DETAIL))

    assert call.result(TIMEOUT).guid == GUID
    assert requests == [request] * 3


def test_once_the_server_was_there_it_may_be_away_for_a_while(play: Play) -> None:
    call = play.begin(lambda: play.client.create_image("a castle"))
    cut(play.take("CreateImage")[1], was_taken=True)
    cut(play.take("CreateImage")[1], was_taken=False)
    answer(play.take("CreateImage")[1], pb.CreateImageResponse(image=DETAIL))
    assert call.result(TIMEOUT).guid == GUID


@pytest.mark.parametrize("method", ["GetImage", "CreateImage"])
@pytest.mark.parametrize("attempts", [1, 3, 5])
def test_a_server_that_never_was_there_is_given_up(
    server: ScriptedServer, make_client: MakeClient, method: str, attempts: int
) -> None:
    policy = RetryPolicy(unanswered_attempts=attempts, first_backoff=0.001)
    with make_client(server.address, timeout=TIMEOUT, retry=policy) as client:
        play = Play(server, client)
        call = play.begin(lambda: client.get_image(GUID) if method == "GetImage" else client.create_image("a castle"))
        requests = []
        for _ in range(attempts):
            request, rpc = play.take(method)
            requests.append(request)
            cut(rpc, was_taken=False)
        assert type(failure(call)) is UnavailableError
        assert not play.has_more(method)
        assert requests == [requests[0]] * attempts


def test_a_call_has_as_many_attempts_as_the_policy_says(server: ScriptedServer, make_client: MakeClient) -> None:
    with make_client(server.address, timeout=TIMEOUT, retry=RetryPolicy(attempts=2)) as client:
        play = Play(server, client)
        call = play.begin(lambda: client.get_image(GUID))
        for _ in range(2):
            refuse(play.take("GetImage")[1], exc.TooBusyError("no", **SOON))
        assert type(failure(call)) is TryLaterError

        call = play.begin(lambda: b"".join(client.stream_content(GUID)))
        for part in (DATA[:1000], DATA[1000:2000]):
            rpc = play.take("GetImageContent")[1]
            send(rpc, part)
            break_off(rpc)
        assert type(failure(call)) is UnavailableError
    assert not play.has_more("GetImage")
    assert not play.has_more("GetImageContent")


def test_what_comes_too_late_is_not_waited_for(play: Play) -> None:
    call = play.begin(lambda: play.client.create_image("a castle", timeout=5))
    refuse(play.take("CreateImage")[1], exc.ProviderRateLimitedError("no", retry_after=5))
    caught = failure(call)
    assert (type(caught), caught.retry_after) == (TryLaterError, 5)
    assert not play.has_more("CreateImage")


@pytest.mark.parametrize("code", [grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL])
def test_what_a_proxy_lost_in_the_middle_of_an_answer_is_repeated(play: Play, code: grpc.StatusCode) -> None:
    call = play.begin(lambda: play.client.get_image(GUID))
    rpc = play.take("GetImage")[1]
    rpc.send_initial_metadata(("x-request-id", REQUEST_ID))
    rpc.end(code, "Stream removed")
    answer(play.take("GetImage")[1], pb.GetImageResponse(image=DETAIL))
    assert call.result(TIMEOUT).guid == GUID


@pytest.mark.parametrize("error", [exc.DBConnectionError("no", **SOON), None], ids=["database", "cut"])
def test_a_deletion_that_may_be_done_is_not_repeated(play: Play, error: Exception | None) -> None:
    call = play.begin(lambda: play.client.delete_image(GUID))
    rpc = play.take("DeleteImage")[1]
    if error is None:
        cut(rpc, was_taken=True)
    else:
        refuse(rpc, error)
    assert type(failure(call)) is UnavailableError
    assert not play.has_more("DeleteImage")


@pytest.mark.parametrize("error", [exc.TooBusyError("no", **SOON), exc.ConflictError("no")], ids=["busy", "conflict"])
def test_a_deletion_of_which_nothing_was_done_is_repeated(play: Play, error: Exception) -> None:
    call = play.begin(lambda: play.client.delete_image(GUID))
    refuse(play.take("DeleteImage")[1], error)
    answer(play.take("DeleteImage")[1], pb.DeleteImageResponse())
    assert call.result(TIMEOUT) is None


# --- The bytes -------------------------------------------------------------------------------------------------------


def send(rpc: Rpc, *parts: bytes, info: pb.ContentInfo = INFO) -> None:
    rpc.send_initial_metadata(("x-request-id", REQUEST_ID))
    rpc.send(pb.GetImageContentResponse(info=info))
    for part in parts:
        rpc.send(pb.GetImageContentResponse(data=part))


def break_off(rpc: Rpc, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
    rpc.end(code, "Socket closed")


def test_bytes_go_on_where_they_broke_off(play: Play) -> None:
    call = play.begin(lambda: b"".join(play.client.stream_content(GUID)))
    first, rpc = play.take("GetImageContent")
    send(rpc, DATA[:1000], DATA[1000:1500])
    break_off(rpc)
    second, rpc = play.take("GetImageContent")
    cut(rpc, was_taken=False)
    third, rpc = play.take("GetImageContent")
    send(rpc, DATA[1500:])
    rpc.end()

    assert call.result(TIMEOUT) == DATA
    assert [request.read_offset for request in (first, second, third)] == [0, 1500, 1500]


def test_a_part_goes_on_with_what_remains_of_it(play: Play) -> None:
    call = play.begin(lambda: b"".join(play.client.stream_content(GUID, read_offset=10, read_limit=100)))
    rpc = play.take("GetImageContent")[1]
    send(rpc, DATA[10:40])
    break_off(rpc)
    request, rpc = play.take("GetImageContent")
    send(rpc, DATA[40:110])
    break_off(rpc)  # All is there: a further call without a limit would mean the rest of the image.

    assert call.result(TIMEOUT) == DATA[10:110]
    assert (request.read_offset, request.read_limit) == (40, 70)
    assert not play.has_more("GetImageContent")


@pytest.mark.parametrize("data", [DATA[:-1], DATA[:-1] + b"?", DATA + b"more", b""], ids=["short", "wrong", "long", ""])
def test_bytes_that_are_not_the_images_are_an_error(play: Play, data: bytes) -> None:
    call = play.begin(lambda: list(play.client.stream_content(GUID)))
    rpc = play.take("GetImageContent")[1]
    send(rpc, data)
    rpc.end()
    assert type(failure(call)) is ContentDamagedError


def test_an_image_that_became_another_one_is_an_error(play: Play) -> None:
    call = play.begin(lambda: list(play.client.stream_content(GUID)))
    rpc = play.take("GetImageContent")[1]
    send(rpc, DATA[:1000])
    break_off(rpc)
    other = pb.ContentInfo(guid=GUID, size_bytes=len(DATA), sha256="0" * 64)
    send(play.take("GetImageContent")[1], info=other)
    assert type(failure(call)) is ContentDamagedError


def test_bytes_that_the_caller_holds_do_not_come(play: Play) -> None:
    call = play.begin(lambda: play.client.stream_content(GUID, if_none_match=INFO.sha256))
    request, rpc = play.take("GetImageContent")
    held = pb.ContentInfo()
    held.CopyFrom(INFO)
    held.not_modified = True
    send(rpc, info=held)
    rpc.end()
    stream = call.result(TIMEOUT)
    assert request.if_none_match == INFO.sha256
    assert stream.info.not_modified
    assert list(stream) == []


def part_of(folder: Path) -> Path:
    return folder / f".pixyproxy-{GUID}.part"


def test_a_file_is_there_whole_or_not_at_all(play: Play, tmp_path: Path) -> None:
    path, told = tmp_path / "picture.png", list[tuple[int, int]]()
    call = play.begin(lambda: play.client.fetch_content(GUID, path, on_progress=lambda *now: told.append(now)))
    rpc = play.take("GetImageContent")[1]
    send(rpc, DATA[:1000])
    break_off(rpc, grpc.StatusCode.PERMISSION_DENIED)
    assert type(failure(call)) is CredentialsError
    assert list(tmp_path.iterdir()) == [part_of(tmp_path)]

    call = play.begin(lambda: play.client.fetch_content(GUID, path, on_progress=lambda *now: told.append(now)))
    request, rpc = play.take("GetImageContent")
    send(rpc, DATA[1000:])
    rpc.end()
    assert call.result(TIMEOUT).sha256 == INFO.sha256
    assert request.read_offset == 1000
    assert path.read_bytes() == DATA
    assert list(tmp_path.iterdir()) == [path]
    assert told == [(1000, 7000), (7000, 7000)]


@pytest.mark.parametrize("left", [b"?" * 1000, DATA + b"more"], ids=["wrong", "long"])
def test_what_is_left_of_something_else_is_thrown_away(play: Play, tmp_path: Path, left: bytes) -> None:
    part_of(tmp_path).write_bytes(left)
    path = tmp_path / "picture.png"
    call = play.begin(lambda: play.client.fetch_content(GUID, path))
    request, rpc = play.take("GetImageContent")
    assert request.read_offset == len(left)
    if len(left) > len(DATA):
        refuse(rpc, exc.OffsetOutOfRangeError(9, 5))
    else:
        send(rpc, DATA[len(left) :])
        rpc.end()
    request, rpc = play.take("GetImageContent")
    assert request.read_offset == 0
    send(rpc, DATA)
    rpc.end()
    call.result(TIMEOUT)
    assert path.read_bytes() == DATA


def test_damaged_bytes_leave_nothing(play: Play, tmp_path: Path) -> None:
    call = play.begin(lambda: play.client.fetch_content(GUID, tmp_path / "picture.png"))
    rpc = play.take("GetImageContent")[1]
    send(rpc, DATA[:-1] + b"?")
    rpc.end()
    assert type(failure(call)) is ContentDamagedError
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays_as_it_is(play: Play, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        play.client.fetch_content(GUID, path)
    assert path.read_text() == "mine"
    call = play.begin(lambda: play.client.fetch_content(GUID, path, overwrite=True))
    rpc = play.take("GetImageContent")[1]
    send(rpc, DATA)
    rpc.end()
    call.result(TIMEOUT)
    assert path.read_bytes() == DATA


def test_one_image_is_saved_into_a_folder_by_one_at_a_time(play: Play, tmp_path: Path) -> None:
    call = play.begin(lambda: play.client.fetch_content(GUID, tmp_path / "one.png"))
    rpc = play.take("GetImageContent")[1]
    with pytest.raises(TryLaterError, match="in progress"):
        play.client.fetch_content(GUID, tmp_path / "two.png")
    send(rpc, DATA)
    rpc.end()
    call.result(TIMEOUT)
    assert (tmp_path / "one.png").read_bytes() == DATA


def test_a_link_does_not_lead_the_bytes_elsewhere(play: Play, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    part_of(tmp_path).symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic link"):
        play.client.fetch_content(GUID, tmp_path / "picture.png")
    assert elsewhere.read_text() == "mine"


def test_a_guid_is_no_path(play: Play, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="UUID"):
        play.client.fetch_content("../../x", tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []


# --- The connection --------------------------------------------------------------------------------------------------


def test_options_of_grpc_go_before_the_clients_own(server: ScriptedServer, make_client: MakeClient) -> None:
    options = {"grpc.primary_user_agent": "gallery/2", "grpc.max_receive_message_length": 100}
    with make_client(server.address, timeout=TIMEOUT, channel_options=options) as client:
        play = Play(server, client)
        call = play.begin(lambda: client.get_image(GUID))
        rpc = play.take("GetImage")[1]
        answer(rpc, pb.GetImageResponse(image=DETAIL))
        assert str(rpc.metadata["user-agent"]).startswith("gallery/2 ")
        assert "larger than max (" in failure(call).message


def test_a_connection_that_is_gone_without_a_word_is_found_out(server: ScriptedServer, make_client: MakeClient) -> None:
    host, _, port = server.address.rpartition(":")
    with (
        tcp_proxy(host, int(port)) as proxy,
        make_client(
            f"127.0.0.1:{proxy.port}",
            timeout=TIMEOUT,
            keepalive=Keepalive(time=0.2, timeout=0.2),
            retry=RetryPolicy(attempts=1),
        ) as client,
    ):
        play = Play(server, client)
        call = play.begin(lambda: client.create_image("a castle"))
        play.take("CreateImage")
        proxy.silence()
        assert type(failure(call)) is UnavailableError


def test_a_closed_client_makes_no_calls(make_client: MakeClient) -> None:
    client = make_client("127.0.0.1:1")
    with client:
        pass
    with pytest.raises(ValueError, match="closed"):
        client.get_image(GUID)


@pytest.mark.parametrize("is_pausing", [False, True])
def test_who_waits_for_an_image_when_the_client_is_closed_can_repeat_the_request(
    server: ScriptedServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture, is_pausing: bool
) -> None:
    caplog.set_level("INFO")
    with make_client(server.address, timeout=TIMEOUT) as client:
        play = Play(server, client)
        call = play.begin(lambda: client.create_image("a castle"))
        request, rpc = play.take("CreateImage")
        if is_pausing:
            refuse(rpc, exc.StorageUnavailableError("Away.", retry_after=5 * TIMEOUT))
            wait_until(lambda: "Trying again in" in caplog.text, TIMEOUT, "the pause")
        client.close()
        error = failure(call)
    assert (type(error), error.creation_request_id) == (UnavailableError, request.request_id)
    assert not play.has_more("CreateImage")


@pytest.mark.parametrize("is_pausing", [False, True])
@pytest.mark.parametrize("method", ["GetImageContent", "WatchGeneration"])
def test_who_reads_a_stream_when_the_client_is_closed_gets_an_error_of_the_client(
    server: ScriptedServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture, is_pausing: bool, method: str
) -> None:
    caplog.set_level("INFO")
    received = threading.Event()

    def read(client: PixyProxyClient) -> None:
        stream = client.stream_content(GUID) if method == "GetImageContent" else client.watch_generation(GUID)
        for _ in stream:
            received.set()

    with make_client(server.address, timeout=TIMEOUT) as client:
        play = Play(server, client)
        call = play.begin(lambda: read(client))
        rpc = play.take(method)[1]
        if method == "GetImageContent":
            send(rpc, DATA[:1000])
        else:
            rpc.send(gpb.WatchGenerationResponse(generation=gpb.Generation(state="GENERATION_STATE_QUEUED")))
        assert received.wait(TIMEOUT)
        if is_pausing:
            end_with(rpc, exc.StorageUnavailableError("Away.", retry_after=5 * TIMEOUT))
            wait_until(lambda: "Trying again in" in caplog.text, TIMEOUT, "the pause")
        client.close()
        assert type(failure(call)) is UnavailableError
    assert not play.has_more(method)
