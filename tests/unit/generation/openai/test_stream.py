"""Streamed generations: what is shown meanwhile, what is the image, and what every fault means for billing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from mmap import PAGESIZE

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixyproxy.core.exceptions import (
    OutcomeUnknownError,
    PromptRefusedError,
    ProviderRequestInvalidError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    UnreadableAnswerError,
)
from pixyproxy.core.models import PartialImage
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest
from pixyproxy.generation.openai.answer import MAX_BODY, kept_events
from pixyproxy.generation.openai.client import OpenAIGenerator, _is_the_end, make_client
from tests.support.openai_stand_in import RunningStandIn, Submission, make_partial, make_picture
from tests.unit.generation.openai.conftest import TIMEOUT, open_generator
from tests.unit.generation.openai.test_client import fail, request, with_message


@pytest.fixture
def streaming_generator(stand_in: RunningStandIn) -> Iterator[OpenAIGenerator]:
    """A generator that asks for a stream always."""
    yield from open_generator(stand_in.base_url, always_streams=True)


def asking(fault: str = "", partial_images: int = 2) -> GenerationRequest:
    return request(fault, size="64x64", partial_images=partial_images)


def watched(generator: OpenAIGenerator, asked: GenerationRequest) -> tuple[GeneratedImage, list[PartialImage]]:
    partials: list[PartialImage] = []
    return generator.generate(asked, partials.append), partials


def sent(asked: GenerationRequest) -> Submission:
    return Submission({"prompt": asked.prompt, "size": "64x64"}, {}, 1)


def expected_partials(asked: GenerationRequest, *indexes: int) -> list[PartialImage]:
    return [
        PartialImage(index=index, content_type="image/png", data=make_partial(sent(asked), index)) for index in indexes
    ]


# --- Events ----------------------------------------------------------------------------------------------------------


def events(*chunks: bytes) -> list[bytes]:
    return [room[:size] for room, size in kept_events(chunks, MAX_BODY)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"data: one\n\ndata: two\n\n", [b"one", b"two"]),
        (b"data: one\r\n\r\ndata: two\r\n\r\n", [b"one", b"two"]),
        (b"event: e\ndata: one\nid: 7\n\n", [b"one"]),
        (b"event: e\r\ndata: one\r\nid: 7\r\n\r\n", [b"one"]),
        (b"data:one\ndata:  two\ndata\ndata:\n\n", [b"one\n two\n"]),
        (b": keepalive\n\n:\n\ndata: one\n\n", [b"one"]),
        (b"data: one\n\ndata: two", [b"one", b"two"]),
        (b"data: one\n\ndata: two\n", [b"one", b"two"]),
        (b"data: one\n\ndata: two\r\n", [b"one", b"two"]),
        (b"\n\n\n\ndata: one\n\n\n\n", [b"one"]),
        (b"database: none\n\nevent: data: none\n\n", []),
        (b"data: a data: b\n\n", [b"a data: b"]),
        (b"", []),
    ],
)
def test_events_are_found_however_they_are_written_and_cut(body: bytes, expected: list[bytes]) -> None:
    assert events(body) == expected
    assert events(*(bytes([byte]) for byte in body)) == expected
    for at in range(len(body)):
        assert events(body[:at], body[at:]) == expected


@given(
    data=st.lists(
        st.binary(min_size=1).filter(lambda data: b"\n" not in data and b"\r" not in data and data[:1] != b" ")
    ),
    cuts=st.lists(st.integers(0, 2000)),
    end=st.sampled_from([b"\n", b"\r\n"]),
)
def test_events_do_not_depend_on_chunks(data: list[bytes], cuts: list[int], end: bytes) -> None:
    body = b"".join(b"data: " + one + end * 2 for one in data)
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    assert events(*(body[start:stop] for start, stop in pairwise(places))) == data


def test_an_event_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        list(kept_events([b"data: " + bytes(60), bytes(60)], 100))


def test_an_event_may_fill_the_memory() -> None:
    whole = b"x" * (2 * PAGESIZE - 8)
    event = b"data: " + whole + b"\n\n"
    assert [room[:size] for room, size in kept_events([event], len(event))] == [whole]


# --- What is asked and shown -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("partial_images", [1, 2, 3])
def test_partial_images_are_shown_and_the_completed_one_is_the_image(
    generator: OpenAIGenerator, stand_in: RunningStandIn, partial_images: int
) -> None:
    asked = asking(partial_images=partial_images)
    image, partials = watched(generator, asked)
    assert bytes(image.data) == make_picture(sent(asked))
    assert (image.content_type, image.width, image.height) == ("image/png", 64, 64)
    assert image.usage is not None
    assert partials == expected_partials(asked, *range(partial_images))
    [submission] = stand_in.submissions(asked.prompt)["requests"]
    assert (submission["stream"], submission["partial_images"]) == (True, partial_images)


def test_nothing_is_streamed_unasked(generator: OpenAIGenerator, stand_in: RunningStandIn) -> None:
    asked = asking(partial_images=0)
    assert watched(generator, asked)[1] == []
    assert not {"stream", "partial_images"} & stand_in.submissions(asked.prompt)["requests"][0].keys()


@pytest.mark.parametrize("fault", ["", "stream_unasked"])
def test_a_generator_that_streams_always_shows_nothing_unasked(
    streaming_generator: OpenAIGenerator, stand_in: RunningStandIn, fault: str
) -> None:
    asked = asking(fault, partial_images=0)
    image, partials = watched(streaming_generator, asked)
    assert (bytes(image.data), partials) == (make_picture(sent(asked)), [])
    [submission] = stand_in.submissions(asked.prompt)["requests"]
    assert (submission["stream"], submission["partial_images"]) == (True, 0)


def test_a_partial_image_is_shown_before_the_next_one_comes(
    generator: OpenAIGenerator, stand_in: RunningStandIn
) -> None:
    asked = asking("hold=0,1,2")
    shown: list[int] = []
    is_shown = threading.Semaphore(0)

    def show(partial: PartialImage) -> None:
        shown.append(partial.index)
        is_shown.release()

    with ThreadPoolExecutor(1) as pool:
        generating = pool.submit(generator.generate, asked, show)
        for index in range(2):
            stand_in.release(asked.prompt)
            assert is_shown.acquire(timeout=TIMEOUT)
            assert shown == list(range(index + 1))
        assert not generating.done()
        stand_in.release(asked.prompt)
        assert bytes(generating.result(TIMEOUT).data) == make_picture(sent(asked))


@pytest.mark.parametrize(
    "form",
    ["crlf", "unterminated", "comments", "multiline", "odd_type", "joined", "bytes", "done", "repeated", "ignored"],
)
def test_a_stream_is_read_in_every_form(generator: OpenAIGenerator, stand_in: RunningStandIn, form: str) -> None:
    asked = asking(f"stream_{form}")
    image, partials = watched(generator, asked)
    assert bytes(image.data) == make_picture(sent(asked))
    indexes = {"repeated": (0, 0, 1, 1), "ignored": ()}.get(form, (0, 1))
    assert partials == expected_partials(asked, *indexes)
    assert stand_in.count(asked.prompt) == 1


@pytest.mark.parametrize("damage", ["stream_empty=0", "stream_bad_base64=0", "stream_truncated=0"])
def test_a_damaged_partial_image_is_left_out(generator: OpenAIGenerator, damage: str) -> None:
    asked = asking(damage)
    image, partials = watched(generator, asked)
    assert bytes(image.data) == make_picture(sent(asked))
    assert partials == expected_partials(asked, 1)


def test_a_damaged_partial_image_is_not_taken_for_the_end_that_came_with_it() -> None:
    chunk = b'data: {"type": "image_generation.partial_image"\n\ndata: {"type": "image_generation.completed"}\n\n'
    ends = [_is_the_end(ValueError("damaged"), room, size) for room, size in kept_events([chunk], MAX_BODY)]
    assert ends == [False, True]


def test_a_large_stream_arrives_whole(generator: OpenAIGenerator) -> None:
    asked = request("", size="2048x2048", quality="low", output_format="png", partial_images=3)
    image, partials = watched(generator, asked)
    assert (image.width, image.height, len(partials)) == (2048, 2048, 3)


# --- What every fault means ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_stream_that_ends_without_the_image_is_unknown(
    generator: OpenAIGenerator, stand_in: RunningStandIn, count: int
) -> None:
    asked = asking(f"stream_end={count}")
    error = fail(generator, asked)
    assert type(error) is OutcomeUnknownError
    assert error.may_have_billed
    assert stand_in.count(asked.prompt) == 1


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_connection_that_breaks_within_an_event_is_unknown(generator: OpenAIGenerator, number: int) -> None:
    error = fail(generator, asking(f"stream_drop={number}"))
    assert type(error) is OutcomeUnknownError
    assert error.may_have_billed


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("form", ["", ":flat"])
def test_an_error_event_is_unknown(generator: OpenAIGenerator, number: int, form: str) -> None:
    fault = with_message(f"stream_error={number}{form}", "Out of memory.")
    error = fail(generator, asking(fault))
    assert isinstance(error, UnreadableAnswerError)
    assert error.may_have_billed
    assert json.loads(error.body)["type"] == "error"


@pytest.mark.parametrize("form", ["", ":flat"])
def test_a_refusal_before_any_partial_image_is_a_refusal(generator: OpenAIGenerator, form: str) -> None:
    error = fail(generator, asking(f"stream_error=0:code=moderation_blocked{form}"))
    assert isinstance(error, PromptRefusedError)
    assert not error.may_have_billed


@pytest.mark.parametrize("number", [1, 2])
def test_a_refusal_after_a_partial_image_may_have_been_billed(generator: OpenAIGenerator, number: int) -> None:
    error = fail(generator, asking(f"stream_error={number}:code=moderation_blocked"))
    assert isinstance(error, UnreadableAnswerError)
    assert error.may_have_billed


@pytest.mark.parametrize("damage", ["stream_empty", "stream_bad_base64", "stream_truncated"])
def test_a_completed_event_without_an_image_is_unknown_and_passed_on(generator: OpenAIGenerator, damage: str) -> None:
    error = fail(generator, asking(damage))
    assert isinstance(error, UnreadableAnswerError)
    assert error.may_have_billed
    assert json.loads(error.body)["type"] == "image_generation.completed"


def test_a_stream_that_falls_silent_is_given_up(
    short_timeout_generator: OpenAIGenerator, stand_in: RunningStandIn
) -> None:
    asked = asking("hold=1")
    error = fail(short_timeout_generator, asked)
    stand_in.release(asked.prompt)
    assert isinstance(error, ProviderTimeoutError)
    assert error.may_have_billed


def test_an_event_that_is_too_large_may_have_been_billed(stand_in: RunningStandIn) -> None:
    client = make_client("stand-in-key", stand_in.base_url, None, None, TIMEOUT)
    with closing(OpenAIGenerator(client, max_answer_bytes=100)) as generator:
        error = fail(generator, asking())
    assert type(error) is ProviderUnavailableError
    assert error.may_have_billed


@pytest.mark.parametrize("fault", ["429:code=insufficient_quota", "moderation_blocked", "401", "400:param=size"])
def test_what_is_refused_at_once_is_refused_as_ever(generator: OpenAIGenerator, fault: str) -> None:
    assert not fail(generator, asking(fault)).may_have_billed


def test_a_server_that_refuses_partial_images_is_quoted(generator: OpenAIGenerator) -> None:
    error = fail(generator, asking(with_message("400:param=partial_images", "Unknown parameter: 'partial_images'.")))
    assert isinstance(error, ProviderRequestInvalidError)
    assert error.field == "options.partial_images"
