"""Gateways between PixyProxy and the provider, set up as docs/operations.md says: nothing is paid for twice."""

from __future__ import annotations

import base64
import re
import secrets
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import reassure
from tests.support.image_client import ImageClient
from tests.support.image_urls import picture_for
from tests.support.litellm_proxy import MASTER_KEY, running_litellm
from tests.support.openai_stand_in import RunningStandIn
from tests.support.portkey_gateway import running_portkey
from tests.support.servers import running_server

_DOCUMENT = Path(__file__).parents[2] / "docs/operations.md"
_SHORT_TIMEOUT = "gpt-image-2"
"""The model with a timeout of one second in LiteLLM."""


@dataclass(frozen=True)
class Case:
    """What the provider does behind the gateway, and what the caller is told; then, asked again, what.

    Where `then` is empty, nothing was paid for, and the request is submitted again.
    """

    fault: str
    told: str
    then: str = "OUTCOME_UNKNOWN"
    submissions: int = 1
    model: str = ""
    partial_images: int = 0


def _message(text: str) -> str:
    return f"message64={base64.urlsafe_b64encode(text.encode()).decode()}"


_UNAVAILABLE, _TIMEOUT, _LIMITED = "PROVIDER_UNAVAILABLE", "PROVIDER_TIMEOUT", "PROVIDER_RATE_LIMITED"
_REFUSED = f"moderation_blocked:{_message('Your request was rejected by the safety system.')}"
_MONEY = f"429:code=insufficient_quota:{_message('You exceeded your current quota, please check your plan.')}"

_UNFETCHABLE = [
    Case("no_b64", _UNAVAILABLE),
    Case("url:get=404", _UNAVAILABLE),
    Case("url:get=gif", _UNAVAILABLE),
]
_BY_MODEL = [
    Case("slow=3", _TIMEOUT, model=_SHORT_TIMEOUT),
    Case("drop", _UNAVAILABLE),
    Case("drop_midway", _UNAVAILABLE),
    Case("bad_json", _UNAVAILABLE),
    Case("html", _UNAVAILABLE),
    *_UNFETCHABLE,
    Case("empty_data", _UNAVAILABLE),
    Case("408", _TIMEOUT),
    Case("409", _UNAVAILABLE),
    Case("424", _UNAVAILABLE),
    Case("500", _UNAVAILABLE),
    Case("502", _UNAVAILABLE),
    Case("504", _TIMEOUT),
    Case("529", _UNAVAILABLE),
    Case("redirect", _UNAVAILABLE, submissions=21),
    Case("400", "INVALID_FIELD", ""),
    Case("400:param=size", "INVALID_FIELD", ""),
    Case("422", "INVALID_FIELD", ""),
    Case(_REFUSED, "PROMPT_REFUSED", ""),
    Case("401", "PROVIDER_MISCONFIGURED", ""),
    Case("403", "PROVIDER_MISCONFIGURED", ""),
    Case("404", "PROVIDER_MISCONFIGURED", ""),
    Case("402", "PROVIDER_QUOTA", ""),
    Case(_MONEY, "PROVIDER_QUOTA", ""),
    Case("429", _LIMITED, "", submissions=4),
    Case("503", _UNAVAILABLE, "", submissions=3),
]
_PASSED_THROUGH = [
    Case("drop", _UNAVAILABLE),
    Case("drop_midway", _UNAVAILABLE),
    Case("bad_json", _UNAVAILABLE),
    Case("408", _TIMEOUT),
    Case("500", _UNAVAILABLE),
    Case("redirect", _UNAVAILABLE, submissions=21),
    Case("moderation_blocked", "PROMPT_REFUSED", ""),
    Case("429:code=insufficient_quota", "PROVIDER_QUOTA", ""),
    Case("429:retry-after=3000", _LIMITED, ""),
    Case("503:retry-after-ms=1", _UNAVAILABLE, "", submissions=3),
]


_BEHIND_PORTKEY = [
    Case("drop", _UNAVAILABLE),
    Case("drop_midway", _UNAVAILABLE),
    Case("bad_json", _UNAVAILABLE),
    Case("html", _UNAVAILABLE),
    Case("empty_data", _UNAVAILABLE),
    *_UNFETCHABLE,
    Case("408", _TIMEOUT),
    Case("500", _UNAVAILABLE),
    Case("529", _UNAVAILABLE),
    Case("redirect", _UNAVAILABLE, submissions=21),
    Case("stream_done", _UNAVAILABLE, partial_images=1),
    Case("moderation_blocked", "PROMPT_REFUSED", ""),
    Case("400:param=size", "INVALID_FIELD", ""),
    Case("401", "PROVIDER_MISCONFIGURED", ""),
    Case("429:code=insufficient_quota", "PROVIDER_QUOTA", ""),
    Case("429:retry-after=3000", _LIMITED, ""),
    Case("503", _UNAVAILABLE, "", submissions=3),
]


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, stand_in: RunningStandIn) -> Iterator[str]:
    """LiteLLM with the documented configuration, and a second model with a short timeout."""
    section = _DOCUMENT.read_text(encoding="utf-8").partition("## Gateways\n")[2]
    documented = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)[0]
    short_timeout = f"""model_list:
  - model_name: {_SHORT_TIMEOUT}
    litellm_params:
      model: openai/{_SHORT_TIMEOUT}
      api_key: os.environ/OPENAI_API_KEY
      timeout: 1
"""
    config = documented.replace("model_list:\n", short_timeout, 1)
    with running_litellm(tmp_path_factory.mktemp("litellm"), config, stand_in) as address:
        yield address


