from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import socket
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx2
import pytest

from pixyproxy.core.exceptions import (
    ConfigurationError,
    OutcomeUnknownError,
    PromptRefusedError,
    ProviderError,
    ProviderMisconfiguredError,
    ProviderModelUnknownError,
    ProviderQuotaError,
    ProviderRateLimitedError,
    ProviderRequestInvalidError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    UnreadableAnswerError,
)
from pixyproxy.core.models import Usage
from pixyproxy.generation.image_format import inspect_image
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest
from pixyproxy.generation.openai.client import OpenAIGenerator, make_client
from pixyproxy.generation.openai.images import read_usage
from pixyproxy.generation.retry import delay_before_retry
from tests.support.openai_stand_in import RunningStandIn, Submission, make_picture
from tests.unit.generation.openai.conftest import SHORT_TIMEOUT, TIMEOUT, open_generator

AUTHOR = "123e4567-e89b-42d3-a456-426614174000"


def request(fault: str = "", **changes: Any) -> GenerationRequest:
    """Return a request whose prompt no other test has."""
    prompt = f"An otter in a teacup, {uuid.uuid4()}" + (f" [[fault:{fault}]]" if fault else "")
    asked = GenerationRequest(prompt, "gpt-image-2.5-flare", "auto", "auto", "png", "auto", AUTHOR)
    return dataclasses.replace(asked, **changes)


def with_message(fault: str, text: str) -> str:
    """Return a fault whose message is a text, no word of which the prompt then has."""
    return f"{fault}:message64={base64.urlsafe_b64encode(text.encode()).decode()}"


def generate(generator: OpenAIGenerator, asked: GenerationRequest) -> GeneratedImage:
    return generator.generate(asked)


def fail(generator: OpenAIGenerator, asked: GenerationRequest) -> ProviderError:
    """Return the error, which must say nothing of the prompt or the key."""
    with pytest.raises(ProviderError) as caught:
        generate(generator, asked)
    for secret in (asked.prompt, "otter", "stand-in-key"):
        assert secret not in str(caught.value)
    return caught.value


# --- A success -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_image_comes_back_with_its_type_and_size(generator: OpenAIGenerator, output_format: str) -> None:
    image = generate(generator, request(size="512x256", output_format=output_format))
    assert (image.content_type, image.width, image.height) == (f"image/{output_format}", 512, 256)
    assert inspect_image(bytes(image.data)).content_type == image.content_type
    assert image.model == "gpt-image-2.5-flare"
    assert image.usage is not None
    assert image.usage.total_tokens == image.usage.input_tokens + image.usage.output_tokens


def test_everything_chosen_is_sent(generator: OpenAIGenerator, stand_in: RunningStandIn) -> None:
    asked = request(size="512x512", quality="high", output_format="webp", background="transparent")
    generate(generator, asked)
    assert stand_in.submissions(asked.prompt)["requests"] == [
        {
            "model": "gpt-image-2.5-flare",
            "prompt": asked.prompt,
            "n": 1,
            "size": "512x512",
            "quality": "high",
            "output_format": "webp",
            "background": "transparent",
            "safety_identifier": hashlib.sha256(f"pixyproxy:{AUTHOR}".encode()).hexdigest(),
        }
    ]


def test_what_is_automatic_is_left_to_the_provider(generator: OpenAIGenerator, stand_in: RunningStandIn) -> None:
    asked = request()
    generate(generator, asked)
    [sent] = stand_in.submissions(asked.prompt)["requests"]
    assert set(sent) == {"model", "prompt", "n", "output_format", "safety_identifier"}


def test_environment_is_not_read(generator: OpenAIGenerator, stand_in: RunningStandIn) -> None:
    asked = request()
    generate(generator, asked)
    [headers] = stand_in.submissions(asked.prompt)["headers"]
    assert not [name for name in headers if name.lower() in ("openai-organization", "openai-project")]
    assert "environment" not in str(headers)


def test_organization_and_project_are_sent(stand_in: RunningStandIn) -> None:
    asked = request()
    for generator in open_generator(stand_in.base_url, organization="org-ours", project="proj-ours"):
        generate(generator, asked)
    headers = {name.lower(): value for name, value in stand_in.submissions(asked.prompt)["headers"][0].items()}
    assert (headers["openai-organization"], headers["openai-project"]) == ("org-ours", "proj-ours")


