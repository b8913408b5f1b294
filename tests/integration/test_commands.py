"""The commands that ask a server, as programs use them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from PIL import Image
from pixyproxy_pb.v1 import image_service_pb2 as pb
from pixyproxy_pb.v1 import image_service_pb2_grpc as pb_grpc

from tests.integration.conftest import People
from tests.support.certificates import Authority
from tests.support.image_client import ImageClient, without_placeholder
from tests.support.rpc import TIMEOUT
from tests.support.servers import COMMAND_ANEW, Finished, Login, RunningServer, environment, run_command, running_server
from tests.support.stored_images import make_detail, store_details, store_image
from tests.support.waiting import wait_until

NOBODY = "123e4567-e89b-42d3-a456-426614174000"
Run = Callable[..., Finished]


def variables_of(address: str, login: Login | None) -> dict[str, str]:
    signed_in = {"PIXYPROXY_USER": login.username, "PIXYPROXY_PASSWORD": login.password} if login else {}
    return {"PIXYPROXY_SERVER": address} | signed_in


def _settled(text: str) -> dict[str, Any]:
    """The JSON of an image without its placeholder, which may come between two looks at it."""
    fields: dict[str, Any] = json.loads(text)
    del fields["placeholder"]
    return fields


@pytest.fixture
def run(server: RunningServer, people: People, tmp_path: Path) -> Run:
    """Runs a command as Ann, in a folder of its own."""

    def do(*arguments: str, text: str = "", login: Login | None = people.ann, **variables: str) -> Finished:
        env = environment(tmp_path) | {"HOME": str(tmp_path)} | variables_of(server.address, login) | variables
        return run_command(*arguments, env=env, text=text, cwd=tmp_path)

    return do


@pytest.fixture
def ann(server: RunningServer, people: People) -> ImageClient:
    return ImageClient(server, people.ann)


def test_an_images_life(run: Run, ann: ImageClient, tmp_path: Path) -> None:
    made = run("create", "-", "--tag", "sea", "--tag", "night", "--public", "--size", "64x64", "--format", "webp",
               "--filename", "storm.webp", "--output", ".", "--json", text="A lighthouse\nin a storm 🌊\n")  # fmt: skip
    assert (made.status, made.stderr) == (0, "")
    image = json.loads(made.stdout)
    assert image["prompt"] == "A lighthouse\nin a storm 🌊"
    assert (tmp_path / "storm.webp").read_bytes() == ann.content(image["guid"])[1]

    got = run("get", image["guid"], "--json")
    assert _settled(got.stdout) == _settled(made.stdout)
    # The names and forms are those of the API's JSON.
    assert without_placeholder(json_format.Parse(got.stdout, pb.ImageDetail())) == ann.get(image["guid"])

    searched = run("search", "storm", "light", "--tag", "sea", "--author", image["author"], "--json")
    assert _settled(searched.stdout) == _settled(made.stdout)
    changed = run("update", image["guid"], "--no-tags", "--visibility", "private", "--json")
    assert json.loads(changed.stdout)["tags"] == []
    detail = ann.get(image["guid"])
    assert (detail.filename, detail.visibility) == ("storm.webp", pb.VISIBILITY_PRIVATE)

    deleted = run("delete", image["guid"], "--yes")
    assert (deleted.status, deleted.stdout) == (0, f"Deleted {image['guid']}.\n")
    assert run("get", image["guid"]).status == 3


def test_health(tmp_path: Path) -> None:
    with running_server(tmp_path / "server", {"PIXYPROXY_DRAIN_DELAY": "60"}) as server:
        env = environment(tmp_path) | {"HOME": str(tmp_path)} | variables_of(server.address, None)
        said = run_command("health", env=env)
        assert (said.status, said.stdout, said.stderr) == (0, "serving\n", "")
        server.terminate()
        wait_until(lambda: run_command("health", env=env).status, TIMEOUT, "the server to say that it drains")
        said = run_command("health", env=env)
        assert (said.status, said.stdout) == (5, "not serving\n")
        server.kill()
        said = run_command("health", env=env)
        assert (said.status, said.stdout) == (5, "")


def test_lists(run: Run, server: RunningServer) -> None:
    author = server.new_login()
    details = [make_detail(author, prompt=f"castle {number}", tags=("a",)) for number in range(250)]
    store_details(server, author, details)

    every = run("list", "--author", author.username, "--all", "--json", login=author)
    assert [json.loads(line)["prompt"] for line in every.stdout.splitlines()] == [
        f"castle {number}" for number in reversed(range(250))
    ]
    for arguments, count in (([], 50), (["--limit", "3"], 3), (["--limit", "230"], 230), (["--tag", "b"], 0)):
        listed = run("list", "--author", author.username, *arguments, "--json", login=author)
        assert len(listed.stdout.splitlines()) == count
    plain = run("search", "castle", "249", "--author", author.username, login=author).stdout
    columns = plain.rstrip("\n").split("\t")
    assert columns[0] == details[249].guid
    assert columns[2:] == ["private", author.username, "direct.png", "castle 249"]


def test_times_are_those_of_the_clock_here(run: Run, server: RunningServer) -> None:
    author = server.new_login()
    store_details(server, author, [make_detail(author, prompt="old", created_at="2026-03-01T10:30:00Z")])
    for times, count in (
        (["--after", "2026-03-01T19:00", "--before", "2026-03-01T20:00"], 1),
        (["--after", "2026-03-01T10:00Z", "--before", "2026-03-01T11:00Z"], 1),
        (["--after", "2026-03-01T10:00", "--before", "2026-03-01T11:00"], 0),
        (["--after", "2026-03-01", "--before", "2026-03-02"], 1),
    ):
        listed = run("list", *times, "--author", author.username, "--json", login=author, TZ="Asia/Tokyo")
        assert len(listed.stdout.splitlines()) == count, listed


def test_whoever_reads_may_go_early(server: RunningServer, tmp_path: Path) -> None:
    author = server.new_login()
    store_details(server, author, [make_detail(author, prompt="x" * 30_000) for _ in range(30)])
    env = environment(tmp_path) | variables_of(server.address, author)
    with subprocess.Popen(
        [sys.executable, "-m", "pixyproxy", "list", "--json"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b'{"guid"')
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(TIMEOUT) == 1


def test_bytes_go_to_standard_output(server: RunningServer, people: People, tmp_path: Path) -> None:
    data = os.urandom(500_000)
    image = store_image(server, people.ann, data)
    env = environment(tmp_path) | variables_of(server.address, people.ann)
    done = subprocess.run(
        [sys.executable, "-m", "pixyproxy", "fetch", image.guid, "-o", "-"], env=env, capture_output=True, check=True
    )
    assert done.stdout == data
    assert done.stderr == b""


def test_files_are_not_overwritten_unless_that_is_said(run: Run, ann: ImageClient, tmp_path: Path) -> None:
    guid = ann.create("a castle", filename="castle.png").guid
    (tmp_path / "castle.png").write_text("mine")
    refused = run("fetch", guid)
    assert refused.status == 2
    assert "castle.png exists already. --force overwrites it." in refused.stderr
    assert (tmp_path / "castle.png").read_text() == "mine"
    # A creation is refused before anything is paid for.
    assert run("create", "never made", "-o", "castle.png").status == 2
    assert run("create", "never made", "-o", "nowhere/castle.png").status == 2
    assert run("create", "never made", "-o", "nowhere/").status == 2
    assert ann.guids(prompt="never made") == []

    assert run("fetch", guid, "--force").status == 0
    assert (tmp_path / "castle.png").read_bytes() == ann.content(guid)[1]
    (tmp_path / "folder").mkdir()
    saved = run("fetch", guid, "-o", "folder", "--json")
    assert json.loads(saved.stdout)["file"] == "folder/castle.png"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nonsense"], 2, "No such command"),
        (["get"], 2, "Missing argument"),
        (["get", "x"], 2, "GUID: must be a UUID"),
        (["fetch", "x", "-o", "y.png"], 2, "guid: must be a UUID"),
        (["create", ""], 2, "the prompt: must not be empty"),
        (["create", "x", "--quality", "foo"], 2, "pixyproxy: --quality: must be 'auto', 'low', "),
        (["create", "x", "--format", "gif"], 2, "pixyproxy: --format: must be 'png', 'webp' or 'jpeg'"),
        (["create", "x", "--size", "1x1"], 2, "pixyproxy: --size: "),
        (["create", "x", "--tag", ""], 2, "pixyproxy: --tag: must not be empty"),
        (["create", "x", "--request-id", "foo"], 2, "pixyproxy: --request-id: must be a UUID"),
        (["update", NOBODY], 2, "Nothing to change: use --filename"),
        (["delete", NOBODY], 2, "use --yes"),
        (["list", "--after", "yesterday"], 2, "'yesterday' is not a date or time like 2026-11-21"),
        (["list", "--visibility", "secret"], 2, "'--visibility': 'secret' is not one of 'private', 'public'"),
        (["get", NOBODY], 3, "no such image"),
        (["delete", NOBODY, "--yes"], 3, "no such image"),
    ],
    ids=str,
)
def test_statuses(run: Run, arguments: list[str], status: int, said: str) -> None:
    done = run(*arguments)
    assert (done.status, done.stdout) == (status, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "status", "said"),
    [
        ({"PIXYPROXY_PASSWORD": "wrong"}, 4, "Check PIXYPROXY_USER and PIXYPROXY_PASSWORD."),
        ({"PIXYPROXY_SERVER": "127.0.0.1:1"}, 5, "No server answers at 127.0.0.1:1. Start one with pixyproxy serve"),
        ({"PIXYPROXY_CLIENT_TLS": "true"}, 5, "set PIXYPROXY_CLIENT_TLS=false"),
        ({"PIXYPROXY_SERVER": "nonsense"}, 2, "host:port"),
        (
            {"PIXYPROXY_SERVER": "10.0.0.1:1", "PIXYPROXY_CLIENT_TLS": "off"},
            2,
            "in plain text: use TLS, or set PIXYPROXY_CLIENT_ALLOW_PLAINTEXT=true.",
        ),
        ({"PIXYPROXY_CLIENT_TLS": "perhaps"}, 2, "PIXYPROXY_CLIENT_TLS"),
        (
            {"PIXYPROXY_CLIENT_CA": "/nowhere.pem"},
            1,
            "/nowhere.pem cannot be read: No such file or directory. Check PIX",
        ),
        ({"PIXYPROXY_USER": ""}, 2, "needs PIXYPROXY_USER"),
        (
            {"PIXYPROXY_PASSWORD": "caf\udce9"},
            2,
            "The username or the password is not text in UTF-8. Check PIXYPROXY_USER",
        ),
    ],
    ids=str,
)
def test_statuses_of_settings(run: Run, variables: dict[str, str], status: int, said: str) -> None:
    done = run("list", **variables)
    assert (done.status, done.stdout) == (status, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    # gRPC's own words.
    assert not re.search("failed to connect|ipv4:|UNKNOWN|SSL", done.stderr)


def test_a_server_with_tls_is_told_from_one_that_is_away(tmp_path: Path) -> None:
    env = environment(tmp_path) | {"HOME": str(tmp_path)}
    with running_server(tmp_path / "server", Authority().write(tmp_path).settings) as server:
        for variables, said in (
            ({"PIXYPROXY_CLIENT_TLS": "false"}, "set PIXYPROXY_CLIENT_TLS=true"),
            ({"PIXYPROXY_CLIENT_TLS": "true"}, f"The certificate of {server.address} is not trusted."),
            ({"PIXYPROXY_CLIENT_TLS": "true", "PIXYPROXY_CLIENT_CA": __file__}, "is not a valid PEM file"),
        ):
            # Anew: it is too late to tell a gRPC that is there already to be silent.
            env_of_call = env | variables_of(server.address, None) | variables
            done = run_command("health", env=env_of_call, program=COMMAND_ANEW)
            assert (done.status, done.stdout) == (5, "")
            assert said in done.stderr
            assert len(done.stderr.splitlines()) == 1


def test_an_empty_list_is_said_to_be_empty(run: Run) -> None:
    for arguments in (["list", "--tag", "nobody gave this"], ["search", "zyzzyva"]):
        signed_in, anonymous = run(*arguments), run(*arguments, login=None)
        assert (signed_in.status, signed_in.stdout, signed_in.stderr) == (0, "", "pixyproxy: No images found.\n")
        assert "No images found. You are not signed in" in anonymous.stderr
        as_json = run(*arguments, "--json")
        assert (as_json.status, as_json.stdout, as_json.stderr) == (0, "", "")


def test_who_is_not_signed_in_is_told_so(run: Run, ann: ImageClient) -> None:
    private, public = ann.create("a castle").guid, ann.create_public("a castle").guid
    assert run("get", public, login=None).status == 0
    unseen = run("get", private, login=None)
    assert unseen.status == 3
    assert "not signed in" in unseen.stderr
    refused = run("create", "a castle", login=None)
    assert refused.status == 4
    assert "PIXYPROXY_USER" in refused.stderr


def test_a_request_id_that_is_used_again_for_something_else(run: Run) -> None:
    key = "0d2f4f6e-7f9b-4b0e-9a53-5b0b4bb7e6ad"
    first, second = (run("create", "a castle", "--size", "64x64", "--request-id", key, "--json") for _ in range(2))
    assert _settled(first.stdout) == _settled(second.stdout)
    other = run("create", "another castle", "--request-id", key)
    assert other.status == 2


def test_credentials_are_read_from_a_file_that_nobody_else_may_read(
    run: Run, server: RunningServer, people: People, tmp_path: Path, ann: ImageClient
) -> None:
    guid = ann.create("a castle").guid
    path = tmp_path / ".config/pixyproxy/credentials"
    path.parent.mkdir(parents=True)
    path.write_text(f"machine {server.address} login {people.ann.username} password {people.ann.password}\n")
    path.chmod(0o640)
    refused = run("get", guid, login=None)
    assert refused.status == 2
    assert "chmod 600" in refused.stderr
    path.chmod(0o600)
    assert run("get", guid, login=None).status == 0
    # Another user's password is not taken for that one's.
    assert run("create", "x", login=None, PIXYPROXY_USER="somebody").status == 4
    path.write_text(f"machine {server.address}\nlogin x {people.ann.password}\n")
    unreadable = run("get", guid, login=None)
    assert unreadable.status == 2
    assert people.ann.password not in unreadable.stderr
    assert "form of a .netrc file" in unreadable.stderr


@pytest.mark.parametrize(("user", "status"), [({}, 0), ({"PIXYPROXY_USER": "ann"}, 4)], ids=str)
def test_a_user_of_the_system_may_have_no_home(
    server: RunningServer, tmp_path: Path, user: dict[str, str], status: int
) -> None:
    # As in a container that runs under a number that its /etc/passwd does not have.
    homeless = "import os, pwd, sys; pwd.getpwuid = {}.__getitem__; os.environ.pop('HOME', None); "
    program = [sys.executable, "-c", f"{homeless}from pixyproxy.cli import main; main()"]
    env = environment(tmp_path) | variables_of(server.address, None) | user
    done = run_command("list", env=env, program=program)
    assert done.status == status
    assert "Traceback" not in done.stderr
    assert ("set PIXYPROXY_PASSWORD" in done.stderr) == bool(user)


def test_what_the_locale_cannot_read_is_no_prompt(server: RunningServer, people: People, tmp_path: Path) -> None:
    env = environment(tmp_path) | variables_of(server.address, people.ann)
    done = subprocess.run(
        [sys.executable, "-m", "pixyproxy", "create", b"caf\xe9"], env=env, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"is not text in the encoding" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_full_disk_is_explained(server: RunningServer, people: People, ann: ImageClient, tmp_path: Path) -> None:
    path = tmp_path / "a castle.png"
    image = store_image(server, people.ann, bytes(200_000))
    # What is too large for this limit is refused as what a full disk refuses is.
    fetch = f"ulimit -f 100; exec {sys.executable} -m pixyproxy fetch {image.guid} -o {shlex.quote(str(path))}"
    env = environment(tmp_path) | {"HOME": str(tmp_path)} | variables_of(server.address, people.ann)
    done = subprocess.run(["bash", "-c", fetch], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{path} cannot be written: File too large. The server keeps the image." in done.stderr
    assert not path.exists()
    again = done.stderr.splitlines()[-1]
    assert subprocess.run(["bash", "-c", again], env=env, capture_output=True, check=False).returncode == 0
    assert path.read_bytes() == bytes(200_000)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "explained"),
    [
        ("list >&-", "Standard output is closed."),
        ("create 'a castle' --size 64x64 >/dev/full", "its details cannot be written: No space left on device. To see"),
        ("health >/dev/full", "pixyproxy: The output cannot be written: No space left on device."),
        ("list --json >/dev/full", "pixyproxy: The output cannot be written: No space left on device."),
        ("--version >/dev/full", "pixyproxy: The output cannot be written: No space left on device."),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_explained(
    server: RunningServer,
    people: People,
    ann: ImageClient,
    tmp_path: Path,
    command: str,
    explained: str,
    unbuffered: str,
) -> None:
    ann.create("a castle")
    env = environment(tmp_path) | {"HOME": str(tmp_path)} | variables_of(server.address, people.ann)
    env["PYTHONUNBUFFERED"] = unbuffered
    whole = f"exec {sys.executable} -m pixyproxy {command}"
    done = subprocess.run(["bash", "-c", whole], env=env, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert explained in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if "create" in command:
        assert subprocess.run(["bash", "-c", done.stderr.splitlines()[-1]], env=env, check=False).returncode == 0


def test_only_regular_files_are_replaced(run: Run, server: RunningServer, people: People, tmp_path: Path) -> None:
    image = store_image(server, people.ann, b"bytes")
    (tmp_path / "target.png").write_bytes(b"before")
    (tmp_path / "link.png").symlink_to("target.png")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()

    refused = run("fetch", image.guid, "--output", "fifo", "--force")
    assert (refused.status, (tmp_path / "fifo").is_fifo()) == (2, True)
    assert "fifo is not a regular file" in refused.stderr
    assert run("create", "a castle", "--output", "fifo", "--force").status == 2
    (tmp_path / "fifo").rename(tmp_path / "folder" / image.filename)
    refused = run("fetch", image.guid, "--output", "folder", "--force")
    assert (refused.status, "is not a regular file" in refused.stderr) == (2, True)

    assert run("fetch", image.guid, "--output", "link.png", "--force").status == 0
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "target.png").read_bytes() == b"bytes"


def test_a_slash_at_the_end_asks_for_a_folder(run: Run, tmp_path: Path) -> None:
    refused = run("fetch", "any guid", "--output", "missing/")
    assert (refused.status, refused.stderr) == (2, "pixyproxy: There is no folder missing.\n")
    assert list(tmp_path.iterdir()) == []


def test_serve_and_the_commands_share_an_environment(tmp_path: Path) -> None:
    """The variables of the ones mean nothing to the other."""
    others = {"PIXYPROXY_USER": "admin", "PIXYPROXY_CLIENT_TLS": "false", "PIXYPROXY_SERVER": "127.0.0.1:1"}
    with running_server(tmp_path, others) as server:
        env = server.env | variables_of(server.address, server.admin)
        assert run_command("create", "a castle", "--size", "64x64", env=env).status == 0


# --- A server that means harm ----------------------------------------------------------------------------------------

EVIL_TEXT = "a\x1b]0;owned\x07b\x9b31mc\u202ed\r\nGUID e"


class Hostile(pb_grpc.ImageServiceServicer):
    """Answers with what a terminal or a file system should not be given."""

    def __init__(self, filename: str) -> None:
        data = b"picture"
        self.image = pb.ImageDetail(
            guid=NOBODY,
            filename=filename,
            prompt=EVIL_TEXT,
            tags=[EVIL_TEXT],
            author=EVIL_TEXT,
            visibility=pb.VISIBILITY_PUBLIC,
            content_type=EVIL_TEXT,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            model=EVIL_TEXT,
        )
        self.data = data

    def GetImage(self, request: Any, context: Any) -> pb.GetImageResponse:
        return pb.GetImageResponse(image=self.image)

    def ListImages(self, request: Any, context: Any) -> pb.ListImagesResponse:
        return pb.ListImagesResponse(images=[self.image])

    def GetImageContent(self, request: Any, context: Any) -> Iterator[pb.GetImageContentResponse]:
        info = pb.ContentInfo(filename=self.image.filename, size_bytes=len(self.data), sha256=self.image.sha256)
        yield pb.GetImageContentResponse(info=info)
        yield pb.GetImageContentResponse(data=self.data[request.read_offset :])

    def DeleteImage(self, request: Any, context: Any) -> None:
        context.abort(grpc.StatusCode.INTERNAL, EVIL_TEXT.replace("\r\n", " "))


@contextmanager
def hostile_server(filename: str = "x.png") -> Iterator[str]:
    with server_of(Hostile(filename)) as address:
        yield address


@contextmanager
def server_of(servicer: pb_grpc.ImageServiceServicer) -> Iterator[str]:
    """Serve a service of the test's own, and give its address."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        pb_grpc.add_ImageServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def test_nothing_of_a_server_is_obeyed_by_a_terminal(run: Run) -> None:
    with hostile_server() as address:
        said = "".join(
            done.stdout + done.stderr
            for done in (
                run("get", NOBODY, PIXYPROXY_SERVER=address),
                run("get", NOBODY, "--json", PIXYPROXY_SERVER=address),
                run("list", PIXYPROXY_SERVER=address),
                run("delete", NOBODY, "--yes", PIXYPROXY_SERVER=address),
            )
        )
        as_json = run("get", NOBODY, "--json", PIXYPROXY_SERVER=address)
    assert "a\\x1b]0;owned" in said
    assert not set("\x1b\x07\x9b\u202e\r") & set(said)
    assert json.loads(as_json.stdout)["prompt"] == EVIL_TEXT


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("../../escaped.png", "_.._escaped.png"),
        ("/etc/passwd", "_etc_passwd"),
        (".bashrc", "bashrc"),
        ("-rf.png", "rf.png"),
        ("..", NOBODY),
        ("", NOBODY),
        ("a\x1b[31m\n.png", "a_[31m_.png"),
        ("雪" * 255 + ".png", "雪" * 66 + ".png"),
        ("x" * 300, "x" * 200),
    ],
    ids=lambda value: value[:20],
)
def test_a_file_stays_in_its_folder(run: Run, tmp_path: Path, filename: str, expected: str) -> None:
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)
    with hostile_server(filename) as address:
        done = run("fetch", NOBODY, "-o", str(folder), PIXYPROXY_SERVER=address)
    assert done.status == 0, done.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [expected]
    assert (folder / expected).read_bytes() == b"picture"


