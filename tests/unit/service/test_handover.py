"""Orders on their way from workers to a maker and back. Here the maker is a thread, and those that die are played."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from pixyproxy.core import request_context
from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    DBConnectionError,
    OutcomeUnknownError,
    PixyProxyException,
    PromptRefusedError,
    ProviderTimeoutError,
    TooBusyError,
)
from pixyproxy.core.models import (
    MAX_PROMPT_LENGTH,
    Caller,
    Image,
    ImageCreation,
    ImageDetailCreate,
    UserClass,
    Visibility,
)
from pixyproxy.service.handover import Handover, Line
from pixyproxy.service.interfaces import ImageCreatorInterface
from pixyproxy.service.maker import Maker
from pixyproxy.service.remote_creator import RemoteCreator
from tests.support.waiting import wait_until

_TIMEOUT = 30.0
_ALICE = Caller(user_id=7, guid=str(uuid.uuid4()), username="alice", class_key=UserClass.USER)
_NOW = datetime(2026, 11, 21, tzinfo=UTC)

Make = Callable[[ImageCreation, CallScope], Image]


def _creation(prompt: str = "A lighthouse", *, request_id: str | None = None) -> ImageCreation:
    return ImageCreation(detail=ImageDetailCreate(prompt=prompt), request_id=request_id)


def _image(creation: ImageCreation, _: CallScope) -> Image:
    return Image(
        id=1,
        author_id=7,
        guid=str(uuid.uuid4()),
        prompt=creation.detail.prompt,
        filename="a.png",
        tags=(),
        visibility=Visibility.PRIVATE,
        author="alice",
        content_type="image/png",
        size_bytes=1,
        sha256="0" * 64,
        width=1,
        height=1,
        model="m",
        usage=None,
        created_at=_NOW,
        updated_at=_NOW,
    )


@dataclass
class _Creator(ImageCreatorInterface):
    """Does what a test says, and remembers what it was asked for."""

    make: Make = _image
    calls: list[CallScope] = field(default_factory=list)
    authors: list[Caller] = field(default_factory=list)

    def create(self, creation: ImageCreation, author: Caller, call: CallScope) -> Image:
        self.calls.append(call)
        self.authors.append(author)
        return self.make(creation, call)


@pytest.fixture
def handover() -> Iterator[Handover]:
    handover = Handover()
    yield handover
    handover.close()


@contextmanager
def _making(
    handover: Handover,
    creator: _Creator,
    continuing: Callable[[Mapping[str, str]], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Iterator[None]:
    """Have a maker meanwhile, which ends as it does when the last worker has."""
    thread = threading.Thread(target=Maker(handover, creator, continuing).serve)
    thread.start()
    try:
        yield
    finally:
        handover.keep_taking()
        thread.join(_TIMEOUT)
        assert not thread.is_alive()


def _remote(handover: Handover, patience: float = _TIMEOUT, headers: Mapping[str, str] | None = None) -> RemoteCreator:
    return RemoteCreator(handover, lambda: headers or {}, patience)


def _next_line(handover: Handover) -> Line:
    def take() -> Line | None:
        with suppress(BlockingIOError):
            return handover.take_line()
        return None

    return wait_until(take, _TIMEOUT, "a line")


# --- What arrives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["A lighthouse", "🌊" * MAX_PROMPT_LENGTH], ids=["short", "longest"])
def test_an_image_is_made_and_comes_back(handover: Handover, prompt: str) -> None:
    creator = _Creator()
    with _making(handover, creator):
        image = _remote(handover).create(_creation(prompt), _ALICE, CallScope(_TIMEOUT))
    assert image.prompt == prompt
    assert creator.authors == [_ALICE]


def test_an_error_comes_back_as_it_is(handover: Handover, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object) -> Image:
        raise PromptRefusedError("No.", stage="input", categories=["violence"]) from ValueError("the driver's own text")

    caplog.set_level(logging.INFO)
    with _making(handover, _Creator(refuse)), pytest.raises(PromptRefusedError) as raised:
        _remote(handover).create(_creation(), _ALICE, CallScope())
    assert (raised.value.message, raised.value.stage, raised.value.categories) == ("No.", "input", ("violence",))
    # Its cause stays with the maker, which says of what kind it is.
    assert raised.value.__cause__ is None
    assert "PromptRefusedError because of ValueError" in caplog.text
    assert "the driver's own text" not in caplog.text


def test_what_nobody_foresaw_is_logged_by_the_maker(handover: Handover, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> Image:
        raise ZeroDivisionError("inside")

    with _making(handover, _Creator(fail)), pytest.raises(PixyProxyException) as raised:
        _remote(handover).create(_creation(), _ALICE, CallScope())
    assert type(raised.value) is PixyProxyException
    assert "inside" not in raised.value.message
    assert "ZeroDivisionError: inside" in caplog.text


def test_the_maker_works_as_a_part_of_the_call(handover: Handover) -> None:
    seen: list[object] = []

    def look(creation: ImageCreation, call: CallScope) -> Image:
        seen.extend([request_context.request_id.get(), request_context.trace_id.get(), call.remaining()])
        return _image(creation, call)

    @contextmanager
    def continuing(headers: Mapping[str, str]) -> Iterator[None]:
        seen.append(dict(headers))
        yield

    tokens = request_context.request_id.set("host-1"), request_context.trace_id.set("cafe")
    try:
        with _making(handover, _Creator(look), continuing):
            remote = _remote(handover, headers={"traceparent": "00-cafe"})
            remote.create(_creation(), _ALICE, CallScope(_TIMEOUT))
            remote.create(_creation(), _ALICE, CallScope())
    finally:
        request_context.request_id.reset(tokens[0])
        request_context.trace_id.reset(tokens[1])
    headers, request_id, trace_id, remaining, *_, for_ever = seen
    assert (headers, request_id, trace_id) == ({"traceparent": "00-cafe"}, "host-1", "cafe")
    assert isinstance(remaining, float)
    assert 0 < remaining <= _TIMEOUT
    assert for_ever is None


# --- Callers that go -------------------------------------------------------------------------------------------------


def test_a_caller_that_goes_is_gone_for_the_maker_too(handover: Handover) -> None:
    def wait(creation: ImageCreation, call: CallScope) -> Image:
        assert not call.wait(_TIMEOUT)
        raise ProviderTimeoutError("Gone.")

    creator, call = _Creator(wait), CallScope()
    with _making(handover, creator), ThreadPoolExecutor(1) as pool:
        created = pool.submit(_remote(handover).create, _creation(), _ALICE, call)
        wait_until(lambda: creator.calls, _TIMEOUT, "the order to arrive")
        call.leave()
        with pytest.raises(ProviderTimeoutError, match="still being generated"):
            created.result(_TIMEOUT)
        wait_until(lambda: creator.calls[0].is_over, _TIMEOUT, "the maker to learn of it")


def test_a_caller_s_time_that_is_over(handover: Handover) -> None:
    go_on = threading.Event()

    def wait(creation: ImageCreation, call: CallScope) -> Image:
        go_on.wait(_TIMEOUT)
        return _image(creation, call)

    creator = _Creator(wait)
    with _making(handover, creator):
        with pytest.raises(ProviderTimeoutError, match="still being generated"):
            _remote(handover).create(_creation(), _ALICE, CallScope(0.2))
        assert creator.calls[0].is_over
        go_on.set()


def test_callers_of_workers_that_have_gone_are_gone(handover: Handover) -> None:
    def wait(creation: ImageCreation, call: CallScope) -> Image:
        assert not call.wait(_TIMEOUT)
        raise ProviderTimeoutError("Gone.")

    creator = _Creator(wait)
    # The maker ends while an order is carried out, of which nobody waits for the outcome any more.
    with _making(handover, creator):
        line = handover.begin_line()
        line.receive(_TIMEOUT)
        line.send(_remote(handover)._order(_creation(), _ALICE, CallScope()))
        wait_until(lambda: creator.calls, _TIMEOUT, "the order to arrive")
        line.close()
    assert creator.calls[0].is_over


def test_many_orders_at_once_keep_apart(handover: Handover) -> None:
    with _making(handover, _Creator()), ThreadPoolExecutor(32) as pool:
        remote = _remote(handover)
        prompts = [f"picture {number}" for number in range(400)]
        made = pool.map(lambda prompt: remote.create(_creation(prompt), _ALICE, CallScope(_TIMEOUT)).prompt, prompts)
        assert list(made) == prompts


# --- Makers that die -------------------------------------------------------------------------------------------------


def test_an_order_waits_for_a_maker(handover: Handover) -> None:
    with ThreadPoolExecutor(1) as pool:
        created = pool.submit(_remote(handover).create, _creation("early"), _ALICE, CallScope(_TIMEOUT))
        with _making(handover, _Creator()):
            assert created.result(_TIMEOUT).prompt == "early"


def test_without_a_maker_nothing_hangs(handover: Handover) -> None:
    began = time.monotonic()
    with pytest.raises(TooBusyError) as raised:
        _remote(handover, patience=0.2).create(_creation(), _ALICE, CallScope())
    assert raised.value.retry_after
    with pytest.raises(ProviderTimeoutError, match="before the image could be asked for"):
        _remote(handover).create(_creation(), _ALICE, CallScope(0.2))
    assert time.monotonic() - began < _TIMEOUT


def test_where_there_will_be_no_maker_nothing_hangs(handover: Handover) -> None:
    handover.keep_giving()
    with pytest.raises(TooBusyError):
        _remote(handover, patience=0.2).create(_creation(), _ALICE, CallScope())


def test_what_waits_too_long_is_not_made_later(handover: Handover) -> None:
    with pytest.raises(TooBusyError):
        _remote(handover, patience=0.2).create(_creation("too late"), _ALICE, CallScope())
    creator = _Creator()
    with _making(handover, creator):
        # Lines are taken in their order: when the second has its image, the first has been looked at.
        _remote(handover).create(_creation("in time"), _ALICE, CallScope(_TIMEOUT))
    assert len(creator.calls) == 1


def test_more_wait_than_the_queue_takes(handover: Handover) -> None:
    with ThreadPoolExecutor(600) as pool:
        remote = _remote(handover)
        created = [
            pool.submit(remote.create, _creation(f"{number}"), _ALICE, CallScope(_TIMEOUT)) for number in range(600)
        ]
        with _making(handover, _Creator()):
            assert [one.result(_TIMEOUT).prompt for one in created] == [f"{number}" for number in range(600)]


@pytest.mark.parametrize("request_id", [None, str(uuid.uuid4())], ids=["unnamed", "named"])
def test_a_maker_that_dies_before_it_has_the_order(handover: Handover, request_id: str | None) -> None:
    with ThreadPoolExecutor(1) as pool:
        created = pool.submit(_remote(handover).create, _creation(request_id=request_id), _ALICE, CallScope(_TIMEOUT))
        _next_line(handover).close()
        with _making(handover, _Creator()):
            assert created.result(_TIMEOUT).prompt == "A lighthouse"


def _die_with_the_order(handover: Handover) -> None:
    line = _next_line(handover)
    line.send("ready")
    line.receive(_TIMEOUT)
    line.close()


def test_a_maker_that_dies_with_an_order_that_can_be_found_again(handover: Handover) -> None:
    with ThreadPoolExecutor(1) as pool:
        creation = _creation(request_id=str(uuid.uuid4()))
        created = pool.submit(_remote(handover).create, creation, _ALICE, CallScope(_TIMEOUT))
        _die_with_the_order(handover)
        _die_with_the_order(handover)
        with _making(handover, _Creator()):
            assert created.result(_TIMEOUT).prompt == "A lighthouse"


def test_a_maker_that_dies_with_an_order_that_cannot(handover: Handover) -> None:
    with ThreadPoolExecutor(1) as pool:
        created = pool.submit(_remote(handover).create, _creation(), _ALICE, CallScope(_TIMEOUT))
        _die_with_the_order(handover)
        with pytest.raises(OutcomeUnknownError):
            created.result(_TIMEOUT)
        # It is not handed over a second time.
        with pytest.raises(BlockingIOError):
            handover.take_line()


def test_a_system_that_gives_no_thread(handover: Handover, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    refused: list[str] = []

    def refuse_first(thread: threading.Thread) -> None:
        if thread.name == "order" and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_first)
    with _making(handover, _Creator()):
        assert _remote(handover).create(_creation(), _ALICE, CallScope(_TIMEOUT)).prompt == "A lighthouse"
    assert refused


def test_an_error_of_the_database_keeps_when_to_come_back(handover: Handover) -> None:
    def fail(*_: object) -> Image:
        raise DBConnectionError("Away.", retry_after=2.5)

    with _making(handover, _Creator(fail)), pytest.raises(DBConnectionError) as raised:
        _remote(handover).create(_creation(), _ALICE, CallScope())
    assert raised.value.retry_after == 2.5