@pytest.mark.parametrize("fault", ["no_usage", "odd_usage", "half_usage"])
def test_image_is_kept_without_usage(generator: OpenAIGenerator, fault: str) -> None:
    assert generate(generator, request(fault)).usage is None


def test_usage_is_read(generator: OpenAIGenerator) -> None:
    asked = request()
    tokens = 1 + len(asked.prompt) // 4
    expected = Usage(
        input_tokens=tokens,
        output_tokens=1056,
        total_tokens=tokens + 1056,
        input_text_tokens=tokens,
        input_image_tokens=0,
        output_text_tokens=0,
        output_image_tokens=1056,
    )
    assert generate(generator, asked).usage == expected


def test_usage_in_whole_floats_is_read(generator: OpenAIGenerator) -> None:
    usage = generate(generator, request("float_usage")).usage
    assert usage == Usage(input_tokens=11, output_tokens=1056, total_tokens=1067)


@pytest.mark.parametrize(("count", "is_read"), [(0, True), (2**31 - 1, True), (2**31, False), (-1, False)])
def test_usage_is_read_where_an_image_may_have_it(count: int, is_read: bool) -> None:
    counts = {"input_tokens": count, "output_tokens": 1, "total_tokens": 1}
    assert read_usage(counts) == (Usage(**counts) if is_read else None)


@pytest.mark.parametrize(("timeout", "connect", "write"), [(300.0, 10.0, 60.0), (30.0, 10.0, 30.0), (2.0, 2.0, 2.0)])
def test_every_step_has_a_timeout(timeout: float, connect: float, write: float) -> None:
    expected = httpx2.Timeout(connect=connect, read=timeout, write=write, pool=connect)
    with closing(make_client("key", None, None, None, timeout)) as made:
        assert made.timeout == expected


@pytest.mark.parametrize("fault", ["data_url", "url_safe"])
def test_image_comes_back_from_servers_that_write_base64_in_other_ways(generator: OpenAIGenerator, fault: str) -> None:
    asked = request(fault, size="64x64")
    assert generate(generator, asked).data == make_picture(Submission({"prompt": asked.prompt, "size": "64x64"}, {}, 1))


def test_large_image_arrives_whole(generator: OpenAIGenerator) -> None:
    assert len(generate(generator, request("large=8388608")).data) == 8 * 1024 * 1024


def test_many_threads_share_a_generator(generator: OpenAIGenerator, stand_in: RunningStandIn) -> None:
    asked = request(size="64x64")
    with ThreadPoolExecutor(16) as pool:
        images = list(pool.map(lambda _: generate(generator, asked), range(32)))
    assert len({image.data for image in images}) == 32
    assert stand_in.count(asked.prompt) == 32


