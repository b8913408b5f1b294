"""``pixyproxy import``, as programs and people use it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from pixyproxy.core.fields import new_guid
from tests.integration.test_commands import Run, ann, run
from tests.support.image_client import ImageClient
from tests.support.image_files import WITH_PROVENANCE, encode

__all__ = ["ann", "run"]


def write(folder: Path, **files: bytes) -> list[str]:
    """Write files, whose names have an underscore for the dot."""
    names = [name.replace("_", ".") for name in files]
    for name, data in zip(names, files.values(), strict=True):
        (folder / name).write_bytes(data)
    return names


def test_files_are_stored(run: Run, ann: ImageClient, tmp_path: Path) -> None:
    names = write(tmp_path, fox_png=WITH_PROVENANCE["png"], snow_jpg=encode("jpeg"), ice_webp=encode("webp"))
    done = run("import", *names, "--tag", "a", "--tag", "b", "--public", "--description", "A fox\nin the snow")
    assert (done.status, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [file for _, file in lines] == names
    for guid, file in lines:
        image = ann.get(guid)
        assert (image.prompt, list(image.tags), image.visibility) == ("A fox\nin the snow", ["a", "b"], 2)
        assert image.filename == file
        assert ann.content(guid)[1] == (tmp_path / file).read_bytes()


def test_json(run: Run, ann: ImageClient, tmp_path: Path) -> None:
    (name,) = write(tmp_path, fox_png=encode("png"))
    done = run("import", name, "--json", "--filename", "other.png")
    shown = json.loads(run("get", json.loads(done.stdout)["guid"], "--json").stdout)
    # Made in the background.
    assert json.loads(done.stdout) == shown | {"placeholder": ""}
    assert json.loads(done.stdout)["filename"] == "other.png"
    assert "model " not in run("get", json.loads(done.stdout)["guid"]).stdout
    assert run("list", "--limit", "3").status == 0


@pytest.mark.parametrize(("text", "rule"), [("no image", "must be a PNG, WebP or JPEG"), ("", "must not be empty")])
def test_standard_input(run: Run, text: str, rule: str) -> None:
    # Text, because the commands of tests are given text.
    refused = run("import", "-", text=text)
    assert (refused.status, refused.stdout) == (2, "")
    assert refused.stderr.splitlines()[-1] == f"pixyproxy: the file: {rule}"


def test_a_file_that_is_refused_does_not_stop_the_others(run: Run, tmp_path: Path) -> None:
    names = write(tmp_path, a_png=encode("png"), b_gif=encode("gif"), c_png=encode("png"))
    done = run("import", names[0], names[1], "none.png", ".", names[2])
    assert done.status == 2
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == ["a.png", "c.png"]
    assert "b.gif was not imported.\npixyproxy: the file: must be a PNG, WebP or JPEG" in done.stderr
    assert "none.png cannot be read: No such file or directory." in done.stderr
    assert ". cannot be read: Is a directory." in done.stderr
    assert run("import", "none.png").status == 1


def test_a_command_is_repeated_with_its_request_id(run: Run, ann: ImageClient, tmp_path: Path) -> None:
    names = write(tmp_path, a_png=encode("png"), b_png=encode("png"))
    key = new_guid()
    first = run("import", *names, "--request-id", key)
    assert run("import", *names, "--request-id", key).stdout == first.stdout
    assert len({line.split("\t")[0] for line in first.stdout.splitlines()}) == 2
    (tmp_path / "b.png").write_bytes(encode("png"))
    changed = run("import", *names, "--request-id", key)
    assert (changed.status, changed.stdout) == (2, first.stdout.splitlines()[0] + "\n")
    assert "b.png was not imported.\npixyproxy: This request_id was used for another request" in changed.stderr


def test_it_is_said_how_to_repeat(run: Run, tmp_path: Path) -> None:
    (name,) = write(tmp_path, fox_png=encode("png"))
    away = run("import", name, PIXYPROXY_SERVER="127.0.0.1:1")
    assert away.status == 5
    again = away.stderr.splitlines()[-1]
    assert re.fullmatch(r"  .* import --request-id [0-9a-f-]{36} fox\.png", again)
    words = shlex.split(again)
    repeated = run(*words[words.index("import") :])
    assert (repeated.status, repeated.stdout.split("\t")[1]) == (0, "fox.png\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.png", "b.png", "--filename", "x"], "--filename and - are for one file."),
        (["a.png", "-"], "--filename and - are for one file."),
        (["a.png", "--request-id", "x"], "--request-id: must be a UUID of 36 characters"),
        (["a.png", "--description", " "], "--description: must not be blank; it may be empty"),
        (["a.png", "--tag", " "], "--tag: must not be empty or blank"),
    ],
    ids=str,
)
def test_wrong_arguments(run: Run, tmp_path: Path, arguments: list[str], said: str) -> None:
    write(tmp_path, a_png=encode("png"), b_png=encode("png"))
    done = run("import", *arguments)
    assert (done.status, done.stdout) == (2, "")
    assert said in done.stderr