# --- edit ------------------------------------------------------------------------------------------------------------


def test_an_image_is_made_from_others(run: Run, ann: ImageClient, tmp_path: Path) -> None:
    first, second = ann.create("a castle"), ann.create("a moat")
    made = run("edit", first.guid, second.guid, "-", "--mask", second.guid, "--tag", "sea", "--public",
               "--size", "96x64", "--format", "webp", "--filename", "both.webp", "--output", ".", "--json",
               text="both\n")  # fmt: skip
    assert (made.status, made.stderr) == (0, "")
    image = ann.get(json.loads(made.stdout)["guid"])
    assert (image.origin, list(image.source_guids)) == (pb.ORIGIN_EDITED, [first.guid, second.guid])
    assert (image.prompt, list(image.tags), image.visibility) == ("both", ["sea"], pb.VISIBILITY_PUBLIC)
    assert (image.content_type, image.width, image.height) == ("image/webp", 96, 64)
    assert (tmp_path / "both.webp").read_bytes() == ann.content(image.guid)[1]

    listed = run("generations", "list", "--limit", "1", "--json")
    generation = json.loads(listed.stdout)
    assert generation["request"]["inputs"] == [{"guid": first.guid}, {"guid": second.guid}]
    assert generation["request"]["mask"] == {"guid": second.guid}