# --- A success that is none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    ["empty_data", "null_data", "no_b64", "bad_base64", "not_an_image", "truncated", "bad_json", "html"],
)
def test_unusable_answer_may_have_been_billed(
    generator: OpenAIGenerator, stand_in: RunningStandIn, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = request(fault)
    error = fail(generator, asked)
    assert isinstance(error, UnreadableAnswerError)
    assert error.may_have_billed
    assert stand_in.count(asked.prompt) == 1
    assert_logged(caplog, "status 200")


def test_unusable_answer_is_passed_on_as_it_came(generator: OpenAIGenerator) -> None:
    for fault, body in (("bad_json", b'{"data": [{"b64_json": "iVBOR'), ("html", b"<html>hello</html>")):
        error = fail(generator, request(fault))
        assert isinstance(error, UnreadableAnswerError)
        assert error.body == body
    error = fail(generator, request("no_b64"))
    assert isinstance(error, UnreadableAnswerError)
    assert json.loads(error.body)["data"] == [{"url": "https://example.com/picture.png"}]


def test_answer_that_is_too_large_is_not_passed_on(stand_in: RunningStandIn, caplog: pytest.LogCaptureFixture) -> None:
    client = make_client("stand-in-key", stand_in.base_url, None, None, TIMEOUT)
    with closing(OpenAIGenerator(client, max_answer_bytes=1000)) as generator:
        error = fail(generator, request())
    assert type(error) is ProviderUnavailableError
    assert error.may_have_billed
    assert_logged(caplog, "ValueError: the answer is too large")


def test_empty_answer_is_not_passed_on(generator: OpenAIGenerator) -> None:
    error = fail(generator, request("empty_body"))
    assert type(error) is ProviderUnavailableError
    assert error.may_have_billed


@pytest.mark.parametrize(
    "fault",
    [
        "error_as_success:code=moderation_blocked",
        with_message("error_as_success:code=400", "Your request was rejected by the safety system."),
    ],
)
def test_refusal_in_a_success_is_a_refusal(generator: OpenAIGenerator, fault: str) -> None:
    error = fail(generator, request(fault))
    assert isinstance(error, PromptRefusedError)
    assert not error.may_have_billed


def test_other_error_in_a_success_may_have_been_billed(
    generator: OpenAIGenerator, caplog: pytest.LogCaptureFixture
) -> None:
    error = fail(generator, request(with_message("error_as_success:code=server_error", "Out of memory.")))
    assert isinstance(error, UnreadableAnswerError)
    assert_logged(caplog, "server_error, param none: Out of memory.")


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_refusal_by_moderation_says_stage_and_categories(generator: OpenAIGenerator, stand_in: RunningStandIn) -> None:
    asked = request("moderation_blocked:stage=output:categories=violence,self-harm,not a name")
    error = fail(generator, asked)
    assert isinstance(error, PromptRefusedError)
    assert (error.stage, error.categories) == ("output", ("violence", "self-harm"))
    assert stand_in.count(asked.prompt) == 1


RELABELLED = "litellm.BadRequestError: OpenAIException - {}\n\nLiteLLM: model group 'm' failed with the error above."


@pytest.mark.parametrize(
    "text",
    [
        "Your request was rejected by the safety system. safety_violations=[violence, self-harm].",
        "Your request was rejected as a result of our safety system.",
        "litellm.ContentPolicyViolationError: no",
        "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
    ],
)
def test_refusal_that_a_gateway_relabels_is_one(generator: OpenAIGenerator, text: str) -> None:
    error = fail(generator, request(with_message("400:code=400", RELABELLED.format(text))))
    assert isinstance(error, PromptRefusedError)
    assert error.categories == (("violence", "self-harm") if "safety_violations" in text else ())


def test_refusal_that_only_the_prompt_speaks_of_is_none(generator: OpenAIGenerator) -> None:
    fault = with_message("400:code=400", "Not this: refused by our safety system")
    error = fail(generator, request(prompt=f"{uuid.uuid4()} otter, refused by our safety system [[fault:{fault}]]"))
    assert isinstance(error, ProviderRequestInvalidError)


@pytest.mark.parametrize("code", ["content_filter", "contentFilter", "ResponsibleAIPolicyViolation"])
def test_refusal_of_azure_is_one(generator: OpenAIGenerator, code: str) -> None:
    assert isinstance(fail(generator, request(f"400:code={code}")), PromptRefusedError)


def test_refusal_without_details(generator: OpenAIGenerator) -> None:
    error = fail(generator, request("400:code=content_policy_violation"))
    assert isinstance(error, PromptRefusedError)
    assert (error.stage, error.categories) == ("", ())


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ("400:param=prompt", "prompt"),
        ("400:param=size", "options.size"),
        ("400:param=quality", "options.quality"),
        ("400:param=output_format", "options.output_format"),
        ("422:param=background", "options.background"),
        ("400:param=model", "options.model"),
        ("400:param=n", "options"),
        ("400", "options"),
        ("413", "options"),
    ],
)
def test_wrong_parameter_is_named_as_our_api_spells_it(generator: OpenAIGenerator, fault: str, field: str) -> None:
    error = fail(generator, request(fault))
    assert isinstance(error, ProviderRequestInvalidError)
    assert error.field == field


def test_real_refusal_of_a_size_carries_the_provider_s_rule(generator: OpenAIGenerator) -> None:
    error = fail(generator, request(size="1000x1000"))
    assert isinstance(error, ProviderRequestInvalidError)
    assert error.field == "options.size"
    assert "multiples of 16" in error.message


def refuse_size(generator: OpenAIGenerator, text: str) -> str:
    """Return our message where the provider's is this text."""
    return fail(generator, request(f"400:param=size:message={urllib.parse.quote(text)}")).message


