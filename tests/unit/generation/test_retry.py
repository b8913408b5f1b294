from __future__ import annotations

from collections.abc import Sequence

import pytest

from pixyproxy.core.call import CallScope
from pixyproxy.core.exceptions import (
    OutcomeUnknownError,
    PromptRefusedError,
    ProviderError,
    ProviderMisconfiguredError,
    ProviderQuotaError,
    ProviderRateLimitedError,
    ProviderRequestInvalidError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest
from pixyproxy.generation.retry import RetryingGenerator

REQUEST = GenerationRequest("a fox", "gpt-image-2.5-flare", "auto", "auto", "png", "auto", "guid")
IMAGE = GeneratedImage(b"bytes", "image/png", 16, 16, "gpt-image-2.5-flare", None)


class ScriptedGenerator:
    """Raises the given errors one after the other, and then makes the image."""

    def __init__(self, errors: Sequence[ProviderError]) -> None:
        self._errors = list(errors)
        self.submissions = 0
        self.is_closed = False

    def generate(self, request: GenerationRequest, call: CallScope) -> GeneratedImage:
        assert request is REQUEST
        self.submissions += 1
        if self._errors:
            raise self._errors.pop(0)
        return IMAGE

    def close(self) -> None:
        self.is_closed = True


class RecordingScope(CallScope):
    """Notes the waits instead of waiting; the caller may leave during one of them."""

    def __init__(self, timeout: float | None = None, leaves_during_wait: int | None = None) -> None:
        super().__init__(timeout)
        self.waits: list[float] = []
        self._leaves_during_wait = leaves_during_wait

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        if len(self.waits) == self._leaves_during_wait:
            self.leave()
        return not self.is_over


def rate_limited(retry_after: float | None = None) -> ProviderRateLimitedError:
    return ProviderRateLimitedError("slow down", retry_after=retry_after)


def unavailable(retry_after: float | None = None) -> ProviderUnavailableError:
    return ProviderUnavailableError("down", retry_after=retry_after)


def generate(generator: ScriptedGenerator, call: CallScope) -> GeneratedImage:
    return RetryingGenerator(generator, random_fraction=lambda: 0.5).generate(REQUEST, call)


def test_success_needs_one_submission() -> None:
    generator, call = ScriptedGenerator([]), RecordingScope()
    assert generate(generator, call) is IMAGE
    assert (generator.submissions, call.waits) == (1, [])


def test_rate_limit_waits_as_long_as_the_provider_says() -> None:
    generator, call = ScriptedGenerator([rate_limited(2), rate_limited(7.5), rate_limited(60)]), RecordingScope()
    assert generate(generator, call) is IMAGE
    assert call.waits == [2, 7.5, 60]


def test_rate_limit_gives_up_after_four_submissions() -> None:
    errors = [rate_limited(1) for _ in range(5)]
    generator, call = ScriptedGenerator(errors), RecordingScope()
    with pytest.raises(ProviderRateLimitedError) as caught:
        generate(generator, call)
    assert caught.value is errors[3]
    assert generator.submissions == 4


def test_delay_without_a_name_doubles_with_full_jitter() -> None:
    call = RecordingScope()
    generate(ScriptedGenerator([rate_limited(), rate_limited(), rate_limited()]), call)
    assert call.waits == [0.25, 0.5, 1.0]


def test_provider_that_is_down_is_asked_twice_more() -> None:
    generator, call = ScriptedGenerator([unavailable(), unavailable(3)]), RecordingScope()
    assert generate(generator, call) is IMAGE
    assert call.waits == [0.25, 3]


def test_provider_that_stays_down_is_asked_three_times_in_all() -> None:
    generator = ScriptedGenerator([unavailable() for _ in range(5)])
    with pytest.raises(ProviderUnavailableError):
        generate(generator, RecordingScope())
    assert generator.submissions == 3


@pytest.mark.parametrize(
    "error",
    [
        ProviderUnavailableError("bad answer", may_have_billed=True),
        ProviderUnavailableError("bad answer", may_have_billed=True, retry_after=1),
        ProviderRateLimitedError("odd", may_have_billed=True, retry_after=1),
        ProviderTimeoutError("slow", may_have_billed=True),
        ProviderTimeoutError("slow"),
        OutcomeUnknownError("cut"),
        PromptRefusedError("no"),
        ProviderRequestInvalidError("options.size", "no"),
        ProviderQuotaError("poor", retry_after=1),
        ProviderMisconfiguredError("key"),
        ProviderError("other"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_cost_twice_or_cannot_help_is_never_tried_again(error: ProviderError) -> None:
    generator, call = ScriptedGenerator([error]), RecordingScope()
    with pytest.raises(ProviderError) as caught:
        generate(generator, call)
    assert caught.value is error
    assert (generator.submissions, call.waits) == (1, [])


def test_delay_beyond_a_minute_is_not_waited_for() -> None:
    generator, call = ScriptedGenerator([rate_limited(60.1)]), RecordingScope()
    with pytest.raises(ProviderRateLimitedError) as caught:
        generate(generator, call)
    assert caught.value.retry_after == 60.1
    assert call.waits == []


def test_delay_beyond_the_deadline_fails_at_once() -> None:
    generator, call = ScriptedGenerator([rate_limited(5)]), RecordingScope(timeout=4)
    with pytest.raises(ProviderRateLimitedError) as caught:
        generate(generator, call)
    assert caught.value.retry_after == 5
    assert (generator.submissions, call.waits) == (1, [])


def test_delay_within_the_deadline_is_waited_for() -> None:
    call = RecordingScope(timeout=60)
    assert generate(ScriptedGenerator([rate_limited(5)]), call) is IMAGE
    assert call.waits == [5]


def test_caller_who_leaves_during_the_wait_ends_it() -> None:
    generator, call = ScriptedGenerator([unavailable(), unavailable()]), RecordingScope(leaves_during_wait=1)
    with pytest.raises(ProviderUnavailableError):
        generate(generator, call)
    assert generator.submissions == 1


def test_caller_who_has_gone_is_not_waited_for() -> None:
    generator, call = ScriptedGenerator([unavailable()]), RecordingScope()
    call.leave()
    with pytest.raises(ProviderUnavailableError):
        generate(generator, call)
    assert (generator.submissions, call.waits) == (1, [])


def test_close_closes_the_wrapped_generator() -> None:
    generator = ScriptedGenerator([])
    RetryingGenerator(generator).close()
    assert generator.is_closed
