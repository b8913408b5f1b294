"""Every command with grpcurl that the documents show is run, and gives what they show."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.projects import write_descriptor
from tests.docs.test_readme import ROOT, SESSION
from tests.support.grpcurl import grpcurl_folder
from tests.support.rpc import TIMEOUT
from tests.support.servers import RunningServer, running_server

_PAGES = sorted((ROOT / "docs").glob("*.md"))
_ADDRESS = "127.0.0.1:50051"
# A block of commands, and the block of what they print.
_EXAMPLE = re.compile(r"^```sh\n((?:grpcurl [^\n]*\n)+)```\n\n```text\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"\bgrpcurl -.*")
_EXAMPLES = [(page.name, *found) for page in _PAGES for found in _EXAMPLE.findall(page.read_text())]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that nobody has used yet."""
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which `make descriptor` was run."""
    made: Path = tmp_path_factory.mktemp("checkout")
    write_descriptor(made / "dist" / "pixyproxy.v1.binpb")
    return made


@pytest.mark.parametrize(
    ("page", "commands", "shown"), _EXAMPLES, ids=[f"{words[0]} {number}" for number, words in enumerate(_EXAMPLES, 1)]
)
def test_it_prints_what_the_page_shows(
    page: str, commands: str, shown: str, server: RunningServer, folder: Path
) -> None:
    done = subprocess.run(
        ["bash", "-c", f"exec 2>&1; {commands.replace(_ADDRESS, server.address)}"],
        cwd=folder,
        env={"PATH": f"{grpcurl_folder()}:{os.environ['PATH']}", "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )

    # What is another each time is shown as "…".
    pattern = ".+".join(map(re.escape, shown.split("…")))
    assert re.fullmatch(pattern, done.stdout), f"{page} shows\n{shown}but it printed\n{done.stdout}"


def test_there_is_no_command_that_is_not_run() -> None:
    run = "".join([*SESSION, *(commands for _, commands, _ in _EXAMPLES)])
    told = [found for page in [ROOT / "README.md", *_PAGES] for found in _COMMAND.findall(page.read_text())]

    assert len(told) > len(_EXAMPLES) > 0
    assert [command for command in told if command not in run] == []
