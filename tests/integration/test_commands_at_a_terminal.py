"""The commands that ask a server, as a person uses them at a terminal."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from tests.integration.conftest import People
from tests.integration.test_commands import NOBODY, Hostile, server_of
from tests.support.image_client import ImageClient
from tests.support.openai_stand_in import RunningStandIn
from tests.support.rpc import TIMEOUT
from tests.support.servers import Login, RunningServer, environment
from tests.support.stored_images import make_detail, store_details, store_image
from tests.support.typed import Terminal, at_a_terminal
from tests.support.waiting import wait_until

UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
Env = Callable[..., dict[str, str]]


@pytest.fixture
def asked(tmp_path: Path) -> Env:
    """Makes the environment of a command that asks a server."""

    def make(server: RunningServer, login: Login | None = None, **variables: str) -> dict[str, str]:
        signed_in = {"PIXYPROXY_USER": login.username, "PIXYPROXY_PASSWORD": login.password} if login else {}
        home = {"HOME": str(tmp_path), "PIXYPROXY_SERVER": server.address}
        return environment(tmp_path) | home | signed_in | variables

    return make


def test_who_is_missing_is_asked_for_and_the_password_never_shown(
    server: RunningServer, people: People, asked: Env
) -> None:
    with at_a_terminal("create", "a castle", "--size", "64x64", env=asked(server)) as terminal:
        terminal.wait_for("Username: ")
        terminal.type(people.ann.username)
        terminal.wait_for("Password of .*: ")
        terminal.type(people.ann.password)
        assert terminal.end() == 0
    assert re.search(rf"^guid +{UUID}$", terminal.text, re.MULTILINE)
    assert people.ann.password not in terminal.raw


def test_who_has_signed_in_at_the_terminal_is_not_told_to_do_so(
    server: RunningServer, people: People, asked: Env
) -> None:
    with at_a_terminal("delete", NOBODY, "--yes", env=asked(server)) as terminal:
        terminal.wait_for("Username: ")
        terminal.type(people.ann.username)
        terminal.wait_for("Password of .*: ")
        terminal.type(people.ann.password)
        assert terminal.end() == 3
    assert "no such image" in terminal.text
    assert "not signed in" not in terminal.text


def test_a_wrong_password_is_told_from_anything_else(server: RunningServer, people: People, asked: Env) -> None:
    with at_a_terminal("list", env=asked(server, PIXYPROXY_USER=people.ann.username)) as terminal:
        terminal.wait_for("Password of .*: ")
        terminal.type("wrong")
        assert terminal.end() == 4
    assert "wrong." in terminal.text


def test_who_waits_for_a_server_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    env = environment(tmp_path) | {"HOME": str(tmp_path), "PIXYPROXY_SERVER": "127.0.0.1:1"}
    with at_a_terminal("get", NOBODY, env=env) as terminal:
        terminal.wait_for("pixyproxy: No answer from 127.0.0.1:1; trying again for some seconds")
        assert terminal.end() == 5
    assert terminal.text.count("No answer from") == 1
    assert "\npixyproxy: No server answers at 127.0.0.1:1. Start one with pixyproxy serve" in terminal.text


def test_a_message_does_not_stand_on_the_spinners_line(tmp_path: Path) -> None:
    env = environment(tmp_path) | {"HOME": str(tmp_path), "PIXYPROXY_SERVER": "127.0.0.1:1"}
    env |= {"PIXYPROXY_USER": "ann", "PIXYPROXY_PASSWORD": "a good password"}
    with at_a_terminal("create", "a castle", env=env, columns=80) as terminal:
        terminal.wait_for("Making the image. Trying again in .*0:00:0[1-9]")
        terminal.interrupt()
        assert terminal.end() == 130
    said = [line for line in terminal.text.splitlines() if "pixyproxy:" in line]
    assert len(said) == 3
    assert all(line.startswith("pixyproxy: ") for line in said), terminal.raw
    assert all(len(line) < 80 for line in terminal.text.splitlines() if "--request-id" not in line)
    assert "pixyproxy: Interrupted. No server answers at 127.0.0.1:1." in said
    assert "keeps" not in terminal.text


def test_a_spinner_and_the_time_while_an_image_is_made(
    provider_server: RunningServer, artists: People, asked: Env, stand_in: RunningStandIn, prompt: str
) -> None:
    held = f"{prompt} [[fault:hold]]"
    with at_a_terminal("create", held, env=asked(provider_server, artists.ann)) as terminal:
        terminal.wait_for(r"Generating the image.*0:00:0[1-9]")
        stand_in.release(held)
        assert terminal.end() == 0
    assert f"prompt      {held}\n" in terminal.text


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_nothing_moves_and_nothing_is_coloured_where_that_is_not_wanted(
    server: RunningServer, people: People, asked: Env, variables: dict[str, str]
) -> None:
    env = asked(server, people.ann, **variables)
    for arguments in (["create", "plain", "--size", "64x64", "--show"], ["list"]):
        with at_a_terminal(*arguments, env=env) as terminal:
            assert terminal.end() == 0
        assert "\x1b" not in terminal.raw


def test_an_interrupted_creation_is_found_again_and_paid_for_once(
    provider_server: RunningServer, artists: People, asked: Env, stand_in: RunningStandIn, prompt: str
) -> None:
    held = f'{prompt} [[fault:hold]] it\'s "quoted",\non two lines\\ $HOME 雪\u202e'
    env = asked(provider_server, artists.ann)
    arguments = ("create", held, "--tag", "a b", "--json")
    with at_a_terminal(*arguments, env=env, columns=80) as terminal:
        terminal.wait_for("Generating the image")
        terminal.interrupt()
        assert terminal.end() == 130
    assert "Traceback" not in terminal.text
    assert "finishes and keeps it" in re.sub(r"\s+", " ", terminal.text)
    stand_in.release(held)

    again = copied_and_run(terminal, env)
    found = ImageClient(provider_server, artists.ann).page(prompt=prompt).images
    assert [image.guid in again for image in found] == [True]
    assert stand_in.count(held) == 1


def copied_and_run(terminal: Terminal, env: dict[str, str]) -> str:
    """Run the command that is shown last, as it stands there, and return what it writes."""
    _, command = terminal.text.rsplit("run:\n  ", 1)
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def test_the_command_to_repeat_has_the_prompt_that_came_from_standard_input(
    provider_server: RunningServer, artists: People, asked: Env, stand_in: RunningStandIn, prompt: str
) -> None:
    held = f"{prompt} [[fault:hold]]\nit's on two lines"
    env = asked(provider_server, artists.ann)
    with subprocess.Popen(
        [sys.executable, "-m", "pixyproxy", "create", "-"], env=env, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(held.encode())
        process.stdin.close()
        process.stdin = None
        wait_until(lambda: stand_in.count(held) == 1, TIMEOUT, "the provider to be asked")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=TIMEOUT)
    stand_in.release(held)
    command = said.decode().rsplit("run:\n  ", 1)[1]
    done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    assert ImageClient(provider_server, artists.ann).page(prompt=prompt).images[0].prompt == held
    assert stand_in.count(held) == 1


def test_a_bar_while_bytes_come(server: RunningServer, people: People, asked: Env, tmp_path: Path) -> None:
    image = store_image(server, people.ann, bytes(range(256)) * 160_000, filename="large.png")
    path = tmp_path / "saved.png"
    with at_a_terminal("fetch", image.guid, "-o", str(path), env=asked(server, people.ann)) as terminal:
        terminal.wait_for("41.0 MB")
        assert terminal.end() == 0
    assert path.stat().st_size == image.size_bytes
    assert f"Saved {path}: 40,960,000 bytes, verified." in terminal.text.replace("\n", "")
    assert list(path.parent.glob(".pixyproxy-*")) == []


class Stalling(Hostile):
    """Sends the first half of an image, and then nothing; whoever asks for the second half gets it."""

    def __init__(self) -> None:
        super().__init__("picture.png")
        self.offsets: list[int] = []
        self.creations = 0

    def CreateImage(self, request: Any, context: Any) -> pb.CreateImageResponse:
        self.creations += 1
        return pb.CreateImageResponse(image=self.image)

    def GetImageContent(self, request: Any, context: Any) -> Iterator[pb.GetImageContentResponse]:
        self.offsets.append(request.read_offset)
        info, data = super().GetImageContent(request, context)
        yield info
        if request.read_offset:
            yield data
            return
        yield pb.GetImageContentResponse(data=data.data[:3])
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait(TIMEOUT)


def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    servicer = Stalling()
    folder = tmp_path / "folder"
    folder.mkdir()
    with server_of(servicer) as address:
        env = environment(tmp_path, {"PIXYPROXY_SERVER": address, "HOME": str(tmp_path)})
        with at_a_terminal("fetch", NOBODY, "-o", str(folder), env=env) as terminal:
            terminal.wait_for("3/7 bytes")
            terminal.interrupt()
            assert terminal.end() == 130
        assert "To continue where it stopped, run:" in terminal.text
        assert not (folder / "picture.png").exists()
        copied_and_run(terminal, env)
    assert servicer.offsets == [0, 3]
    assert [path.read_bytes() for path in folder.iterdir()] == [servicer.data]


def test_an_interrupted_download_of_a_new_image_goes_on_without_another_creation(tmp_path: Path) -> None:
    servicer = Stalling()
    path = tmp_path / "my picture.png"
    with server_of(servicer) as address:
        env = environment(tmp_path, {"PIXYPROXY_SERVER": address, "HOME": str(tmp_path)})
        env |= {"PIXYPROXY_USER": "ann", "PIXYPROXY_PASSWORD": "a good password"}
        with at_a_terminal("create", "a castle", "-o", str(path), env=env) as terminal:
            terminal.wait_for("3/7 bytes")
            terminal.interrupt()
            assert terminal.end() == 130
        copied_and_run(terminal, env)
    assert path.read_bytes() == servicer.data
    assert servicer.creations == 1


class NotReading(Hostile):
    """Does not read the first file that is sent to it."""

    def __init__(self) -> None:
        super().__init__("picture.png")
        self.request_ids: list[str] = []

    def ImportImage(self, requests: Iterator[pb.ImportImageRequest], context: Any) -> pb.ImportImageResponse:
        self.request_ids.append(next(requests).info.request_id)
        if len(self.request_ids) == 1:
            gone = threading.Event()
            context.add_callback(gone.set)
            gone.wait(TIMEOUT)
        self.data = b"".join(request.data for request in requests)
        return pb.ImportImageResponse(image=self.image)


def test_an_interrupted_import_is_repeated_under_its_request_id(tmp_path: Path) -> None:
    servicer = NotReading()
    path = tmp_path / "large.png"
    path.write_bytes(bytes(range(256)) * 80_000)
    with server_of(servicer) as address:
        env = environment(tmp_path, {"PIXYPROXY_SERVER": address, "HOME": str(tmp_path)})
        env |= {"PIXYPROXY_USER": "ann", "PIXYPROXY_PASSWORD": "a good password"}
        with at_a_terminal("import", str(path), env=env) as terminal:
            terminal.wait_for(r"/20\.5 MB")
            # The bar shows what is on its way: the server may not have begun to read.
            wait_until(lambda: servicer.request_ids, TIMEOUT, "the import to begin")
            terminal.interrupt()
            assert terminal.end() == 130
        assert "To repeat the request without storing images twice, run:" in terminal.text
        copied_and_run(terminal, env)
    assert servicer.data == path.read_bytes()
    assert len(servicer.request_ids) == 2
    assert len(set(servicer.request_ids)) == 1


def test_a_deletion_is_asked_about(server: RunningServer, people: People, asked: Env) -> None:
    ann = ImageClient(server, people.ann)
    guid = ann.create("a castle that goes").guid
    env = asked(server, people.ann)
    with at_a_terminal("delete", guid, env=env) as terminal:
        terminal.wait_for(r"a castle that goes.*\[y/N\]")
        terminal.type("n")
        assert terminal.end() == 1
    assert ann.get(guid).guid == guid
    with at_a_terminal("delete", guid, env=env) as terminal:
        terminal.wait_for(r"\[y/N\]")
        terminal.type("y")
        assert terminal.end() == 0
    assert ann.guids(guid=guid) == []


def test_ctrl_c_at_a_question(server: RunningServer, people: People, asked: Env) -> None:
    with at_a_terminal("list", env=asked(server, PIXYPROXY_USER=people.ann.username)) as terminal:
        terminal.wait_for("Password of .*: ")
        terminal.interrupt()
        assert terminal.end() == 130
    assert "Traceback" not in terminal.text


@pytest.mark.parametrize(
    ("arguments", "is_known", "question"),
    [
        (["create", "a castle"], False, "Username: "),
        (["delete", "GUID"], True, r"for good\? \[y/N\]: "),
        (["user", "add", "zoe"], True, "Password: "),
    ],
    ids=str,
)
def test_ctrl_c_at_other_questions(
    server: RunningServer, people: People, asked: Env, arguments: list[str], is_known: bool, question: str
) -> None:
    guid = ImageClient(server, people.ann).create("a castle").guid
    words = [word.replace("GUID", guid) for word in arguments]
    with at_a_terminal(*words, env=asked(server, people.ann if is_known else None)) as terminal:
        terminal.wait_for(question)
        terminal.interrupt()
        assert terminal.end() == 130
    assert "Traceback" not in terminal.text


@pytest.mark.parametrize("columns", [30, 60, 80, 120, 200])
def test_a_table_is_as_wide_as_the_terminal(server: RunningServer, asked: Env, columns: int) -> None:
    author = server.new_login()
    store_details(
        server,
        author,
        [make_detail(author, prompt="雪山日出 " * 100), make_detail(author, prompt="a castle\n" + "x" * 500)],
    )
    arguments = ("list", "--author", author.username)
    with at_a_terminal(*arguments, env=asked(server, author), columns=columns) as terminal:
        assert terminal.end() == 0
    lines = terminal.text.splitlines()
    # Where one line has no room for both, the guid has a line of its own below the prompt.
    height = 1 if columns > 100 else 2
    assert len(lines) == 3 * height
    assert lines[0].split()[0] == "PROMPT"
    assert lines[height].startswith("a castle x")
    assert lines[2 * height].startswith("雪山日出")
    assert all(re.search(UUID, lines[image * height - 1]) for image in (2, 3))
    if columns > 40:
        assert all(len(line) + sum(character >= "\u2e80" for character in line) < columns for line in lines)
    titles = " ".join(lines[:height])
    assert ("CREATED" in titles, "SEEN BY" in titles, "AUTHOR" in titles) == (True, columns > 50, columns > 70)
    if columns == 80:
        assert lines[2].endswith("x…  " + lines[2][-16:])
        assert len(lines[2]) == 79


@pytest.mark.parametrize("columns", [1, 3])
def test_a_terminal_may_be_as_narrow_as_it_likes(
    server: RunningServer, people: People, asked: Env, columns: int
) -> None:
    with at_a_terminal("create", "x", "--size", "64x64", env=asked(server, people.ann), columns=columns) as terminal:
        assert terminal.end() == 0
    with at_a_terminal("get", NOBODY, env=asked(server, people.ann), columns=columns) as terminal:
        assert terminal.end() == 3
    assert "Traceback" not in terminal.text


def test_what_terminals_obey_is_shown_and_not_obeyed(server: RunningServer, asked: Env) -> None:
    author = server.new_login()
    # The server refuses these in new images; an older one, or another one, may have them.
    prompt = "one\u202eevil\u2066"
    store_details(server, author, [make_detail(author, prompt=prompt)])
    with at_a_terminal("list", env=asked(server, author)) as terminal:
        assert terminal.end() == 0
    assert "one\\u202eevil\\u2066" in terminal.text


def test_a_terminal_that_has_not_all_characters(server: RunningServer, people: People, asked: Env) -> None:
    image = ImageClient(server, people.ann).create("Ünïque 雪山日出 castle")
    env = asked(server, people.ann, LANG="C", LC_ALL="C", PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    with at_a_terminal("get", image.guid, "--show", env=env, encoding="latin-1") as terminal:
        assert terminal.end() == 0
    assert "Ünïque ???? castle" in terminal.text
    assert "Traceback" not in terminal.text
    with at_a_terminal("create", "a plain castle", "--size", "64x64", env=env, encoding="latin-1") as terminal:
        terminal.wait_for("Making the image")
        assert terminal.end() == 0


@pytest.mark.parametrize(
    ("variables", "beginning"),
    [
        ({}, "\x1b[38;2;"),
        ({"TERM": "xterm-kitty"}, "\x1b_Ga=T,f=100,q=2,c="),
        ({"TERM_PROGRAM": "iTerm.app"}, "\x1b]1337;File=size="),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "iTerm.app", "TMUX": "x"}, "\x1b[38;2;"),
    ],
    ids=["blocks", "kitty", "iterm2", "multiplexer"],
)
def test_a_picture_is_shown_as_the_terminal_can(
    server: RunningServer, people: People, asked: Env, variables: dict[str, str], beginning: str
) -> None:
    guid = ImageClient(server, people.ann).create("a castle").guid
    with at_a_terminal("get", guid, "--show", env=asked(server, people.ann, **variables)) as terminal:
        assert terminal.end() == 0
    assert beginning in terminal.raw
    assert ("▀" in terminal.raw) is (beginning == "\x1b[38;2;")


def test_a_list_shows_its_pictures(server: RunningServer, people: People, asked: Env) -> None:
    tag = "shown-in-a-list"
    caller = ImageClient(server, people.ann)
    guids = [caller.create("a castle", tags=[tag]).guid for _ in range(2)]
    damaged = caller.create("a ruin", tags=[tag]).guid
    server.image_file(damaged).write_bytes(b"x")
    with at_a_terminal("list", "--tag", tag, "--show", env=asked(server, people.ann, TERM="xterm-kitty")) as terminal:
        assert terminal.end() == 0
    assert terminal.raw.count("\x1b_Ga=T,f=100,q=2,c=") == 2
    assert all(guid in terminal.text for guid in (*guids, damaged))
    assert f"The image {damaged} cannot be shown: CONTENT_DAMAGED" in terminal.text


def test_bytes_are_not_written_to_a_terminal(server: RunningServer, people: People, asked: Env) -> None:
    guid = ImageClient(server, people.ann).create("a castle").guid
    with at_a_terminal("fetch", guid, "-o", "-", env=asked(server, people.ann)) as terminal:
        assert terminal.end() == 2
    assert "PNG" not in terminal.raw


@pytest.mark.parametrize(
    ("words", "number", "expected"),
    [("pixyproxy ", 1, "search"), ("pixyproxy list --vis", 2, "--visibility"), ("pixyproxy user ad", 2, "add")],
)
def test_completion_knows_all_commands_and_options(tmp_path: Path, words: str, number: int, expected: str) -> None:
    asking = {"_PIXYPROXY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(number)}
    done = subprocess.run(
        [Path(sys.executable).with_name("pixyproxy")],
        env=environment(tmp_path, asking),
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in done.stdout.split(), done
