"""`pixyproxy create --like`: an image is made again from its own detail."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import People
from tests.integration.test_commands import NOBODY, variables_of
from tests.integration.test_options import UNUSUAL
from tests.support.image_client import ImageClient
from tests.support.openai_stand_in import RunningStandIn
from tests.support.servers import Finished, RunningServer, environment, run_command

Run = Callable[..., Finished]


@pytest.fixture
def run(provider_server: RunningServer, artists: People, tmp_path: Path) -> Run:
    """Runs a command as Ann."""

    def do(*arguments: str, text: str = "") -> Finished:
        env = environment(tmp_path) | {"HOME": str(tmp_path)} | variables_of(provider_server.address, artists.ann)
        return run_command(*arguments, env=env, text=text, cwd=tmp_path)

    return do


def made_by(done: Finished) -> dict[str, Any]:
    assert done.status == 0, done
    image: dict[str, Any] = json.loads(done.stdout)
    return image


def change_row(server: RunningServer, guid: str, **columns: object) -> None:
    with server.database() as database, database.transaction() as context:
        changes = ", ".join(f"{name} = :{name}" for name in columns)
        context.execute(f"UPDATE images SET {changes} WHERE guid = :guid", columns | {"guid": guid})
        context.commit()


def test_an_image_is_made_again_from_its_own_detail(
    run: Run, artist: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    flags = {"output_format": "format", "output_compression": "compression"}
    chosen = [f"--{flags.get(name, name)}={value}" for name, value in UNUSUAL.items()]
    first = made_by(run("create", prompt, "--tag", "sea", "--public", *chosen, "--json"))
    assert first["options"] == UNUSUAL

    again = made_by(run("create", "--like", first["guid"], "--json"))

    assert again["guid"] != first["guid"]
    assert (again["prompt"], again["options"], again["origin"]) == (prompt, UNUSUAL, "ORIGIN_GENERATED")
    # Nothing becomes public, or is found by a tag, because something else does.
    assert (again["visibility"], again["tags"]) == ("VISIBILITY_PRIVATE", [])
    one, other = stand_in.submissions(prompt)["requests"]
    assert one == other
    assert one.items() >= UNUSUAL.items()


def test_what_was_left_open_is_what_the_provider_chose(run: Run, stand_in: RunningStandIn, prompt: str) -> None:
    first = made_by(run("create", prompt, "--json"))
    made_by(run("create", "--like", first["guid"], "--json"))
    one, other = stand_in.submissions(prompt)["requests"]
    assert other == one | {"size": "1024x1024", "quality": "low", "background": "opaque"}


def test_what_is_given_beside_it_wins(run: Run, artist: ImageClient, stand_in: RunningStandIn, prompt: str) -> None:
    first = artist.create(prompt, options=pb.GenerationOptions(**UNUSUAL))
    other = f"{prompt} at night"
    made_by(
        run("create", other, "--like", first.guid, "--size", "64x64", "--compression", "7", "--moderation", "auto",
            "--tag", "night", "--json")
    )  # fmt: skip
    (sent,) = stand_in.submissions(other)["requests"]
    expected = UNUSUAL | {"size": "64x64", "output_compression": 7}
    del expected["moderation"]  # The provider's default is not sent.
    assert {name: sent.get(name) for name in UNUSUAL} == expected | {"moderation": None}


def test_a_compression_belongs_to_its_format(run: Run, artist: ImageClient, prompt: str) -> None:
    first = artist.create(prompt, options=pb.GenerationOptions(**UNUSUAL))
    png = made_by(run("create", "--like", first.guid, "--format", "png", "--json"))["options"]
    assert (png["output_format"], png.get("output_compression")) == ("png", None)
    webp = made_by(run("create", "--like", first.guid, "--format", "webp", "--json"))["options"]
    assert webp["output_compression"] == 0


def test_partial_images_are_not_asked_for_again(
    run: Run, artist: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    first = artist.create(prompt, options=pb.GenerationOptions(size="64x64", partial_images=2))
    made_by(run("create", "--like", first.guid, "--json"))
    _, other = stand_in.submissions(prompt)["requests"]
    assert not {"stream", "partial_images"} & other.keys()


def test_a_repetition_under_a_request_id_makes_nothing_new(
    run: Run, artist: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    first = artist.create(prompt)
    key = str(uuid.uuid4())
    guids = {made_by(run("create", "--like", first.guid, "--request-id", key, "--json"))["guid"] for _ in range(2)}
    assert len(guids) == 1
    assert stand_in.count(prompt) == 2


def test_an_image_of_an_earlier_release_gives_its_prompt_and_model(
    run: Run, artist: ImageClient, provider_server: RunningServer, stand_in: RunningStandIn, prompt: str
) -> None:
    first = artist.create(prompt, options=pb.GenerationOptions(model="gpt-image-2", size="64x64"))
    change_row(provider_server, first.guid, options=None)
    done = run("create", "--like", first.guid, "--json")
    assert made_by(done)["model"] == "gpt-image-2"
    assert "earlier release" in done.stderr
    assert "only its prompt and its model are taken" in done.stderr
    _, other = stand_in.submissions(prompt)["requests"]
    assert (other["model"], other.get("size")) == ("gpt-image-2", None)


def test_an_edited_image_is_made_again_from_its_sources(
    run: Run, artist: ImageClient, stand_in: RunningStandIn, prompt: str
) -> None:
    first, second = artist.create("a castle"), artist.create("a moat")
    inputs = [pb.ImageInput(guid=image.guid) for image in (first, second, first)]
    edited = artist.create(prompt, inputs=inputs, options=pb.GenerationOptions(quality="high", input_fidelity="high"))
    done = run("create", "--like", edited.guid, "--json")
    assert made_by(done)["source_guids"] == [first.guid, second.guid, first.guid]
    assert "If a mask was used, it was not stored" in done.stderr
    one, other = stand_in.submissions(prompt)["requests"]
    assert [file["sha256"] for file in other["image"]] == [file["sha256"] for file in one["image"]]
    assert (other["quality"], other["input_fidelity"]) == ("high", "high")


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        (2, "was made from images that are deleted, or that you may not see."),
        (3, "was imported: there is nothing to make it again from."),
    ],
)
def test_an_image_without_what_it_was_made_from_cannot_be_made_again(
    run: Run,
    artist: ImageClient,
    provider_server: RunningServer,
    stand_in: RunningStandIn,
    prompt: str,
    origin: int,
    said: str,
) -> None:
    first = artist.create(prompt)
    change_row(provider_server, first.guid, options=None, origin=origin)
    for words in ([], ["another prompt"]):
        done = run("create", *words, "--like", first.guid)
        assert (done.status, done.stdout) == (2, "")
        assert f"The image {first.guid} {said}" in done.stderr
    assert stand_in.count(prompt) == 1


@pytest.mark.parametrize(("guid", "status"), [(NOBODY, 3), ("x", 2)])
def test_an_image_that_does_not_exist_is_not_found(run: Run, guid: str, status: int) -> None:
    done = run("create", "--like", guid)
    assert (done.status, done.stdout) == (status, "")


def test_another_user_s_image_is_taken_where_it_is_public(
    run: Run, provider_server: RunningServer, artists: People, prompt: str
) -> None:
    bob = ImageClient(provider_server, artists.bob)
    assert made_by(run("create", "--like", bob.create_public(prompt).guid, "--json"))["author"] == artists.ann.username
    assert run("create", "--like", bob.create(prompt).guid).status == 3


def test_something_must_be_said(run: Run) -> None:
    done = run("create")
    assert (done.status, done.stdout) == (2, "")
    assert "Give a prompt, or an image with --like." in done.stderr


def test_a_prompt_may_come_from_standard_input(run: Run, artist: ImageClient, stand_in: RunningStandIn) -> None:
    first = artist.create(f"a lighthouse {uuid.uuid4()}")
    other = f"a mill {uuid.uuid4()}"
    made_by(run("create", "-", "--like", first.guid, "--json", text=other))
    assert stand_in.count(other) == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--compression", "50"], "--compression: needs the output format webp or jpeg"),
        (["--compression", "101"], "Invalid value for '--compression'"),
        (["--moderation", "high"], "--moderation: must be 'auto' or 'low'"),
        (["--input-fidelity", "high"], "--input-fidelity: needs at least one image in inputs"),
        (["--model", "gpt-image-2", "--size", "1000x1000"], "--size: width and height must be multiples of 16"),
    ],
)
def test_options_that_are_refused_are_named_as_they_are_typed(
    run: Run, stand_in: RunningStandIn, prompt: str, flags: list[str], said: str
) -> None:
    done = run("create", prompt, *flags)
    assert (done.status, done.stdout) == (2, "")
    assert said in done.stderr
    assert stand_in.count(prompt) == 0


def test_a_person_is_shown_options_origin_and_token_counts(run: Run, artist: ImageClient, prompt: str) -> None:
    source = artist.create(prompt)
    image = artist.create(prompt, options=pb.GenerationOptions(**UNUSUAL))
    change_row(artist.server, image.guid, origin=2, source_guids=json.dumps([source.guid]))
    lines = run("get", image.guid).stdout.splitlines()
    assert "options     size 96x64, quality max, format webp, background opaque, moderation low, compression 0" in lines
    assert "origin      edited" in lines
    assert f"sources     {source.guid}" in lines
    count = source.usage.input_tokens
    assert (
        f"tokens      {count + 1056:,} ({count} of text and 0 of images in, 0 of text and 1,056 of images out)" in lines
    )
    plain = run("get", source.guid).stdout
    assert "origin      generated" in plain
    assert "sources" not in plain

    read = json.loads(run("get", image.guid, "--json").stdout)
    assert (read["origin"], read["source_guids"]) == ("ORIGIN_EDITED", [source.guid])
    assert read["usage"]["output_image_tokens"] == 1056