def test_a_mask_is_imported_once_from_a_file(run: Run, ann: ImageClient, tmp_path: Path) -> None:
    first = ann.create("a castle")
    Image.new("RGBA", (first.width, first.height)).save(tmp_path / "mask.png")
    arguments = (first.guid, "a flag", "--mask", "mask.png", "--request-id", "7d2b6ad1-2a4c-44e6-9c5d-3f8d3f2d9f10")
    made = [run("edit", *arguments, "--json") for _ in range(2)]
    assert [one.status for one in made] == [0, 0], made[0].stderr
    assert _settled(made[0].stdout) == _settled(made[1].stdout)
    generation = json.loads(run("generations", "list", "--limit", "1", "--json").stdout)
    mask = ann.get(generation["request"]["mask"]["guid"])
    assert (mask.origin, mask.visibility) == (pb.ORIGIN_IMPORTED, pb.VISIBILITY_PRIVATE)
    assert ann.content(mask.guid)[1] == (tmp_path / "mask.png").read_bytes()
    assert [image.guid for image in ann.page().images if image.origin == pb.ORIGIN_IMPORTED][:2].count(mask.guid) == 1


@pytest.mark.parametrize(
    ("content", "status", "stderr"),
    [
        (None, 2, "pixyproxy: --mask: mask.png cannot be read: No such file or directory.\n"),
        (b"no picture", 2, "pixyproxy: the file: must be a PNG, WebP or JPEG\n"),
    ],
)
def test_a_mask_that_cannot_be_imported_is_refused(
    run: Run, ann: ImageClient, tmp_path: Path, content: bytes | None, status: int, stderr: str
) -> None:
    if content is not None:
        (tmp_path / "mask.png").write_bytes(content)
    refused = run("edit", ann.create("a castle").guid, "a flag", "--mask", "mask.png")
    assert (refused.status, refused.stdout) == (status, "")
    assert stderr in refused.stderr


