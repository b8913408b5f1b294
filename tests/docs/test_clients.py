"""What docs/clients.md shows of Python and of the command line does what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from pixyproxy.cli import failures
from pixyproxy.cli.client_settings import VARIABLES
from pixyproxy.client import Keepalive, RetryPolicy, errors
from tests.support.servers import RunningServer, running_server

PAGE = (Path(__file__).parents[2] / "docs/clients.md").read_text()


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def example(heading: str, language: str, server: RunningServer, number: int = 0) -> str:
    block: str = re.findall(rf"^```{language}\n(.*?)^```$", section(heading), flags=re.MULTILINE | re.DOTALL)[number]
    assert "PASSWORD" in block
    assert "127.0.0.1:50051" in block
    password = re.compile(r"(?<!_)PASSWORD(?!=)")
    return password.sub(server.admin.password, block).replace("127.0.0.1:50051", server.address)


def run(command: list[str], folder: Path) -> str:
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "HOME": str(folder),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with running_server(tmp_path / "server") as running:
        yield running


def test_the_example_in_python(server: RunningServer, tmp_path: Path) -> None:
    said = run([sys.executable, "-c", example("Python", "python", server)], tmp_path)

    made, found, size, private, error = said.splitlines()
    guid = made.split()[0]
    assert made.split()[1:3] == ["512", "512"]
    assert found == f"{guid} A lighthouse in a storm"
    with Image.open(tmp_path / "lighthouse.png") as picture:
        picture.load()
        assert picture.size == (512, 512)
    assert size == f"{(tmp_path / 'lighthouse.png').stat().st_size} image/png"
    assert private == "[True]"
    assert error.startswith("IMAGE_NOT_FOUND There is no such image")


def test_the_example_for_asyncio(server: RunningServer, tmp_path: Path) -> None:
    said = run([sys.executable, "-c", example("Python", "python", server, number=1)], tmp_path)

    created, found, size = said.splitlines()
    assert created == "['A castle at night', 'A castle at noon']"
    assert found == "A castle at noon"
    assert size == f"{(tmp_path / 'castle.png').stat().st_size} image/png"


def test_the_defaults_are_told() -> None:
    rows = re.findall(r"^ *\| `(\w+)` \| `(.*?)` \|", section("Python"), flags=re.MULTILINE)

    assert rows == [(field.name, repr(field.default)) for field in fields(RetryPolicy)]
    assert repr(Keepalive()) in section("Python")


def test_the_session_in_a_shell(server: RunningServer, tmp_path: Path) -> None:
    said = run(["bash", "-euo", "pipefail", "-c", example("The command line", "sh", server)], tmp_path)

    guids = re.findall(r"^guid +(\S+)$", said, flags=re.MULTILINE)
    created, got, updated, castle = guids
    assert created == got == updated != castle
    listed = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [(image["guid"], image["tags"], image["visibility"]) for image in listed] == [
        (created, ["sea", "night"], "VISIBILITY_PUBLIC")
    ]
    assert "A castle, from standard input" in said
    assert said.endswith(f"Deleted {created}.\n")
    assert (tmp_path / "copy.png").read_bytes() == (tmp_path / "lighthouse.png").read_bytes()


def test_all_variables_are_listed() -> None:
    text = section("The command line")
    rows = re.findall(r"^\| `(PIXYPROXY_\w+)` \| (.*?) ?\| (.*) \|$", text, flags=re.MULTILINE)

    assert rows == [
        (name, f"`{default}`" if default else "", meaning) for name, (default, meaning) in VARIABLES.items()
    ]


def test_all_statuses_are_listed() -> None:
    listed = re.findall(r"^\| (\d+) \|", section("The command line"), flags=re.MULTILINE)

    own = {failures.FAILED, failures.INTERRUPTED, *failures.STATUSES.values()}
    assert [int(status) for status in listed] == sorted({0, *own})


def test_all_errors_are_listed() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]

    for kind in kinds:
        if kind.__module__ == errors.__name__:
            assert re.search(rf"^\| `{kind.__name__}`", section("Python"), flags=re.MULTILINE), kind
