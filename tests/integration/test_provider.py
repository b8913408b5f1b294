"""What the provider does, and what the caller is told of it; and how often the provider was asked."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from PIL import Image
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import People, asking, reassure
from tests.support.image_client import SMALL, ImageClient
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT, Refusal, UnexplainedError
from tests.support.servers import RunningServer, running_server
from tests.support.waiting import wait_until

_REFUSED = grpc.StatusCode.FAILED_PRECONDITION
_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
_TOO_LATE = grpc.StatusCode.DEADLINE_EXCEEDED


# --- It works --------------------------------------------------------------------------------------------------------


def test_an_image_of_the_provider_is_stored_with_all_that_is_known_of_it(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    options = pb.GenerationOptions(
        size="96x64", output_format="webp", quality="high", model="gpt-image-2", background="opaque"
    )
    made = artist.create(prompt, options=options)
    assert made.model == "gpt-image-2"
    assert (made.usage.input_tokens, made.usage.output_tokens) == (1 + len(prompt) // 4, 1056)
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert (made.content_type, made.width, made.height) == ("image/webp", 96, 64)
    assert artist.get(made.guid) == made
    _, data = artist.content(made.guid)
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (96, 64))
    (sent,) = stand_in.submissions(prompt)["requests"]
    chosen = {"model": "gpt-image-2", "size": "96x64", "quality": "high", "output_format": "webp"}
    assert sent.items() >= {**chosen, "background": "opaque", "prompt": prompt, "n": 1}.items()


def test_the_default_model_is_named_to_the_provider(artist: ImageClient, stand_in: RunningStandIn, prompt: str) -> None:
    made = artist.create(prompt)
    assert made.model == "gpt-image-2.5-flare"
    assert [sent["model"] for sent in stand_in.submissions(prompt)["requests"]] == ["gpt-image-2.5-flare"]


def test_the_provider_is_told_one_name_of_an_author_and_not_the_real_one(
    provider_server: RunningServer, artists: People, stand_in: RunningStandIn, prompt: str
) -> None:
    ann, bob = ImageClient(provider_server, artists.ann), ImageClient(provider_server, artists.bob)
    for client in (ann, ann, bob):
        client.create(prompt)
    names = [sent["safety_identifier"] for sent in stand_in.submissions(prompt)["requests"]]
    assert names[0] == names[1] != names[2]
    assert artists.ann.username not in names[0]


def test_an_image_without_a_count_of_tokens_has_no_usage(artist: ImageClient, prompt: str) -> None:
    assert not artist.create(f"{prompt} [[fault:no_usage]]").HasField("usage")


def test_a_rate_limit_is_waited_for_within_the_deadline(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    prompt += " [[fault:429:times=1:retry-after=1]]"
    started = time.monotonic()
    made = artist.create(prompt)
    assert time.monotonic() - started >= 1
    assert stand_in.count(prompt) == 2
    assert artist.get(made.guid) == made


# --- It does not -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """How the provider fails, what the caller is told, and how often the provider is asked in all.

    `costs` says whether an image may have been billed: then the provider is asked once, and never again.
    """

    fault: str
    code: grpc.StatusCode
    reason: str
    submissions: int = 1
    costs: bool = False

    def __str__(self) -> str:
        return self.fault.replace(":", " ")


_FAILURES = [
    Failure("moderation_blocked", _REFUSED, "PROMPT_REFUSED"),
    Failure("429:code=insufficient_quota", _EXHAUSTED, "PROVIDER_QUOTA"),
    Failure("429:code=project_spend_limit_exceeded", _EXHAUSTED, "PROVIDER_QUOTA"),
    Failure("429:retry-after=3000", _EXHAUSTED, "PROVIDER_RATE_LIMITED"),
    Failure("401", _REFUSED, "PROVIDER_MISCONFIGURED"),
    Failure("403", _REFUSED, "PROVIDER_MISCONFIGURED"),
    Failure("404", _REFUSED, "PROVIDER_MISCONFIGURED"),
    Failure("redirect", _REFUSED, "PROVIDER_MISCONFIGURED"),
    Failure("error_as_success:code=moderation_blocked", _REFUSED, "PROMPT_REFUSED"),
    Failure("503", _UNAVAILABLE, "PROVIDER_UNAVAILABLE", submissions=3),
    Failure("500", _UNAVAILABLE, "PROVIDER_UNAVAILABLE", costs=True),
    Failure("502", _UNAVAILABLE, "PROVIDER_UNAVAILABLE", costs=True),
    Failure("409", _UNAVAILABLE, "PROVIDER_UNAVAILABLE", costs=True),
    Failure("408", _TOO_LATE, "PROVIDER_TIMEOUT", costs=True),
    Failure("504", _TOO_LATE, "PROVIDER_TIMEOUT", costs=True),
    Failure("drop", _REFUSED, "OUTCOME_UNKNOWN", costs=True),
    Failure("drop_midway", _REFUSED, "OUTCOME_UNKNOWN", costs=True),
    Failure("empty_data", _UNAVAILABLE, "PROVIDER_UNAVAILABLE", costs=True),
    Failure("null_data", _UNAVAILABLE, "PROVIDER_UNAVAILABLE", costs=True),
    Failure("no_b64", _UNAVAILABLE, "PROVIDER_UNAVAILABLE", costs=True),
    Failure("bad_base64", _UNAVAILABLE, "PROVIDER_UNAVAILABLE", costs=True),
    Failure("not_an_image", _UNAVAILABLE, "PROVIDER_UNAVAILABLE", costs=True),
    Failure("truncated", _UNAVAILABLE, "PROVIDER_UNAVAILABLE", costs=True),
    Failure("bad_json", _UNAVAILABLE, "PROVIDER_UNAVAILABLE", costs=True),
    Failure("html", _UNAVAILABLE, "PROVIDER_UNAVAILABLE", costs=True),
    Failure("error_as_success", _UNAVAILABLE, "PROVIDER_UNAVAILABLE", costs=True),
]


@pytest.mark.parametrize("failure", _FAILURES, ids=str)
def test_a_failure_is_told_and_paid_for_once_at_most(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str, failure: Failure
) -> None:
    prompt += f" [[fault:{failure.fault}]]"
    request = pb.CreateImageRequest(prompt=prompt, request_id=str(uuid.uuid4()), options=SMALL)

    refused = artist.refused(request)
    assert (refused.code, refused.reason) == (failure.code, failure.reason)
    assert stand_in.count(prompt) == failure.submissions
    _check_discretion(refused, prompt)

    if not failure.costs:
        reassure(artist)
    again = artist.refused(request)
    if failure.costs:
        assert (again.code, again.reason) == (_REFUSED, "OUTCOME_UNKNOWN")
        assert stand_in.count(prompt) == 1
    else:
        assert (again.code, again.reason) == (failure.code, failure.reason)
        assert stand_in.count(prompt) == 2 * failure.submissions
    assert artist.guids(prompt=prompt.split()[2]) == [], "nothing is stored"


def _check_discretion(refused: Refusal, prompt: str) -> None:
    """Check that an error holds neither the prompt nor what the provider said in its own words."""
    text = f"{refused.message} {refused.details}"
    assert prompt.split()[2] not in text
    assert "stand-in" not in text


def test_a_refused_prompt_says_where_and_what_for(artist: ImageClient, prompt: str) -> None:
    prompt += " [[fault:moderation_blocked:stage=output:categories=violence,self-harm]]"
    refused = artist.refused(pb.CreateImageRequest(prompt=prompt))
    assert refused.metadata == {"stage": "output", "categories": "violence,self-harm"}
    assert refused.retry_after is None


def test_an_answer_that_cannot_be_read_is_kept_for_the_operator_alone(
    artist: ImageClient, provider_server: RunningServer, prompt: str
) -> None:
    refused = artist.refused(pb.CreateImageRequest(prompt=f"{prompt} [[fault:no_b64]]"))

    [guid] = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", refused.message)
    kept = provider_server.image_folder / ".aside" / guid
    assert json.loads(kept.read_bytes())["data"] == [{"url": "https://example.com/picture.png"}]
    assert not re.search(r"/|http|\.aside", refused.message)
    [line] = [line for line in provider_server.wait_for_end_of(refused.call_id) if str(kept) in line]
    assert " WARNING " in line
    for request in (pb.GetImageRequest(guid=guid), pb.GetImageContentRequest(guid=guid)):
        assert artist.refused(request).reason == "IMAGE_NOT_FOUND"


def test_the_provider_s_reason_reaches_the_operator(
    artist: ImageClient, provider_server: RunningServer, prompt: str
) -> None:
    said = base64.urlsafe_b64encode(b"Your organization must be verified to use this model.").decode()
    refused = artist.refused(pb.CreateImageRequest(prompt=f"{prompt} [[fault:403:message64={said}]]"))

    assert "verified" not in refused.message
    [line] = [line for line in provider_server.wait_for_end_of(refused.call_id) if "must be verified" in line]
    assert " WARNING " in line


def test_a_rate_limit_beyond_the_deadline_is_told_at_once(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    prompt += " [[fault:429:retry-after=30]]"
    started = time.monotonic()
    refused = artist.refused(pb.CreateImageRequest(prompt=prompt), timeout=20)
    assert time.monotonic() - started < 10
    assert (refused.code, refused.reason) == (_EXHAUSTED, "PROVIDER_RATE_LIMITED")
    assert refused.retry_after == 30
    assert stand_in.count(prompt) == 1


def test_an_empty_account_is_told_as_a_quota_and_no_retry_is_offered(artist: ImageClient, prompt: str) -> None:
    refused = artist.refused(pb.CreateImageRequest(prompt=f"{prompt} [[fault:429:code=insufficient_quota]]"))
    assert refused.quota == ["provider account"]
    assert refused.retry_after is None


def test_an_unknown_model_is_the_callers_fault_where_the_caller_named_it(artist: ImageClient, prompt: str) -> None:
    options = pb.GenerationOptions(model="gpt-image-nil")
    refused = artist.refused(pb.CreateImageRequest(prompt=prompt, options=options))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(refused.violations) == ["options.model"]


def test_an_unknown_model_is_the_servers_fault_where_it_is_the_default(
    stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    with running_server(tmp_path, asking(stand_in) | {"PIXYPROXY_MODEL": "gpt-image-nil"}) as server:
        refused = ImageClient(server, server.admin).refused(pb.CreateImageRequest(prompt=prompt))
        assert (refused.code, refused.reason) == (_REFUSED, "PROVIDER_MISCONFIGURED")
        assert "model" in refused.message


@pytest.mark.parametrize(
    ("param", "field"),
    [("size", "options.size"), ("quality", "options.quality"), ("prompt", "prompt"), ("other", "options")],
)
def test_a_parameter_that_the_provider_refuses_is_named(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str, param: str, field: str
) -> None:
    prompt += f" [[fault:400:param={param}:code=invalid_value:message=Not%20with%20this%20model.]]"
    refused = artist.refused(pb.CreateImageRequest(prompt=prompt))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(refused.violations) == [field]
    assert stand_in.count(prompt) == 1


# --- It does not answer ----------------------------------------------------------------------------------------------


def test_a_provider_that_hangs_is_given_up_after_the_servers_own_limit(
    short_timeout_server: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    artist = ImageClient(short_timeout_server, short_timeout_server.admin)
    prompt += " [[fault:hang]]"
    request = pb.CreateImageRequest(prompt=prompt, request_id=str(uuid.uuid4()))
    started = time.monotonic()
    refused = artist.refused(request, timeout=None)
    assert 3 <= time.monotonic() - started < 12
    assert (refused.code, refused.reason) == (_TOO_LATE, "PROVIDER_TIMEOUT")
    again = artist.refused(request)
    assert (again.code, again.reason) == (_REFUSED, "OUTCOME_UNKNOWN")
    assert stand_in.count(prompt) == 1


def test_details_arrive_before_the_callers_deadline_passes(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    def ask() -> Refusal | None:
        key = str(uuid.uuid4())
        request = pb.CreateImageRequest(prompt=f"{prompt} {key} [[fault:slow=2]]", request_id=key)
        try:
            return artist.refused(request, timeout=1.2)
        except UnexplainedError:
            return None

    # A tenth of a second is kept for the way; a busy machine may need longer now and then.
    refused = wait_until(ask, TIMEOUT, "the server to say why before the deadline itself ends the call")
    assert (refused.code, refused.reason) == (_TOO_LATE, "PROVIDER_TIMEOUT")
    assert "same request_id" in refused.message


def test_what_became_of_a_call_that_ran_out_of_time_is_waited_for(
    short_timeout_server: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    artist = ImageClient(short_timeout_server, short_timeout_server.admin)
    reassure(artist)
    prompt += " [[fault:hang]]"
    request = pb.CreateImageRequest(prompt=prompt, request_id=str(uuid.uuid4()))
    first = artist.stub.CreateImage.future(request, metadata=artist.metadata, timeout=2.5)
    wait_until(lambda: stand_in.count(prompt), TIMEOUT, "the submission")
    # A call that joins a generation gets the result of the one that started it.
    joined = artist.refused(request)
    assert first.code() is _TOO_LATE
    assert (joined.code, joined.reason) == (_TOO_LATE, "PROVIDER_TIMEOUT")
    again = artist.refused(request)
    assert (again.code, again.reason) == (_REFUSED, "OUTCOME_UNKNOWN")
    assert stand_in.count(prompt) == 1


def test_a_provider_that_drips_is_given_up_as_well(
    short_timeout_server: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    artist = ImageClient(short_timeout_server, short_timeout_server.admin)
    prompt += " [[fault:drip]]"
    refused = artist.refused(pb.CreateImageRequest(prompt=prompt))
    assert (refused.code, refused.reason) == (_TOO_LATE, "PROVIDER_TIMEOUT")
    assert stand_in.count(prompt) == 1


def test_a_provider_that_cannot_be_reached(tmp_path: Path, prompt: str) -> None:
    with socket.socket() as taken:
        # Bound and not listened on: connections are refused, and nobody else can take the port.
        taken.bind(("127.0.0.1", 0))
        settings = {"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": f"http://127.0.0.1:{taken.getsockname()[1]}/v1"}
        with running_server(tmp_path, settings) as server:
            request = pb.CreateImageRequest(prompt=prompt, request_id=str(uuid.uuid4()))
            artist = ImageClient(server, server.admin)
            for _ in range(2):
                refused = artist.refused(request)
                assert (refused.code, refused.reason) == (_UNAVAILABLE, "PROVIDER_UNAVAILABLE")


# --- Sparing it ------------------------------------------------------------------------------------------------------


def test_a_provider_that_is_down_is_not_asked_for_a_while(
    stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    with running_server(tmp_path, asking(stand_in)) as server:
        artist = ImageClient(server, server.admin)
        for number in range(5):
            artist.refused(pb.CreateImageRequest(prompt=f"{prompt} {number} [[fault:502]]"))
        request = pb.CreateImageRequest(prompt=prompt, request_id=str(uuid.uuid4()))
        # What could wait until the provider is asked again does so: only for a few seconds is it refused at once.
        refused = artist.refused(request, timeout=2)
        assert (refused.code, refused.reason) == (_UNAVAILABLE, "PROVIDER_UNAVAILABLE")
        assert refused.retry_after is not None
        assert 0 < refused.retry_after <= 5
        assert stand_in.count(prompt) == 0
        # As it was not submitted, it may be queued again.
        assert artist.refused(request, timeout=2).reason == "PROVIDER_UNAVAILABLE"


def test_what_goes_beyond_the_pace_and_the_deadline_is_refused_at_once(
    stand_in: RunningStandIn, prompt: str, tmp_path: Path
) -> None:
    with running_server(tmp_path, asking(stand_in) | {"PIXYPROXY_IMAGES_PER_MINUTE": "1"}) as server:
        artist = ImageClient(server, server.admin)
        artist.create(f"first {prompt}")
        started = time.monotonic()
        refused = artist.refused(pb.CreateImageRequest(prompt=prompt), timeout=30)
        assert time.monotonic() - started < 10
        assert (refused.code, refused.reason) == (_EXHAUSTED, "TOO_BUSY")
        assert refused.retry_after is not None
        assert 30 < refused.retry_after <= 60
        assert stand_in.count(prompt) == 0
