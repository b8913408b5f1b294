from __future__ import annotations

import dataclasses
import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pixyproxy.core.exceptions import (
    ContentDamagedError,
    InputUnreadableError,
    OutcomeUnknownError,
    PromptRefusedError,
    ProviderError,
    ProviderRateLimitedError,
    ProviderRequestInvalidError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    UnreadableAnswerError,
)
from pixyproxy.core.models import PartialImage
from pixyproxy.generation.interfaces import GenerationRequest
from pixyproxy.generation.openai.client import OpenAIGenerator
from tests.support.openai_stand_in import RunningStandIn, Submission, make_partial, make_picture
from tests.support.waiting import wait_until
from tests.unit.generation.openai.conftest import SHORT_TIMEOUT, open_generator

AUTHOR = "123e4567-e89b-42d3-a456-426614174000"
_MEGABYTE = 1024 * 1024
# More than the system takes off a sender whose receiver reads nothing.
_MORE_THAN_BUFFERED = 24 * _MEGABYTE


class MemoryFile:
    """An input whose bytes are in memory, and whose reads may be interfered with."""

    def __init__(
        self,
        data: bytes,
        name: str = "inputs-0.png",
        content_type: str = "image/png",
        before_read: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.data = data
        self.name = name
        self.content_type = content_type
        self.size = len(data)
        self.largest_read = 0
        self._position = 0
        self._before_read = before_read

    def read(self, count: int) -> bytes:
        self._before_read(self._position)
        self.largest_read = max(self.largest_read, count)
        chunk = self.data[self._position : self._position + count]
        self._position += len(chunk)
        return chunk

    def as_received(self, field: str) -> dict[str, Any]:
        return {
            "field": field,
            "filename": self.name,
            "content_type": self.content_type,
            "size": self.size,
            "sha256": hashlib.sha256(self.data).hexdigest(),
        }


def edit(*inputs: MemoryFile, fault: str = "", **changes: Any) -> GenerationRequest:
    prompt = f"A hat for the otter, {uuid.uuid4()}" + (f" [[fault:{fault}]]" if fault else "")
    asked = GenerationRequest(prompt, "gpt-image-2.5-flare", "auto", "auto", "png", "auto", AUTHOR)
    return dataclasses.replace(asked, inputs=inputs or (MemoryFile(b"an otter" * 40_000),), **changes)


@pytest.fixture
def streaming(stand_in: RunningStandIn) -> Iterator[OpenAIGenerator]:
    yield from open_generator(stand_in.base_url, always_streams=True)


# --- What is sent ----------------------------------------------------------------------------------------------------


def test_one_input_is_sent_as_the_image(generator: OpenAIGenerator, stand_in: RunningStandIn) -> None:
    file = MemoryFile(b"\r\n--\r\n\r" * 100_000, "inputs-0.jpeg", "image/jpeg")
    asked = edit(file)
    image = generator.generate(asked)
    assert stand_in.submissions(asked.prompt)["requests"] == [
        {
            "model": "gpt-image-2.5-flare",
            "prompt": asked.prompt,
            "n": 1,
            "output_format": "png",
            "safety_identifier": hashlib.sha256(f"pixyproxy:{AUTHOR}".encode()).hexdigest(),
            "image": [file.as_received("image")],
        }
    ]
    assert bytes(image.data) == make_picture(Submission({"prompt": asked.prompt}, {}, 1))
    assert image.usage is not None
    assert image.usage.input_image_tokens == 100


def test_everything_chosen_is_sent(generator: OpenAIGenerator, stand_in: RunningStandIn) -> None:
    files = [MemoryFile(bytes([number]) * 100_000, f"inputs-{number}.webp", "image/webp") for number in range(16)]
    mask = MemoryFile(b"mask" * 30_000, "mask.png")
    asked = edit(
        *files,
        mask=mask,
        size="512x512",
        quality="high",
        output_format="webp",
        background="transparent",
        output_compression=70,
        input_fidelity="high",
        partial_images=2,
    )
    generator.generate(asked)
    [sent] = stand_in.submissions(asked.prompt)["requests"]
    assert sent == {
        "model": "gpt-image-2.5-flare",
        "prompt": asked.prompt,
        "n": 1,
        "size": "512x512",
        "quality": "high",
        "output_format": "webp",
        "background": "transparent",
        "output_compression": 70,
        "input_fidelity": "high",
        "stream": True,
        "partial_images": 2,
        "safety_identifier": hashlib.sha256(f"pixyproxy:{AUTHOR}".encode()).hexdigest(),
        "image": [file.as_received("image[]") for file in files],
        "mask": mask.as_received("mask"),
    }


def test_inputs_are_read_in_chunks(generator: OpenAIGenerator) -> None:
    file = MemoryFile(bytes(8 * _MEGABYTE))
    generator.generate(edit(file))
    assert 0 < file.largest_read <= 256 * 1024


# --- A stream --------------------------------------------------------------------------------------------------------


def test_partial_images_come_before_the_image(generator: OpenAIGenerator) -> None:
    asked = edit(partial_images=2)
    partials: list[PartialImage] = []
    image = generator.generate(asked, partials.append)
    submission = Submission({"prompt": asked.prompt}, {}, 1)
    assert [(partial.index, partial.data) for partial in partials] == [
        (index, make_partial(submission, index)) for index in range(2)
    ]
    assert bytes(image.data) == make_picture(submission)


@pytest.mark.parametrize("fault", ["stream_end=1", "stream_drop=1"])
def test_a_stream_that_breaks_may_have_been_billed(streaming: OpenAIGenerator, fault: str) -> None:
    with pytest.raises(OutcomeUnknownError) as caught:
        streaming.generate(edit(fault=fault, partial_images=2))
    assert caught.value.may_have_billed


@pytest.mark.parametrize("fault", ["stream_bad_base64", "stream_error=1"])
def test_a_stream_whose_image_cannot_be_read_is_kept(streaming: OpenAIGenerator, fault: str) -> None:
    with pytest.raises(UnreadableAnswerError):
        streaming.generate(edit(fault=fault, partial_images=2))


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "expected", "may_have_billed"),
    [
        ("429:retry-after=7", ProviderRateLimitedError, False),
        ("503", ProviderUnavailableError, False),
        ("500", ProviderUnavailableError, True),
        ("504", ProviderTimeoutError, True),
        ("moderation_blocked", PromptRefusedError, False),
        ("drop", OutcomeUnknownError, True),
        ("drop_midway", OutcomeUnknownError, True),
        ("not_an_image", UnreadableAnswerError, True),
    ],
)
def test_errors_mean_what_they_mean_for_generations(
    generator: OpenAIGenerator, fault: str, expected: type[ProviderError], may_have_billed: bool
) -> None:
    with pytest.raises(expected) as caught:
        generator.generate(edit(fault=fault))
    assert caught.value.may_have_billed is may_have_billed


