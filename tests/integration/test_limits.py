"""Requests that go exactly as far as the rules allow."""

from __future__ import annotations

import uuid

import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import People
from tests.support.image_client import ImageClient
from tests.support.openai_stand_in import RunningStandIn
from tests.support.servers import RunningServer

_EMOJI = "\N{GRINNING FACE}"


@pytest.mark.parametrize("character", ["x", _EMOJI, "日"])
def test_the_longest_prompt(artist: ImageClient, stand_in: RunningStandIn, character: str) -> None:
    unique = uuid.uuid4().hex
    prompt = f"{unique} " + character * (32_000 - len(unique) - 1)
    assert len(prompt) == 32_000
    made = artist.create(prompt)
    assert made.prompt == prompt
    assert artist.get(made.guid).prompt == prompt
    assert [sent["prompt"] for sent in stand_in.submissions("")["requests"]].count(prompt) == 1


def test_the_longest_of_everything_on_every_database(any_server: RunningServer) -> None:
    author = ImageClient(any_server, any_server.new_login(username=_EMOJI * 58 + uuid.uuid4().hex[:6]))
    tags = [_EMOJI * 62 + f"{number:02}" for number in range(32)]
    prompt = "".join(chr(code) for code in range(0x4E00, 0x4E00 + 20_000)) + _EMOJI * 12_000
    made = author.create(prompt, tags=tags, filename=_EMOJI * 255)
    assert (list(made.tags), made.filename, made.prompt) == (tags, _EMOJI * 255, prompt)
    assert author.get(made.guid) == made
    assert author.guids(tags=tags, filename=_EMOJI * 255, author=made.author, prompt="一丁") == [made.guid]


@pytest.mark.parametrize(
    "text", ["a\tb", "a\nb", "a\r\nb", " a ", "a\N{NO-BREAK SPACE}b", "e\u0301", "\N{ZERO WIDTH JOINER}x"]
)
def test_a_prompt_comes_back_as_it_was_sent(any_server: RunningServer, text: str) -> None:
    author = ImageClient(any_server, any_server.admin)
    assert author.get(author.create(text).guid).prompt == text


def test_tags_that_look_alike(any_server: RunningServer) -> None:
    author = ImageClient(any_server, any_server.new_login())
    made = author.create(
        tags=["é", "e", "É", "E", "e\u0301", "ß", "ss", " e", _EMOJI, "\N{UNAMUSED FACE}", "\N{UNAMUSED FACE}"]
    )
    # Case, accents and spaces tell tags apart; whether an é is one character or two does not.
    assert list(made.tags) == ["é", "e", "É", "E", "ß", "ss", " e", _EMOJI, "\N{UNAMUSED FACE}"]
    assert author.get(made.guid) == made
    assert author.guids(tags=["e\u0301"], guid=made.guid) == [made.guid]
    for other in ("Ss", "è", "\N{SMILING FACE WITH HORNS}", "e "):
        assert author.guids(tags=[other], guid=made.guid) == []


def test_a_filename_in_any_script(server: RunningServer, people: People) -> None:
    ann = ImageClient(server, people.ann)
    for filename in ("...", "con", "a b.png", "файл.png", "%s", "~", "-rf", "x" * 255):
        assert ann.create(filename=filename).filename == filename
    assert ann.create(_EMOJI).filename == "image.png"


def test_visibility_may_be_left_open(server: RunningServer, people: People) -> None:
    made = ImageClient(server, people.ann).create(visibility=pb.VISIBILITY_UNSPECIFIED)
    assert made.visibility == pb.VISIBILITY_PRIVATE