def test_provider_s_harmless_text_is_passed_on(generator: OpenAIGenerator) -> None:
    assert refuse_size(generator, "Too wide: 9 > 3.") == "The image provider refuses it: Too wide: 9 > 3."


def test_provider_s_text_is_passed_on_in_one_line(generator: OpenAIGenerator) -> None:
    assert refuse_size(generator, "Too\n wide!") == "The image provider refuses it: Too wide!"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("Invalid size '9x9'.", "options.size"),
        ("Invalid value for background, for this model.", "options.background"),
        ("Neither this size nor this quality.", "options"),
        ("The prompt asks for a size.", "options"),
        ("oversized", "options"),
        ("Unknown quality.", "options"),
    ],
)
def test_option_that_the_text_alone_names_is_found(generator: OpenAIGenerator, text: str, field: str) -> None:
    error = fail(
        generator, request(with_message("400:code=400", RELABELLED.format(text)), size="512x512", background="opaque")
    )
    assert isinstance(error, ProviderRequestInvalidError)
    assert error.field == field
    assert (text in error.message) == (field != "options")


@pytest.mark.parametrize("fault", ["400:param=prompt", "400:param=n", "400"])
def test_provider_s_text_is_kept_back_where_it_is_about_no_option(generator: OpenAIGenerator, fault: str) -> None:
    assert fail(generator, request(with_message(fault, "Too long."))).message == "The image provider refuses it."


def test_only_option_that_was_sent_is_found_in_the_text(generator: OpenAIGenerator) -> None:
    error = fail(generator, request(with_message("400:code=400", "Invalid output_format.")))
    assert isinstance(error, ProviderRequestInvalidError)
    assert error.field == "options.output_format"


@pytest.mark.parametrize(("shared", "is_kept_back"), [(15, False), (16, True)])
def test_provider_s_text_may_not_end_with_a_run_of_the_prompt(
    generator: OpenAIGenerator, shared: int, is_kept_back: bool
) -> None:
    run = "0123456789abcdef"[:shared]
    text = f"Too wide:{run}"
    fault = with_message("400:param=size", text)
    error = fail(generator, request(prompt=f"otter {run}, {uuid.uuid4()} [[fault:{fault}]]"))
    assert (text in error.message) is not is_kept_back


def test_provider_s_text_is_cut(generator: OpenAIGenerator) -> None:
    assert refuse_size(generator, "Too wide! " * 100) == "The image provider refuses it: " + "Too wide! " * 30


@pytest.mark.parametrize(
    "text",
    [
        "no good for 'An otter in a teacup'",
        "NO GOOD: AN OTTER IN A TEACUP",
        "no good: otter in a teacup",
        "key sk-abcdefgh is not allowed this",
        "organization org-abcdefgh may not",
        "key stand-in-key may not",
        "look into https://gateway.internal/errors",
        "no such file: /srv/models/image",
        "key 0123456789abcdef0123456789abcdef may not",
        "red \x1b[31m alert",
    ],
)
def test_provider_s_text_with_prompt_or_secret_is_kept_back(generator: OpenAIGenerator, text: str) -> None:
    assert refuse_size(generator, text) == "The image provider refuses it."


def test_too_long_prompt_is_named(generator: OpenAIGenerator) -> None:
    error = fail(generator, request(prompt=f"{uuid.uuid4()} otter".ljust(32_001, "!")))
    assert isinstance(error, ProviderRequestInvalidError)
    assert error.field == "prompt"


@pytest.mark.parametrize("fault", ["401", "403", "404", "405", "redirect"])
def test_what_an_operator_must_mend_is_misconfiguration(
    generator: OpenAIGenerator, stand_in: RunningStandIn, fault: str
) -> None:
    asked = request(fault)
    error = fail(generator, asked)
    assert isinstance(error, ProviderMisconfiguredError)
    assert not error.may_have_billed
    assert stand_in.count(asked.prompt) == 1


def test_wrong_key_is_misconfiguration(stand_in: RunningStandIn) -> None:
    for generator in open_generator(stand_in.base_url, api_key="another-key"):
        assert isinstance(fail(generator, request()), ProviderMisconfiguredError)


def test_unknown_model_is_misconfiguration(generator: OpenAIGenerator) -> None:
    assert isinstance(fail(generator, request(model="no-such-model")), ProviderModelUnknownError)
    assert isinstance(fail(generator, request("400:code=model_not_found")), ProviderModelUnknownError)