def test_a_repeated_edit_gives_the_same_image(run: Run, ann: ImageClient) -> None:
    first, request_id = ann.create("a castle").guid, "6d2b6ad1-2a4c-44e6-9c5d-3f8d3f2d9f10"
    made = [run("edit", first, "a flag", "--request-id", request_id, "--json") for _ in range(2)]
    assert _settled(made[0].stdout) == _settled(made[1].stdout)
    assert made[0].status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "stderr"),
    [
        ((NOBODY, "a flag"), 3, "pixyproxy: GUID 1: There is no such image, or you may not see it.\n"),
        (("OWN", NOBODY, "a flag"), 3, "pixyproxy: GUID 2: There is no such image, or you may not see it.\n"),
        (("OWN", "a flag", "--mask", NOBODY), 3, "pixyproxy: --mask: There is no such image, or you may not see it.\n"),
        (
            ("OWN", "no guid", "a flag"),
            2,
            "pixyproxy: GUID 2: must be a UUID of 36 characters, such as 123e4567-e89b-42d3-a456-426614174000\n",
        ),
        (
            ("OWN", "a flag", "--mask", "WIDE"),
            2,
            "pixyproxy: --mask: must be as large as the first input, 64x64 pixels\n",
        ),
        ((*["OWN"] * 17, "a flag"), 2, "pixyproxy: GUID: must be at most 16 images, not 17\n"),
        (("a flag",), 2, "Missing argument"),
    ],
)
def test_an_edit_that_is_refused_says_what_is_wrong(
    run: Run, ann: ImageClient, arguments: tuple[str, ...], status: int, stderr: str
) -> None:
    guids = {"OWN": ann.create("a castle").guid}
    if "WIDE" in arguments:
        guids["WIDE"] = ann.create("a moat", options=pb.GenerationOptions(size="80x64")).guid
    refused = run("edit", *(guids.get(argument, argument) for argument in arguments))
    assert (refused.status, refused.stdout) == (status, "")
    assert stderr in refused.stderr


class FirstRelease(pb_grpc.ImageServiceServicer):
    """Knows no generations and no inputs."""

    def __init__(self) -> None:
        self.requests: list[pb.CreateImageRequest] = []

    def CreateImage(self, request: pb.CreateImageRequest, context: Any) -> pb.CreateImageResponse:
        self.requests.append(request)
        return pb.CreateImageResponse(image=pb.ImageDetail(guid=NOBODY, visibility=pb.VISIBILITY_PRIVATE))


def test_a_server_that_knows_no_edits_is_not_asked_for_another_image(run: Run) -> None:
    servicer = FirstRelease()
    with server_of(servicer) as address:
        edited = run("edit", NOBODY, "a flag", PIXYPROXY_SERVER=address)
        assert (edited.status, servicer.requests) == (1, [])
        assert "does not implement this call" in edited.stderr
        assert run("create", "a flag", PIXYPROXY_SERVER=address).status == 0
        assert [request.prompt for request in servicer.requests] == ["a flag"]
