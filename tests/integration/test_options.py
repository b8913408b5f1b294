"""Options of images, from a request to the provider and into the detail, over gRPC."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import asking
from tests.support.generation_client import SUCCEEDED, GenerationClient
from tests.support.image_client import ImageClient
from tests.support.openai_stand_in import RunningStandIn
from tests.support.servers import RunningServer, running_server

MODEL = "gpt-image-2.5-flare"
UNUSUAL: dict[str, Any] = {
    "model": "gpt-image-2.5-sunburst",
    "size": "96x64",
    "quality": "max",
    "output_format": "webp",
    "background": "opaque",
    "moderation": "low",
    "output_compression": 0,
}


@pytest.fixture
def generations(provider_server: RunningServer, artist: ImageClient) -> GenerationClient:
    return GenerationClient(provider_server, artist.login)


def says(**fields: Any) -> str:
    """Return the control word that replaces these fields of the provider's answer."""
    return f" [[fault:says={base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()}]]"


def test_options_are_sent_and_kept(artist: ImageClient, stand_in: RunningStandIn, prompt: str) -> None:
    made = artist.create(prompt, options=pb.GenerationOptions(**UNUSUAL))

    assert made.options == pb.GenerationOptions(**UNUSUAL)
    assert made.origin == pb.ORIGIN_GENERATED
    assert list(made.source_guids) == []
    (sent,) = stand_in.submissions(prompt)["requests"]
    assert sent.items() >= UNUSUAL.items()
    [listed] = artist.page(guid=made.guid).images
    assert artist.get(made.guid) == listed == made
    assert artist.update(made.guid, tags=["new"]).options == made.options


def test_the_provider_s_words_on_options_count(artist: ImageClient, prompt: str) -> None:
    prompt += says(size="1024x1536", quality="medium", background="opaque", output_format="webp")
    made = artist.create(prompt, options=pb.GenerationOptions(size="64x64", moderation="auto"))
    assert made.options == pb.GenerationOptions(
        model=MODEL, size="1024x1536", quality="medium", background="opaque", output_format="webp", moderation="auto"
    )
    # These are read from the bytes.
    assert (made.width, made.height, made.content_type) == (64, 64, "image/png")


def test_an_image_is_kept_whose_provider_names_options_that_contradict_the_request(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    prompt += says(output_format="png")
    made = artist.create(
        prompt, options=pb.GenerationOptions(size="64x64", output_format="webp", output_compression=50)
    )
    assert (made.options.output_format, made.options.HasField("output_compression")) == ("png", False)
    assert stand_in.count(prompt) == 1
    assert artist.content(made.guid)[1]


def test_token_counts_are_kept_in_part_and_as_a_whole(artist: ImageClient, prompt: str) -> None:
    whole = artist.create(prompt).usage
    assert (whole.input_text_tokens, whole.input_image_tokens) == (whole.input_tokens, 0)
    assert (whole.output_text_tokens, whole.output_image_tokens) == (0, whole.output_tokens)
    assert whole.HasField("input_image_tokens")
    usage = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12, "input_tokens_details": "many"}
    part = artist.create(prompt + says(usage=usage)).usage
    assert part == pb.Usage(input_tokens=7, output_tokens=5, total_tokens=12)


def test_a_streamed_answer_has_no_count_of_its_output_s_parts(artist: ImageClient, prompt: str) -> None:
    options = pb.GenerationOptions(size="64x64", partial_images=1)
    made = artist.create(prompt, options=options)
    assert made.usage.HasField("input_text_tokens")
    assert not made.usage.HasField("output_image_tokens")
    assert made.options.partial_images == 1


def test_a_generation_shows_the_options_of_its_request_and_of_its_image(
    generations: GenerationClient, prompt: str
) -> None:
    started = generations.start(prompt, options=pb.GenerationOptions(**UNUSUAL))
    ended = generations.wait_for(started.guid, SUCCEEDED)
    assert ended.request.options == ended.image.options == pb.GenerationOptions(**UNUSUAL)


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"output_compression": 0}, "output_compression"), ({"model": "gpt-image-2", "size": "1000x1000"}, "size")],
)
def test_a_generation_with_impossible_options_is_not_recorded(
    generations: GenerationClient, prompt: str, fields: dict[str, Any], field: str
) -> None:
    options = pb.GenerationOptions(**fields)
    request = gpb.CreateGenerationRequest(request=pb.CreateImageRequest(prompt=prompt, options=options))
    assert list(generations.refused("CreateGeneration", request).violations) == [f"request.options.{field}"]
    assert prompt not in [generation.request.prompt for generation in generations.page().generations]


def test_what_is_documented_for_no_model_is_left_to_the_provider(
    artist: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    for model, size in (("gpt-image-2.6-flare", "1008x1000"), ("no-such-model", "9999x64")):
        request = pb.CreateImageRequest(prompt=prompt, options=pb.GenerationOptions(model=model, size=size))
        assert artist.refused(request).reason == "INVALID_FIELD"
    sent = stand_in.submissions(prompt)["requests"]
    assert [(body["model"], body["size"]) for body in sent] == [
        ("gpt-image-2.6-flare", "1008x1000"),
        ("no-such-model", "9999x64"),
    ]


def test_low_moderation_may_be_forbidden(tmp_path: Path, stand_in: RunningStandIn, prompt: str) -> None:
    with running_server(tmp_path, asking(stand_in) | {"PIXYPROXY_ALLOW_LOW_MODERATION": "false"}) as server:
        client = ImageClient(server, server.admin)
        refused = client.refused(pb.CreateImageRequest(prompt=prompt, options=pb.GenerationOptions(moderation="low")))
        assert refused.violations == {"options.moderation": "the operator of this server does not allow low"}
        assert stand_in.count(prompt) == 0
        assert client.create(prompt, options=pb.GenerationOptions(moderation="auto", size="64x64")).guid