def test_unknown_model_of_a_gateway_is_misconfiguration(generator: OpenAIGenerator) -> None:
    text = "400: {'error': '/image/generations: Invalid model name passed in model=m. Call `/v1/models`.'}"
    assert isinstance(fail(generator, request(with_message("400:code=400", text))), ProviderModelUnknownError)


@pytest.mark.parametrize(
    "fault",
    [
        "429:code=insufficient_quota",
        "429:code=credit_balance_exhausted",
        "429:code=project_spend_limit_exceeded",
        "429:code=organization_usage_limit_exceeded",
        "429:code=billing_hard_limit_reached",
        "400:code=billing_hard_limit_reached",
        "402",
        with_message("429:code=429", "You exceeded your current quota, please check your plan."),
    ],
)
def test_account_without_money_is_no_rate_limit(generator: OpenAIGenerator, fault: str) -> None:
    assert isinstance(fail(generator, request(fault)), ProviderQuotaError)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ("", None),
        (":retry-after=7", 7.0),
        (":retry-after=1.5", 1.5),
        (":retry-after-ms=250:retry-after=7", 0.25),
        (":retry-after-ms=soon:retry-after=7", 7.0),
        (":retry-after=0", None),
        (":retry-after=-3", None),
        (":retry-after=nan", None),
        (":retry-after=inf", None),
        (":retry-after=1e300", None),
        (":retry-after=86400", 86400.0),
        (":retry-after=90000", None),
        (":retry-after=later", None),
        (":retry-after=Mon, 01 Jan 99999 00.00.00 GMT", None),
        (":retry-after-date=-100", None),
    ],
)
def test_rate_limit_says_when_to_come_back(generator: OpenAIGenerator, headers: str, seconds: float | None) -> None:
    error = fail(generator, request(f"429{headers}"))
    assert isinstance(error, ProviderRateLimitedError)
    assert error.retry_after == seconds


def test_rate_limit_may_name_a_date(generator: OpenAIGenerator) -> None:
    error = fail(generator, request("429:retry-after-date=30"))
    assert error.retry_after == pytest.approx(30, abs=5)


# --- A provider in trouble -------------------------------------------------------------------------------------------


def test_provider_that_is_overloaded_was_not_billed(generator: OpenAIGenerator, stand_in: RunningStandIn) -> None:
    asked = request("503:retry-after=2")
    error = fail(generator, asked)
    assert isinstance(error, ProviderUnavailableError)
    assert (error.may_have_billed, error.retry_after) == (False, 2.0)
    assert stand_in.count(asked.prompt) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, ProviderTimeoutError) for status in (408, 504, 524)),
        *(
            (status, ProviderUnavailableError)
            for status in (300, 303, 304, 409, 418, 423, 424, 425, 444, 460, 499, 500, 501, 502)
        ),
        *((status, ProviderUnavailableError) for status in (505, 507, 520, 521, 522, 523, 529, 530, 599)),
    ],
)
def test_status_that_is_no_plain_refusal_may_have_been_billed(
    generator: OpenAIGenerator, stand_in: RunningStandIn, status: int, kind: type[ProviderError]
) -> None:
    asked = request(f"{status}:retry-after=2")
    error = fail(generator, asked)
    assert type(error) is kind
    assert (error.may_have_billed, error.retry_after) == (True, None)
    assert stand_in.count(asked.prompt) == 1


@pytest.mark.parametrize(
    ("host", "is_openai"),
    [
        ("api.openai.com", True),
        ("eu.api.openai.com", True),
        ("API.OpenAI.com", True),
        ("openai.com.example.org", False),
        ("notopenai.com", False),
        ("mine.openai.azure.com", False),
        ("gateway.example", False),
    ],
)
def test_500_costs_nothing_from_openai_itself_alone(
    stand_in: RunningStandIn, monkeypatch: pytest.MonkeyPatch, host: str, is_openai: bool
) -> None:
    name, port = stand_in.address.split(":")
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *arguments, **options: resolve(name, *arguments, **options))
    for generator in open_generator(f"http://{host}:{port}/v1"):
        error = fail(generator, request("500"))
        assert isinstance(error, ProviderUnavailableError)
        assert error.may_have_billed is not is_openai


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_answer_that_does_not_end_is_given_up(
    short_timeout_generator: OpenAIGenerator, stand_in: RunningStandIn, fault: str
) -> None:
    asked = request(fault)
    started = time.monotonic()
    error = fail(short_timeout_generator, asked)
    assert isinstance(error, ProviderTimeoutError)
    assert error.may_have_billed
    assert time.monotonic() - started < 10 * SHORT_TIMEOUT
    assert stand_in.count(asked.prompt) == 1


