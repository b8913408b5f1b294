"""What docs/clients.md shows of Python and of the command line does what it says."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from pixyproxy.cli import failures
from pixyproxy.cli.client_settings import VARIABLES
from pixyproxy.client import Keepalive, RetryPolicy, errors
from tests.support.addresses import free_port
from tests.support.image_client import ImageClient
from tests.support.rpc import TIMEOUT
from tests.support.servers import RunningServer, running_server
from tests.support.waiting import wait_until

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


def test_the_example_for_generations(server: RunningServer, tmp_path: Path) -> None:
    said = run([sys.executable, "-c", example("Generations", "python", server)], tmp_path)

    *events, image, found, refused = said.splitlines()
    states = [event for event in events if not event.startswith("partial image ")]
    assert states[-1] == "SUCCEEDED"
    assert re.fullmatch(r"image \S+ True", image)
    assert (found, refused) == ("[True]", "ALREADY_SUBMITTED")


def test_the_back_end_of_a_web_page(server: RunningServer, tmp_path: Path) -> None:
    port = free_port()
    script = example("Generations", "python", server, number=1)
    assert "8080" in script
    with subprocess.Popen(
        [sys.executable, "-c", script.replace("8080", str(port))], cwd=tmp_path, stderr=subprocess.DEVNULL
    ) as process:
        try:
            page = f"http://127.0.0.1:{port}/generations"
            wait_until(lambda: is_listening(port), TIMEOUT, "the back end to listen")
            started = json.loads(asked(urllib.request.Request(page, data="A lighthouse 🌊".encode(), method="POST")))
            events = events_of(asked(f"{page}/{started['guid']}"))
            (failed,) = events_of(asked(f"{page}/x"))
        finally:
            process.kill()
    *_, (state, succeeded), (image, guid) = events
    assert (state, succeeded, image) == ("state", "SUCCEEDED", "image")
    assert ImageClient(server, server.admin).get(guid).prompt == "A lighthouse 🌊"
    assert failed[0] == "failure"
    assert json.loads(failed[1])["reason"] == "INVALID_FIELD"


def is_listening(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def asked(request: str | urllib.request.Request) -> str:
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        return str(answer.read().decode())


def events_of(stream: str) -> list[tuple[str, str]]:
    """Read server-sent events."""
    return re.findall(r"^event: (.*)\ndata: (.*)\n\n", stream, flags=re.MULTILINE)


def test_the_defaults_are_told() -> None:
    rows = re.findall(r"^ *\| `(\w+)` \| `(.*?)` \|", section("Python"), flags=re.MULTILINE)

    assert rows == [(field.name, repr(field.default)) for field in fields(RetryPolicy)]
    assert repr(Keepalive()) in section("Python")


def test_the_session_in_a_shell(server: RunningServer, tmp_path: Path) -> None:
    said = run(["bash", "-euo", "pipefail", "-c", example("The command line", "sh", server)], tmp_path)

    guids = re.findall(r"^guid +(\S+)$", said, flags=re.MULTILINE)
    created, got, updated, edited, castle, again = guids
    assert created == got == updated
    assert len({created, edited, castle, again}) == 4
    assert (tmp_path / "winter.png").stat().st_size > 0
    listed = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [(image["guid"], image["tags"], image["visibility"]) for image in listed] == [
        (created, ["sea", "night"], "VISIBILITY_PUBLIC")
    ]
    assert "A castle, from standard input" in said
    *_, deleted, last, first, header, spent = said.splitlines()
    assert deleted == f"Deleted {created}."
    assert [line.split("\t")[2:4] for line in (last, first)] == [["succeeded", "admin"]] * 2
    assert header.startswith("model,images,unknown_outcomes,")
    assert spent.startswith("offline-drawing,")
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
