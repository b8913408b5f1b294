"""Generations on the command line: ``create``, which waits for one, and ``generations``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from pixyproxy_pb.v1 import generation_service_pb2 as gpb
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1.generation_service_pb2_grpc import (
    GenerationServiceServicer,
    GenerationServiceStub,
    add_GenerationServiceServicer_to_server,
)

from tests.integration.conftest import People
from tests.integration.test_commands import EVIL_TEXT, NOBODY, Run, variables_of
from tests.support.generation_client import settled
from tests.support.image_client import SMALL, ImageClient
from tests.support.rpc import TIMEOUT
from tests.support.servers import Login, RunningServer, environment, run_command, running_server
from tests.support.typed import Terminal, at_a_terminal
from tests.support.waiting import wait_until

if not hasattr(os, "memfd_create"):
    pytest.skip("a server has one process on this system", allow_module_level=True)

UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
KITTY_IMAGE = "\x1b_Ga=T,f=100,q=2,c="


class Site:
    """A server whose generation worker is stopped.

    Attributes:
        server: the server.
        env: the environment of a command that calls it.
    """

    def __init__(self, server: RunningServer, folder: Path) -> None:
        self.server = server
        self.env = environment(folder) | {"HOME": str(folder)} | variables_of(server.address, server.admin)
        self._worker = server.stop_generation_worker()

    def resume(self) -> None:
        """Let the generation worker run."""
        os.kill(self._worker, signal.SIGCONT)

    def wait_for(self, prompt: str, *states: str) -> None:
        """Wait until the generations of a prompt are in these states."""
        wait_until(lambda: self.server.generation_states(prompt) == [*states], TIMEOUT, f"{prompt} to be {states}")

    def create(self, *arguments: str) -> Any:
        """Run `create` at a terminal."""
        return at_a_terminal("create", *arguments, "--size", "64x64", env=self.env, columns=80)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with running_server(tmp_path / "server", {"PIXYPROXY_WORKERS": "2"}) as server:
        site = Site(server, tmp_path)
        yield site
        site.resume()


def generations_of(server: RunningServer) -> Any:
    return GenerationServiceStub(server.channel)  # type: ignore[no-untyped-call]


def started(server: RunningServer, login: Login, prompt: str, **fields: Any) -> gpb.Generation:
    """Start a generation."""
    request = gpb.CreateGenerationRequest(request=pb.CreateImageRequest(prompt=prompt, **({"options": SMALL} | fields)))
    answer = generations_of(server).CreateGeneration(request, metadata=login.metadata, timeout=TIMEOUT)
    generation: gpb.Generation = answer.generation
    return generation


def ended(server: RunningServer, login: Login, prompt: str, **fields: Any) -> gpb.Generation:
    """Start a generation, wait for its end, and return it."""
    request = gpb.WatchGenerationRequest(guid=started(server, login, prompt, **fields).guid)
    *_, last = generations_of(server).WatchGeneration(request, metadata=login.metadata, timeout=TIMEOUT)
    return settled(last.generation)


def commands_in(terminal: Terminal) -> list[str]:
    """The commands that a terminal shows to be run."""
    return re.findall(r"run:\n  (.*)", terminal.text)


def shell(command: str, env: dict[str, str]) -> str:
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


# --- create at a terminal --------------------------------------------------------------------------------------------


def test_the_state_and_the_time_are_shown(site: Site, prompt: str) -> None:
    with site.create(prompt) as terminal:
        terminal.wait_for("Queued.*0:00:0[1-9]")
        site.resume()
        assert terminal.end() == 0
    assert f"prompt      {prompt}\n" in terminal.text
    assert "run:" not in terminal.text


def test_the_position_in_the_queue_is_shown(site: Site, prompt: str) -> None:
    for number in range(2):
        started(site.server, site.server.admin, f"{prompt} {number}")
    started(site.server, site.server.new_login(), prompt)
    with site.create(prompt) as terminal:
        terminal.wait_for("Queued behind 2 of yours.*0:00:0")
        site.resume()
        assert terminal.end() == 0


def test_what_is_queued_can_be_cancelled_after_ctrl_c(site: Site, prompt: str) -> None:
    with site.create(prompt) as terminal:
        terminal.wait_for("Queued")
        terminal.interrupt()
        terminal.wait_for(r"The generation is queued and has cost nothing. Cancel it\? \[y/N\]")
        terminal.type("y")
        assert terminal.end() == 130
    assert "pixyproxy: Cancelled. Nothing was generated." in terminal.text
    assert commands_in(terminal) == []
    assert site.server.generation_states(prompt) == ["cancelled"]


@pytest.mark.parametrize("answer", ["n", "", None], ids=["n", "return", "Ctrl-C"])
def test_what_is_not_cancelled_goes_on_and_is_found_again(site: Site, prompt: str, answer: str | None) -> None:
    with site.create(prompt, "--json") as terminal:
        terminal.wait_for("Queued")
        terminal.interrupt()
        terminal.wait_for(r"\[y/N\]: ")
        if answer is None:
            terminal.interrupt()
        else:
            terminal.type(answer)
        assert terminal.end() == 130
    assert terminal.text.count("[y/N]") == 1
    assert "Interrupted. The server finishes and keeps it." in terminal.text
    assert "Traceback" not in terminal.text
    assert all(len(line) < 80 for line in terminal.text.splitlines() if not line.startswith("  "))
    assert site.server.generation_states(prompt) == ["queued"]

    watching, repeating = commands_in(terminal)
    assert re.search(f" generations watch {UUID}$", watching)
    site.resume()
    watched, repeated = shell(watching, site.env), json.loads(shell(repeating, site.env))
    assert f"image       {repeated['guid']}\n" in watched
    assert repeated["prompt"] == prompt
    assert site.server.generation_states(prompt) == ["stored"]


def test_what_is_submitted_before_the_answer_is_not_cancelled(site: Site, prompt: str) -> None:
    with site.create(prompt) as terminal:
        terminal.wait_for("Queued")
        terminal.interrupt()
        terminal.wait_for(r"\[y/N\]")
        site.resume()
        site.wait_for(prompt, "stored")
        terminal.type("y")
        assert terminal.end() == 130
    assert "pixyproxy: The generation is no longer queued, so it cannot be cancelled." in terminal.text
    assert "Cancelled." not in terminal.text
    assert len(commands_in(terminal)) == 2


def test_without_a_terminal_nothing_is_asked(site: Site, prompt: str) -> None:
    known = site.server.log.count("[WatchGeneration:")
    with subprocess.Popen(
        [sys.executable, "-m", "pixyproxy", "create", prompt],
        env=site.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        site.wait_for(prompt, "queued")
        # It watches by the time that its call is logged.
        wait_until(lambda: site.server.log.count("[WatchGeneration:") > known, TIMEOUT, "the watch to begin")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, stdout) == (130, "")
    assert "Cancel" not in stderr
    assert "generations watch" in stderr
    assert site.server.generation_states(prompt) == ["queued"]


@pytest.mark.parametrize(("arguments", "count"), [(["--partial-images", "2"], 2), ([], 0)], ids=["2", "none"])
def test_partial_images_are_shown_as_they_come(site: Site, prompt: str, arguments: list[str], count: int) -> None:
    site.env["TERM"] = "xterm-kitty"
    with site.create(prompt, *arguments) as terminal:
        terminal.wait_for("Queued")
        site.resume()
        assert terminal.end() == 0
    assert terminal.raw.count(KITTY_IMAGE) == count
    assert f"prompt      {prompt}\n" in terminal.text


def test_a_terminal_without_colours_shows_no_partial_images(site: Site, prompt: str) -> None:
    site.env["NO_COLOR"] = "1"
    site.resume()
    with site.create(prompt, "--partial-images", "1") as terminal:
        assert terminal.end() == 0
    assert "pixyproxy: --partial-images needs a terminal with colours and UTF-8." in terminal.text
    assert "\x1b" not in terminal.raw


# --- generations at a terminal ---------------------------------------------------------------------------------------


def test_a_generation_is_watched_to_its_end(site: Site, prompt: str) -> None:
    options = pb.GenerationOptions(size="64x64", partial_images=3)
    guid = started(site.server, site.server.admin, prompt, options=options).guid
    site.env["TERM"] = "xterm-kitty"
    with at_a_terminal("generations", "watch", guid, "--show", env=site.env, columns=80) as terminal:
        terminal.wait_for("Queued.*0:00:0")
        site.resume()
        assert terminal.end() == 0
    assert terminal.raw.count(KITTY_IMAGE) == 3
    assert f"guid        {guid}\nstate       succeeded\nprompt      {prompt}\n" in terminal.text


def test_a_watch_that_is_interrupted_cancels_nothing(site: Site, prompt: str) -> None:
    guid = started(site.server, site.server.admin, prompt).guid
    with at_a_terminal("generations", "watch", guid, env=site.env, columns=80) as terminal:
        terminal.wait_for("Queued")
        terminal.interrupt()
        assert terminal.end() == 130
    assert "[y/N]" not in terminal.text
    (command,) = commands_in(terminal)
    site.resume()
    assert f"guid        {guid}\nstate       succeeded\n" in shell(command, site.env)


def test_a_table_of_generations_fits_80_columns(site: Site, prompt: str) -> None:
    admin = site.server.admin
    guids = [started(site.server, admin, f"{prompt} {number} " + "雪山日出 " * 50).guid for number in range(3)]
    with at_a_terminal("generations", "list", env=site.env, columns=80) as terminal:
        assert terminal.end() == 0
    lines = terminal.text.splitlines()
    assert [lines[0].split(), lines[1].split()] == [["PROMPT", "CREATED"], ["GUID", "STATE", "AUTHOR"]]
    assert [lines[number].split()[0] for number in (3, 5, 7)] == guids[::-1]
    assert [lines[number].split()[1:] for number in (3, 5, 7)] == [["queued", "admin"]] * 3
    assert all(len(line) + sum(character >= "\u2e80" for character in line) < 80 for line in lines)


# --- generations for programs ----------------------------------------------------------------------------------------


@pytest.fixture
def run(site: Site) -> Callable[..., Any]:
    return lambda *arguments, **env: run_command("generations", *arguments, env=site.env | env)


def test_generations_are_listed_with_filters(site: Site, run: Run, prompt: str) -> None:
    ann = site.server.new_login()
    own = [started(site.server, ann, f"{prompt} {number}").guid for number in range(3)]
    others = started(site.server, site.server.admin, prompt).guid
    generations_of(site.server).CancelGeneration(
        gpb.CancelGenerationRequest(guid=own[1]), metadata=ann.metadata, timeout=TIMEOUT
    )
    as_ann = variables_of(site.server.address, ann)
    for arguments, found in (
        ([], own[::-1]),
        (["--state", "cancelled"], [own[1]]),
        (["--state", "queued", "--state", "failed"], [own[2], own[0]]),
        (["--limit", "2"], own[:0:-1]),
        (["--after", "2126-01-01"], []),
        (["--author", site.server.admin.username], []),
    ):
        listed = run("list", *arguments, "--json", **as_ann)
        assert [json.loads(line)["guid"] for line in listed.stdout.splitlines()] == found, arguments
    every = [line.split("\t") for line in run("list", "--all").stdout.splitlines()]
    assert [columns[0] for columns in every] == [others, *own[::-1]]
    assert every[2][2:] == ["cancelled", ann.username, f"{prompt} 1"]
    nothing = run("list", "--state", "failed")
    assert (nothing.status, nothing.stdout, nothing.stderr) == (0, "", "pixyproxy: No generations found.\n")


def test_a_generation_is_got_and_cancelled(site: Site, run: Run, prompt: str) -> None:
    key = "0d2f4f6e-7f9b-4b0e-9a53-5b0b4bb7e6ad"
    guid = started(site.server, site.server.admin, prompt, request_id=key, tags=["sea"]).guid
    shown = run("get", guid).stdout
    assert shown.startswith(f"guid        {guid}\nstate       queued\nprompt      {prompt}\nauthor      admin\n")
    cancelled = run("cancel", guid)
    assert (cancelled.status, cancelled.stdout) == (0, f"Cancelled {guid}.\n")
    again = run("cancel", guid, "--json")
    got = run("get", guid, "--json")
    assert again.stdout == got.stdout
    # The names and forms are those of the API's JSON.
    assert (
        json_format.Parse(got.stdout, gpb.Generation())
        == generations_of(site.server)
        .GetGeneration(gpb.GetGenerationRequest(guid=guid), metadata=site.server.admin.metadata, timeout=TIMEOUT)
        .generation
    )
    watched = run("watch", guid)
    assert watched.status == 1
    assert "state       cancelled\n" in watched.stdout
    assert "was cancelled before it was submitted" in watched.stderr


def test_what_is_submitted_is_not_cancelled(site: Site, run: Run, prompt: str) -> None:
    site.resume()
    generation = ended(site.server, site.server.admin, prompt)
    refused = run("cancel", generation.guid)
    assert (refused.status, refused.stdout) == (2, "")
    assert "cancelled" in refused.stderr
    watched = run("watch", generation.guid, "--json")
    (line,) = watched.stdout.splitlines()
    assert settled(json_format.Parse(line, gpb.Generation())) == generation
    assert json.loads(line)["image"] == json.loads(line)["image"] | {"prompt": prompt, "width": 64}


def test_a_watch_writes_a_line_for_each_state(site: Site, prompt: str) -> None:
    guid = started(site.server, site.server.admin, prompt).guid
    with subprocess.Popen(
        [sys.executable, "-m", "pixyproxy", "generations", "watch", guid, "--json"],
        env=site.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["state"] == "GENERATION_STATE_QUEUED"
        site.resume()
        *_, last = process.stdout.read().splitlines()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert json.loads(last)["state"] == "GENERATION_STATE_SUCCEEDED"


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("[[fault:moderation_blocked]]", 2, "error       PROMPT_REFUSED: "),
        ("[[fault:429:code=insufficient_quota]]", 1, "error       PROVIDER_QUOTA: "),
        ("[[fault:429:retry-after=3000]]", 5, "error       PROVIDER_RATE_LIMITED: "),
        ("[[fault:drop]]", 6, "error       OUTCOME_UNKNOWN: "),
    ],
)
def test_the_status_of_a_watch_is_that_of_the_creation(
    provider_server: RunningServer, artists: People, prompt: str, tmp_path: Path, fault: str, status: int, said: str
) -> None:
    env = environment(tmp_path) | {"HOME": str(tmp_path)} | variables_of(provider_server.address, artists.ann)
    generation = ended(provider_server, artists.ann, f"{prompt} {fault}")
    watched = run_command("generations", "watch", generation.guid, env=env)
    created = run_command("create", f"{prompt} again {fault}", env=env)
    assert (watched.status, created.status) == (status, status)
    assert said in watched.stdout
    assert generation.error.message in watched.stderr
    as_json = run_command("generations", "get", generation.guid, "--json", env=env)
    assert json_format.Parse(as_json.stdout, gpb.Generation()) == generation
    ImageClient(provider_server, artists.ann).create("something that works")


class Hostile(GenerationServiceServicer):
    """Answers with what a terminal should not be given."""

    generation = gpb.Generation(
        guid=EVIL_TEXT,
        request_id=EVIL_TEXT,
        author=EVIL_TEXT,
        state=gpb.GENERATION_STATE_FAILED,
        request=pb.CreateImageRequest(prompt=EVIL_TEXT, visibility=pb.VISIBILITY_PUBLIC),
        error=gpb.GenerationError(code=EVIL_TEXT, reason=EVIL_TEXT, message=EVIL_TEXT, metadata={"field": EVIL_TEXT}),
    )

    def GetGeneration(self, request: Any, context: Any) -> gpb.GetGenerationResponse:
        return gpb.GetGenerationResponse(generation=self.generation)

    def ListGenerations(self, request: Any, context: Any) -> gpb.ListGenerationsResponse:
        return gpb.ListGenerationsResponse(generations=[self.generation])

    def WatchGeneration(self, request: Any, context: Any) -> Iterator[gpb.WatchGenerationResponse]:
        yield gpb.WatchGenerationResponse(data=b"of no partial image")
        yield gpb.WatchGenerationResponse(generation=self.generation)

    def CancelGeneration(self, request: Any, context: Any) -> gpb.CancelGenerationResponse:
        return gpb.CancelGenerationResponse(generation=self.generation)


def test_nothing_of_a_server_is_obeyed_by_a_terminal(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        add_GenerationServiceServicer_to_server(Hostile(), server)  # type: ignore[no-untyped-call]
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        env = environment(tmp_path) | {"HOME": str(tmp_path)} | variables_of(address, Login("ann", "a good password"))
        for command in (["get", NOBODY], ["list"], ["watch", NOBODY], ["cancel", NOBODY]):
            for form in ([], ["--json"]):
                done = run_command("generations", *command, *form, env=env)
                assert done.status == (1 if command[0] == "watch" else 0)
                assert ("\\u001b]0;owned" if form else "\\x1b]0;owned") in done.stdout
                assert not set("\x1b\x07\x9b\u202e\r") & set(done.stdout + done.stderr)
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["get", "x"], 2, "GUID: must be a UUID"),
        (["get", NOBODY], 3, "no such generation"),
        (["watch", NOBODY], 3, "no such generation"),
        (["cancel", NOBODY], 3, "no such generation"),
        (["list", "--state", "done"], 2, "'done' is not one of 'queued', 'submitted'"),
        (["list", "--after", "yesterday"], 2, "'yesterday' is not a date or time like 2026-11-21"),
        ([], 2, "Usage: "),
    ],
    ids=str,
)
def test_statuses(
    server: RunningServer, people: People, tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    env = environment(tmp_path) | {"HOME": str(tmp_path)} | variables_of(server.address, people.ann)
    done = run_command("generations", *arguments, env=env)
    assert done.status == status
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    nobody = run_command("generations", "list", env=env | {"PIXYPROXY_USER": "", "PIXYPROXY_PASSWORD": ""})
    assert nobody.status == 4
    too_many = run_command("create", "x", "--partial-images", "4", env=env)
    assert (too_many.status, too_many.stdout) == (2, "")