@pytest.mark.parametrize("fault", ["drop", "drop_midway"])
def test_broken_connection_leaves_the_outcome_unknown(
    generator: OpenAIGenerator, stand_in: RunningStandIn, fault: str
) -> None:
    asked = request(fault)
    error = fail(generator, asked)
    assert isinstance(error, OutcomeUnknownError)
    assert error.may_have_billed
    assert stand_in.count(asked.prompt) == 1


def test_refused_connection_was_not_billed() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        for generator in open_generator(f"http://127.0.0.1:{unheard.getsockname()[1]}/v1"):
            error = fail(generator, request())
    assert isinstance(error, ProviderUnavailableError)
    assert not error.may_have_billed


def test_name_that_does_not_resolve_was_not_billed() -> None:
    for generator in open_generator("http://no-such-host.invalid/v1"):
        error = fail(generator, request())
    assert isinstance(error, ProviderUnavailableError)
    assert not error.may_have_billed


def test_address_without_a_scheme_is_misconfiguration() -> None:
    for generator in open_generator("api.example.com/v1"):
        assert isinstance(fail(generator, request()), ProviderMisconfiguredError)


@pytest.mark.parametrize("api_key", ["", "with space", "line\nbreak", "schlüssel"])
def test_impossible_key_is_refused_at_the_start(api_key: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^OPENAI_API_KEY must"):
        make_client(api_key, None, None, None, TIMEOUT)


@pytest.mark.parametrize(("organization", "project"), [("org ours", None), (None, "proj-é")])
def test_impossible_organization_or_project_is_refused_at_the_start(
    organization: str | None, project: str | None
) -> None:
    with pytest.raises(ConfigurationError, match=r"^OPENAI_(ORG|PROJECT)_ID must"):
        make_client("key", None, organization, project, TIMEOUT)


def test_keys_of_the_environment_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", "of-the-environment")
    with closing(make_client("key", None, None, None, TIMEOUT)) as made:
        assert (made.api_key, made.admin_api_key, made.webhook_secret) == ("key", "", "")
        assert (made.organization, made.project) == (None, None)
        assert "of-the-environment" not in str(made.default_headers)


def test_impossible_address_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match="OPENAI_BASE_URL"):
        make_client("key", "http://[::1/v1", None, None, TIMEOUT)


def test_close_frees_threads_and_connections(stand_in: RunningStandIn) -> None:
    # Those of other tests may end meanwhile.
    before = threading.enumerate()
    for generator in open_generator(stand_in.base_url):
        generate(generator, request(size="64x64"))
    assert [thread for thread in threading.enumerate() if thread not in before] == []


# --- With the retries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", ["drop", "408", "409", "500", "502", "504", "529", "bad_json", "429:code=insufficient_quota"]
)
def test_nothing_that_may_cost_is_submitted_twice(
    generator: OpenAIGenerator, stand_in: RunningStandIn, fault: str
) -> None:
    asked = request(fault)
    error = fail(generator, asked)
    assert delay_before_retry(error, 1) is None
    assert stand_in.count(asked.prompt) == 1


# --- The log ---------------------------------------------------------------------------------------------------------


def assert_logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    [record] = [record for record in caplog.records if record.name == "pixyproxy.generation.openai.client"]
    assert record.levelno == logging.WARNING
    assert text in record.getMessage()
    assert "request id req_stand_in_" in record.getMessage()


@pytest.mark.parametrize(
    "fault", ["400:param=size", "401", "429", "500", "502", "moderation_blocked", "redirect", "drop", "bad_json"]
)
def test_log_names_the_provider_s_request_but_no_secret(
    generator: OpenAIGenerator, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pixyproxy")
    fail(generator, request(fault))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("pixyproxy")]
    assert len(ours) == 1
    assert "status" in ours[0]
    assert "request id" in ours[0]
    assert "otter" not in ours[0]
    assert "stand-in-key" not in ours[0]


