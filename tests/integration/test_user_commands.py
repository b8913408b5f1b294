"""`pixyproxy user …` and `pixyproxy db …`, as an operator runs them."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.bootstrap import open_current_database, open_database
from pixyproxy.core.exceptions import ConfigurationError
from tests.support.database_servers import DatabaseServer, fresh_database
from tests.support.image_client import ImageClient
from tests.support.rpc import TIMEOUT
from tests.support.servers import (
    COMMAND_ANEW,
    Finished,
    Login,
    RunningServer,
    environment,
    run_command,
    running_server,
    settings_in,
)
from tests.support.typed import at_a_terminal
from tests.support.waiting import wait_until

_SOON = 15.0
"""Seconds within which a change of a user must be noticed: one, and what a busy machine adds."""


def _user(env: dict[str, str], *arguments: str, text: str = "") -> Finished:
    return run_command("user", *arguments, env=env, text=text)


def _is_let_in(server: RunningServer, login: Login) -> bool:
    try:
        server.images.ListImages(pb.ListImagesRequest(), metadata=login.metadata, timeout=TIMEOUT)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return False
        raise
    return True


def test_a_users_life(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        zoe = Login("Zoë Ω", "correct horse: battery")
        added = _user(server.env, "add", zoe.username, "--password-stdin", text=zoe.password + "\n")
        assert (added.status, added.stdout, added.stderr) == (0, "Added user Zoë Ω.\n", "")
        assert _is_let_in(server, zoe)
        made = ImageClient(server, zoe).create_public()

        listed = _user(server.env, "list")
        assert (listed.status, listed.stdout) == (0, "user   Zoë Ω\nadmin  admin\n")

        changed = _user(server.env, "passwd", zoe.username, "--password-stdin", text="another password")
        assert (changed.status, changed.stderr) == (0, "")
        wait_until(lambda: not _is_let_in(server, zoe), _SOON, "the old password to be refused")
        zoe = Login(zoe.username, "another password")
        assert _is_let_in(server, zoe)

        removed = _user(server.env, "remove", zoe.username)
        assert (removed.status, removed.stderr) == (0, "")
        assert "images stay" in removed.stdout
        wait_until(lambda: not _is_let_in(server, zoe), _SOON, "the removed user to be refused")
        anybody = ImageClient(server)
        assert anybody.get(made.guid).author == zoe.username
        assert anybody.guids(author=zoe.username) == [made.guid]
        # The name is the images', and nobody else gets it.
        taken = _user(server.env, "add", zoe.username, "--password-stdin", text="yet another password")
        assert taken.status == 1
        assert "is taken" in taken.stderr
        assert _user(server.env, "list").stdout == "admin  admin\n"


def test_the_removal_of_the_last_admin_is_warned_of(tmp_path: Path) -> None:
    env = environment(tmp_path)
    for name, class_key in (("ann", "admin"), ("bob", "admin"), ("cas", "user")):
        assert _user(env, "add", name, "--class", class_key, "--password-stdin", text="a good password").status == 0
    assert _user(env, "remove", "ann").stderr == ""
    removed = _user(env, "remove", "bob")
    assert (removed.status, removed.stdout) == (0, "Removed bob.\n")
    assert removed.stderr.startswith("pixyproxy: There is no admin now. To add one: ")


@pytest.mark.parametrize(
    ("arguments", "text", "said"),
    [
        (["add", "x"], "x" * 1025, "1 to 1,024 characters"),
        (["add", "x"], "", "1 to 1,024 characters"),
        (["add", "a:b"], "a good password", "colon"),
        (["passwd", "nobody"], "a good password", "nobody"),
    ],
    ids=str,
)
def test_a_user_command_that_is_refused(tmp_path: Path, arguments: list[str], text: str, said: str) -> None:
    env = environment(tmp_path)
    assert run_command("db", "init", env=env).status == 0
    done = _user(env, *arguments, "--password-stdin", text=text)
    assert done.status == 1
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    if text:
        assert text not in done.stderr


@pytest.mark.parametrize(("password", "is_warned"), [("elevenchars", True), ("twelve chars", False)])
def test_a_short_password_is_warned_of(tmp_path: Path, password: str, is_warned: bool) -> None:
    env = environment(tmp_path)
    for command in ("add", "passwd"):
        done = _user(env, command, "x", "--password-stdin", text=password)
        assert done.status == 0
        assert ("at least 12 characters" in done.stderr) is is_warned
        assert password not in done.stderr


# What the drivers say in their own words.
_DRIVER_TEXT = re.compile(r"\(HY000\)|\(28000\)|\(42000\)|Access denied|Can't connect|unable to open")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://root:secret@127.0.0.1:1/x", "No database server answers at 127.0.0.1:1. Check that it runs"),
        ("mysql://root:secret@nowhere.invalid/x", "database server, nowhere.invalid, cannot be resolved"),
        (
            "sqlite:////proc/x.db",
            "There is no database /proc/x.db. Check PIXYPROXY_DATABASE_URL and the current folder.",
        ),
        ("sqlite:////proc/version", "cannot be opened for reading and writing. Check PIXYPROXY_DATABASE_URL"),
        ("sqlite:///{folder}/text", "PIXYPROXY_DATABASE_URL names is not an SQLite database"),
    ],
)
def test_a_database_that_cannot_be_had_is_explained_to_the_operator(tmp_path: Path, url: str, said: str) -> None:
    (tmp_path / "text").write_text("no database\n" * 100)
    done = _user(environment(tmp_path, {"PIXYPROXY_DATABASE_URL": url.format(folder=tmp_path)}), "list")
    assert (done.status, done.stdout) == (1, "")
    assert said in done.stderr
    assert "secret" not in done.stderr
    assert not _DRIVER_TEXT.search(done.stderr)


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_a_database_server_that_refuses_is_told_from_one_that_is_away(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    server: DatabaseServer = request.getfixturevalue(f"{kind}_server")
    with fresh_database(server) as url, _user_without_rights(url) as stranger:
        for changed, said in (
            ({"PIXYPROXY_DATABASE_PASSWORD": "wrong"}, "or the password. Check PIXYPROXY_DATABASE_USER and PIXYPROXY_"),
            ({"PIXYPROXY_DATABASE_USER": "nobody"}, "refuses the user nobody or the password. Check"),
            ({"PIXYPROXY_DATABASE_NAME": "nothing"}, "has no database nothing. Check PIXYPROXY_DATABASE_NAME"),
            (stranger, "lacks rights on the database. Check PIXYPROXY_DATABASE_USER"),
        ):
            env = environment(tmp_path, {"PIXYPROXY_DATABASE_URL": url} | changed)
            for arguments in (["user", "list"], ["db", "init"], ["serve"]):
                done = run_command(*arguments, env=env)
                assert (done.status, done.stdout) == (1, "")
                assert said in done.stderr
                assert "cannot be reached" not in done.stderr
                assert not _DRIVER_TEXT.search(done.stderr)


@contextlib.contextmanager
def _user_without_rights(url: str) -> Iterator[dict[str, str]]:
    """Make a user who may sign in and nothing else; gives the settings to do so."""
    with open_database(settings_in(environment(Path(), {"PIXYPROXY_DATABASE_URL": url}))) as database:
        name = f"stranger_{secrets.token_hex(4)}"
        with database.reading() as context:
            context.execute(f"CREATE USER {name} IDENTIFIED BY 'a Good passw0rd'", {})
            yield {"PIXYPROXY_DATABASE_USER": name, "PIXYPROXY_DATABASE_PASSWORD": "a Good passw0rd"}
            context.execute(f"DROP USER {name}", {})


@pytest.mark.parametrize(
    ("arguments", "url", "said"),
    [
        (["add", "ann"], "mysql://root:secret@127.0.0.1:1/x", "No database server answers"),
        (["passwd", "ann"], "mysql://root:secret@127.0.0.1:1/x", "No database server answers"),
        (["add", ""], "", "username: must not be empty"),
        (["add", "a:b"], "", "must not contain a colon"),
        (["passwd", "nobody"], "", "There is no user nobody."),
        (["add", "zoe"], "", "The name zoe is taken. To change the password: pixyproxy user passwd"),
    ],
    ids=str,
)
def test_no_password_is_asked_for_in_vain(tmp_path: Path, arguments: list[str], url: str, said: str) -> None:
    env = environment(tmp_path)
    assert _user(env, "add", "zoe", "--password-stdin", text="a good password").status == 0
    with at_a_terminal("user", *arguments, env=env | ({"PIXYPROXY_DATABASE_URL": url} if url else {})) as terminal:
        assert terminal.end() == 1
    assert said in terminal.text
    assert "Password" not in terminal.text.replace("PASSWORD", "")


def test_a_password_needs_a_terminal_or_standard_input(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pixyproxy", "user", "add", "ann"],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # Which has no terminal.
    )
    said = "pixyproxy: There is no terminal to read the password from: use --password-stdin.\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_who_has_no_users_is_told_how_to_add_one(tmp_path: Path) -> None:
    env = environment(tmp_path)
    assert run_command("db", "init", env=env).status == 0
    done = _user(env, "list")
    assert (done.status, done.stdout) == (0, "")
    assert "pixyproxy user add NAME --class admin" in done.stderr


@pytest.mark.parametrize("arguments", [["list"], ["passwd", "ann", "--password-stdin"], ["remove", "ann"]], ids=str)
def test_commands_for_users_make_no_database_in_a_wrong_folder(tmp_path: Path, arguments: list[str]) -> None:
    done = _user(environment(tmp_path), *arguments, text="a good password")
    assert (done.status, done.stdout) == (1, "")
    assert f"There is no database {tmp_path / 'pixyproxy.db'}." in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_password_that_is_no_text_is_refused(tmp_path: Path) -> None:
    command = [*COMMAND_ANEW, "user", "add", "ann", "--password-stdin"]
    done = subprocess.run(
        command, env=environment(tmp_path), input=b"a good \xff word", capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"pixyproxy: The password is not text in UTF-8.\n"


def test_a_terminal_may_not_have_all_characters_of_a_name(tmp_path: Path) -> None:
    env = environment(tmp_path)
    ascii_only = env | {"PYTHONIOENCODING": "ascii"}
    assert _user(env, "add", "zoë", "--password-stdin", text="a good password").status == 0
    for arguments, shown in ((["list"], "user   zo?\n"), (["remove", "zoë"], "Removed zo?.\n")):
        # Anew: how output is encoded is decided when Python starts.
        done = run_command("user", *arguments, env=ascii_only, program=COMMAND_ANEW)
        assert (done.status, done.stdout) == (0, shown)
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["add"], ["passwd"], ["limit"], ["remove"]], ids=str)
def test_a_name_that_is_no_text_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    env = environment(tmp_path)
    assert run_command("db", "init", env=env).status == 0
    done = run_command("user", *arguments, "zo\udceb", env=env, program=COMMAND_ANEW)
    assert (done.status, done.stdout) == (2, "")
    assert "'NAME': It is not text in the encoding of this terminal." in done.stderr
    assert "Traceback" not in done.stderr


def test_what_there_is_not_cannot_be_removed(tmp_path: Path) -> None:
    env = environment(tmp_path)
    assert run_command("db", "init", env=env).status == 0
    done = _user(env, "remove", "nobody")
    assert done.status == 1
    assert "nobody" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_there_is_no_first_user_whose_password_cannot_be_told(tmp_path: Path, workers: str, unbuffered: str) -> None:
    env = environment(tmp_path, {"PIXYPROXY_WORKERS": workers, "PYTHONUNBUFFERED": unbuffered})
    serve = ["bash", "-c", f"exec {sys.executable} -m pixyproxy serve >/dev/full"]
    done = subprocess.run(serve, env=env, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 1
    assert "pixyproxy: The output cannot be written: No space left on device." in done.stderr
    assert "Traceback" not in done.stderr
    assert "There are no users." in _user(env, "list").stderr


def test_a_password_is_asked_for_twice_and_never_shown(tmp_path: Path) -> None:
    env = environment(tmp_path)
    said = _at_a_terminal(env, ["user", "add", "ann"], ["a good password", "a good password"])
    assert "Password" in said
    assert "Added user ann." in said
    assert "a good password" not in said
    again = _user(env, "add", "ann", "--class", "admin", "--password-stdin", text="another password")
    assert again.status == 1
    assert again.stderr.startswith("pixyproxy: ")
    assert "ann is taken" in again.stderr
    with running_server(tmp_path) as server:
        # Where there is a user already, a start makes none.
        assert server.output == f"listening on {server.address}\n"
        assert _is_let_in(server, Login("ann", "a good password"))


def _at_a_terminal(env: dict[str, str], arguments: list[str], answers: list[str]) -> str:
    """Run a command at a terminal of its own, answer each question that it asks, and return all that was shown."""
    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen(
        [sys.executable, "-m", "pixyproxy", *arguments],
        env=env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        answered = 0
        # Where the other end is closed, reading fails.
        with contextlib.suppress(OSError):
            while part := os.read(ours, 1024):
                shown += part
                if answered < len(answers) and shown.count(b": ") > answered:
                    os.write(ours, answers[answered].encode() + b"\n")
                    answered += 1
        os.close(ours)
        assert process.wait(TIMEOUT) == 0, shown
    return shown.decode()


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_from_an_empty_database_to_the_first_image(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    database: DatabaseServer = request.getfixturevalue(f"{kind}_server")
    with fresh_database(database) as url:
        env = environment(tmp_path, {"PIXYPROXY_DATABASE_URL": url})
        refused = run_command("serve", env=env)
        assert refused.status == 1
        assert "pixyproxy db init" in refused.stderr
        assert refused.stdout == ""

        first, second = (run_command("db", "init", env=env) for _ in range(2))
        _check_older_is_refused(env)
        assert (first.status, second.status) == (0, 0)
        assert "version" in first.stdout
        assert second.stdout == "The tables are up to date.\n"

        added = _user(env, "add", "ann", "--class", "admin", "--password-stdin", text="a good password")
        assert (added.status, added.stdout) == (0, "Added admin ann.\n")
        with running_server(tmp_path, env) as server:
            assert server.output == f"listening on {server.address}\n"
            ann = ImageClient(server, Login("ann", "a good password"))
            assert ann.get(ann.create().guid).author == "ann"


def _check_older_is_refused(env: dict[str, str]) -> None:
    """Check that a database server's tables of an earlier release are left alone until somebody says so."""
    with open_database(settings_in(env)) as database:
        with database.transaction() as context:
            context.execute("UPDATE migrations SET version = version - 1 ORDER BY version", {})
            context.commit()
        with pytest.raises(ConfigurationError, match="pixyproxy db init"), open_current_database(settings_in(env)):
            pass
        with database.transaction() as context:
            context.execute("UPDATE migrations SET version = version + 1 ORDER BY version DESC", {})
            context.commit()


def test_a_database_of_a_later_release_is_left_alone(tmp_path: Path) -> None:
    env = environment(tmp_path)
    with open_current_database(settings_in(env)) as database, database.transaction() as context:
        context.execute("UPDATE migrations SET version = version + 900", {})
        context.commit()
    for arguments in (["serve"], ["db", "init"]):
        done = run_command(*arguments, env=env)
        assert done.status == 1
        assert "later release" in done.stderr
        assert done.stdout == ""


def test_a_name_in_decomposed_form_is_the_name_in_composed_form(tmp_path: Path) -> None:
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    env = environment(tmp_path)
    assert _user(env, "add", decomposed, "--password-stdin", text="correct horse battery").status == 0
    for name in (composed, decomposed):
        assert _user(env, "passwd", name, "--password-stdin", text="correct horse battery").stderr == ""
        assert "To change the password" in _user(env, "add", name, "--password-stdin", text="x").stderr