# One test, so that LiteLLM is started once, however many processes run the tests.
def test_each_answer_behind_a_gateway_is_paid_for_once(
    gateway: str, stand_in: RunningStandIn, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for way, cases in (("/v1", _BY_MODEL), ("/openai/v1", _PASSED_THROUGH)):
        settings = {
            "OPENAI_API_KEY": MASTER_KEY,
            "OPENAI_BASE_URL": f"{gateway}{way}",
            "PIXYPROXY_PROVIDER_IMAGE_HOSTS": stand_in.address,
        }
        with running_server(tmp_path / way.strip("/").replace("/", "-"), settings) as server:
            artist = ImageClient(server, server.admin)
            with subtests.test("an image", way=way):
                made = artist.create("a lighthouse behind a gateway")
                assert made.usage.total_tokens == made.usage.input_tokens + 1056
            with subtests.test("a url", way=way):
                _check_url(artist, stand_in)
            with subtests.test("an edit", way=way):
                _check_edit(artist, stand_in, made)
            for case in cases:
                with subtests.test(case.fault, way=way):
                    reassure(artist)
                    _check(artist, stand_in, case)


def test_each_answer_behind_portkey_is_paid_for_once(
    stand_in: RunningStandIn, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    section = _DOCUMENT.read_text(encoding="utf-8").partition("**Portkey.**")[2]
    [headers] = re.findall(r"OPENAI_CUSTOM_HEADERS=\$'(.*?)'", section)
    assert "https://api.openai.com/v1" in headers
    with running_portkey(tmp_path) as gateway:
        settings = {
            "OPENAI_API_KEY": stand_in.api_key,
            "OPENAI_BASE_URL": f"{gateway}/v1",
            "OPENAI_CUSTOM_HEADERS": headers.replace("\\n", "\n").replace(
                "https://api.openai.com/v1", stand_in.base_url
            ),
            "PIXYPROXY_PROVIDER_IMAGE_HOSTS": stand_in.address,
        }
        with running_server(tmp_path / "server", settings) as server:
            artist = ImageClient(server, server.admin)
            with subtests.test("an image"):
                options = pb.GenerationOptions(size="64x64", quality="low", output_format="webp")
                made = artist.create("a lighthouse behind portkey", options=options)
                # It drops the output format.
                assert (made.content_type, made.width, made.height) == ("image/png", 64, 64)
                [sent] = stand_in.submissions("a lighthouse behind portkey")["requests"]
                assert set(sent) == {"model", "prompt", "n", "size", "quality"}
            with subtests.test("a url"):
                _check_url(artist, stand_in)
            for case in _BEHIND_PORTKEY:
                with subtests.test(case.fault):
                    reassure(artist)
                    _check(artist, stand_in, case)


def _check_url(artist: ImageClient, stand_in: RunningStandIn) -> None:
    """Have an answer with a URL, which leads past the gateway, so that the gateway's key must not be sent to it."""
    prompt = f"a lighthouse {secrets.token_hex(8)} [[fault:url]]"
    made = artist.create(prompt, options=pb.GenerationOptions(size="64x64"))
    assert artist.content(made.guid)[1] == picture_for(prompt)
    [headers] = stand_in.fetches(prompt)["headers"]
    assert not [name for name in headers if name.lower() == "authorization" or name.lower().startswith("x-portkey")]
    assert stand_in.count(prompt) == 1


def _check_edit(artist: ImageClient, stand_in: RunningStandIn, source: pb.ImageDetail) -> None:
    prompt = f"a lighthouse in winter {secrets.token_hex(8)}"
    edited = artist.create(prompt, inputs=[pb.ImageInput(guid=source.guid)] * 2, mask=pb.ImageInput(guid=source.guid))
    assert (edited.origin, list(edited.source_guids)) == (pb.ORIGIN_EDITED, [source.guid] * 2)
    [sent] = stand_in.submissions(prompt)["requests"]
    assert [one["sha256"] for one in [*sent["image"], sent["mask"]]] == [source.sha256] * 3


def _check(artist: ImageClient, stand_in: RunningStandIn, case: Case) -> None:
    prompt = f"a lighthouse {secrets.token_hex(8)} [[fault:{case.fault}]]"
    options = pb.GenerationOptions(size="64x64", model=case.model, partial_images=case.partial_images)
    request = pb.CreateImageRequest(prompt=prompt, request_id=str(uuid.uuid4()), options=options)

    refused = artist.refused(request)

    assert (refused.reason, stand_in.count(prompt)) == (case.told, case.submissions)
    assert prompt.split()[2] not in f"{refused.message} {refused.details}"
    again = artist.refused(request)
    if case.then:
        assert (again.reason, stand_in.count(prompt)) == (case.then, case.submissions)
    else:
        assert (again.reason, stand_in.count(prompt)) == (case.told, 2 * case.submissions)