@pytest.mark.parametrize(("param", "field"), [("image", "inputs"), ("mask", "mask")])
def test_a_refused_file_is_named(generator: OpenAIGenerator, param: str, field: str) -> None:
    asked = edit(fault=f"400:code=invalid_image_file:param={param}:message=Invalid%20image%20file.")
    with pytest.raises(ProviderRequestInvalidError) as caught:
        generator.generate(asked)
    assert (caught.value.field, caught.value.message) == (field, "The image provider refuses it: Invalid image file.")


def test_no_answer_in_time_may_have_been_billed(short_timeout_generator: OpenAIGenerator) -> None:
    with pytest.raises(ProviderTimeoutError) as caught:
        short_timeout_generator.generate(edit(fault="hang"))
    assert caught.value.may_have_billed


# --- A body that stays incomplete ------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_read", [0, _MEGABYTE])
def test_an_unreadable_input_leaves_the_request_incomplete(
    generator: OpenAIGenerator, stand_in: RunningStandIn, last_read: int
) -> None:
    failure = InputUnreadableError(ContentDamagedError("damaged"))

    def fail(position: int) -> None:
        if position >= last_read:
            raise failure

    asked = edit(MemoryFile(bytes(100_000)), MemoryFile(bytes(_MEGABYTE + 1), before_read=fail))
    with pytest.raises(InputUnreadableError) as caught:
        generator.generate(asked)
    assert caught.value is failure
    wait_until(lambda: stand_in.count_incomplete(asked.prompt) == 1, 60, "the incomplete body")
    assert stand_in.count(asked.prompt) == 0


def test_a_connection_that_breaks_before_the_end_of_the_body_cost_nothing(
    generator: OpenAIGenerator, stand_in: RunningStandIn
) -> None:
    asked = edit(MemoryFile(bytes(_MORE_THAN_BUFFERED)), fault=f"body_drop={_MEGABYTE}")
    with pytest.raises(ProviderUnavailableError) as caught:
        generator.generate(asked)
    assert not caught.value.may_have_billed
    assert stand_in.count(asked.prompt) == 0


def test_a_provider_that_stops_reading_cost_nothing(
    short_timeout_generator: OpenAIGenerator, stand_in: RunningStandIn
) -> None:
    asked = edit(MemoryFile(bytes(_MORE_THAN_BUFFERED)), fault=f"body_hold={_MEGABYTE}")
    with pytest.raises(ProviderUnavailableError) as caught:
        short_timeout_generator.generate(asked)
    assert not caught.value.may_have_billed
    stand_in.release(asked.prompt)
    wait_until(lambda: stand_in.count_incomplete(asked.prompt) == 1, 60, "the incomplete body")
    assert stand_in.count(asked.prompt) == 0


def test_the_time_for_the_answer_begins_with_the_end_of_the_request(short_timeout_generator: OpenAIGenerator) -> None:
    began = time.monotonic()

    def be_slow(_: int) -> None:
        wait_until(lambda: time.monotonic() > began + 2 * SHORT_TIMEOUT, 60, "more time than the answer has")

    assert short_timeout_generator.generate(edit(MemoryFile(bytes(100_000), before_read=be_slow))).data