@pytest.mark.parametrize(
    ("text", "logged"),
    [
        ("Invalid size '9x9'.", "param none: Invalid size '9x9'."),
        ("Rejected: An otter in a teacup", "Rejected: ***"),
        ('Rejected: "an OTTER\\nin a tea', 'Rejected: "*** tea'),
        ("Rejected: %6ftter otte", "Rejected: ***"),
        ("key sk-abcdefgh of org-abcdefgh", "key *** of ***"),
        ("key stand-in-key, 0123456789abcdef0123456789abcdef", "key ***"),
        ("see https://user:password@gateway.internal/x?key=1 now", "see *** now"),
        ("two\nlines \x1b[31m", "two lines [31m"),
        ("long " * 100, "long " * 59),
    ],
)
def test_log_has_the_provider_s_text_without_prompt_and_secrets(
    generator: OpenAIGenerator, caplog: pytest.LogCaptureFixture, text: str, logged: str
) -> None:
    fail(generator, request(with_message("400:code=400", text)))
    assert_logged(caplog, logged)


@pytest.mark.parametrize("prompt", ["雪山日出 otter", "Ärger mit Ötter-otter", 'a "quoted"\notter', "otter"])
def test_log_has_nothing_of_a_prompt_however_it_is_quoted(
    generator: OpenAIGenerator, caplog: pytest.LogCaptureFixture, prompt: str
) -> None:
    for quoted in (prompt, json.dumps(prompt), repr(prompt), urllib.parse.quote(prompt)):
        fault = with_message("400", f"Rejected <{quoted}> for it")
        fail(generator, request(prompt=f"{prompt} {uuid.uuid4()} [[fault:{fault}]]"))
    said = caplog.text.lower()
    assert not any(word in said for word in ("otter", "雪", "quoted", "rger", "tter", "96ea"))


def test_log_names_the_status(generator: OpenAIGenerator, caplog: pytest.LogCaptureFixture) -> None:
    fail(generator, request("429:code=insufficient_quota"))
    assert_logged(caplog, "status 429")


# --- The model's end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "date"),
    [("stand-in-retiring", "2027-01-31"), ("gpt-image-2.5-flare", None), ("no-such-model", None), ("", None)],
)
def test_shutdown_date_of_a_model(generator: OpenAIGenerator, model: str, date: str | None) -> None:
    assert generator.model_shutdown_date(model) == date


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def describe_model(listener: socket.socket, shutdown_date: object) -> socket.socket:
    """Answer one request, and leave its connection open."""
    connection, _ = listener.accept()
    connection.recv(65_536)
    model = {"id": "m", "object": "model", "created": 1, "owned_by": "us", "shutdown_date": shutdown_date}
    body = json.dumps(model).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_shutdown_date_that_is_no_text_is_none(listener: socket.socket) -> None:
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(describe_model, listener, 20270131)
        for generator in open_generator(f"http://127.0.0.1:{listener.getsockname()[1]}/v1"):
            assert generator.model_shutdown_date("m") is None
        answered.result().close()


def test_every_request_has_a_connection_of_its_own(listener: socket.socket) -> None:
    """A connection that was kept may break as the next request is sent, which then may have been billed."""
    listener.settimeout(TIMEOUT)
    with ThreadPoolExecutor(1) as pool:
        for generator in open_generator(f"http://127.0.0.1:{listener.getsockname()[1]}/v1"):
            for date in ("2027-01-31", "2027-02-28"):
                answered = pool.submit(describe_model, listener, date)
                assert generator.model_shutdown_date("m") == date
                with answered.result() as connection:
                    assert connection.recv(1) == b""  # The client has closed it.


def test_provider_that_does_not_say_is_not_waited_for(listener: socket.socket) -> None:
    started = time.monotonic()
    for generator in open_generator(f"http://127.0.0.1:{listener.getsockname()[1]}/v1"):
        assert generator.model_shutdown_date("m", SHORT_TIMEOUT) is None
    assert time.monotonic() - started < 10 * SHORT_TIMEOUT


def test_shutdown_date_never_raises() -> None:
    for generator in open_generator("http://127.0.0.1:9/v1"):
        assert generator.model_shutdown_date("gpt-image-2.5-flare") is None
