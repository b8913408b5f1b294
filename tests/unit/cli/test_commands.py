"""The list of commands, which is written down so that none of them has to be loaded for it."""

from __future__ import annotations

import pkgutil
import subprocess
from importlib import import_module
from pathlib import PureWindowsPath

import pytest
from typer.testing import CliRunner

from pixyproxy import cli
from pixyproxy.cli import COMMANDS, app, load_command
from pixyproxy.cli.failures import explain
from pixyproxy.cli.texts import file_name, shell_quoted
from pixyproxy.client import ContentInfo, FieldViolation, PixyProxyClientError


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_of_each_command_what_it_says_itself(name: str) -> None:
    assert load_command(name).get_short_help_str(limit=200) == COMMANDS[name][1]


def test_no_command_is_missing() -> None:
    modules = [import_module(f"pixyproxy.cli.{module.name}") for module in pkgutil.iter_modules(cli.__path__)]
    apps = [module.app for module in modules if hasattr(module, "app")]

    assert set(COMMANDS) == {
        *(command.name or command.callback.__name__ for one in apps for command in one.registered_commands),
        *(group.name for one in apps for group in one.registered_groups),
    }


@pytest.mark.parametrize(
    "words",
    [
        *([name] for name in COMMANDS),
        *(["user", name] for name in ("add", "list", "passwd", "remove")),
        ["db", "init"],
        ["images", "copy"],
        *(["generations", name] for name in ("list", "get", "watch", "cancel", "salvage")),
        [],
    ],
    ids=str,
)
def test_help_fits_into_a_terminal(words: list[str]) -> None:
    # As click does at a terminal of 80 columns; the runner has its own width.
    done = CliRunner().invoke(app, [*words, "--help"], terminal_width=80 - 2)
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) < 80
    # Python's types, typer's braces, and a sentence that is cut off.
    usage, _, below_usage = done.stdout.partition("\n")
    assert "[[" not in usage
    assert not [found for found in ("list[", "<str", "<int", "<path", "...\n") if found in below_usage]
    assert "{" not in done.stdout


@pytest.mark.parametrize(
    "argument", ["", "plain", "it's", "$HOME `x` \\n", "two\nlines", "a\x1b[1mb\u202ec'd\\e\nf", "caf\udce9b"]
)
def test_a_shell_reads_what_is_quoted_for_it(argument: str) -> None:
    quoted = shell_quoted(argument)
    assert not set("\x1b\u202e") & set(quoted)
    done = subprocess.run(
        ["bash", "-c", f"printf %s {quoted}"], env={"LANG": "C.UTF-8"}, capture_output=True, check=True
    )
    assert done.stdout == argument.encode(errors="surrogateescape")


@pytest.mark.parametrize(
    ("filename", "on_windows"),
    [
        ("a castle.png", "a castle.png"),
        ("C:castle.png", "C_castle.png"),
        ("castle.png:hidden", "castle.png_hidden"),
        ('a "castle"? <b>|*.png', "a _castle__ _b___.png"),
        ("castle. .", "castle_"),
        ("con", "_con"),
        ("NUL.png", "_NUL.png"),
        ("Lpt1 .tar.gz", "_Lpt1 .tar.gz"),
        ("console.png", "console.png"),
    ],
)
def test_a_file_is_what_windows_takes_for_one(monkeypatch: pytest.MonkeyPatch, filename: str, on_windows: str) -> None:
    info = ContentInfo("guid", filename, "image/png", 1, "ab", False, None, 1, 1)
    assert file_name(info) == filename
    monkeypatch.setattr("sys.platform", "win32")
    path = PureWindowsPath("D:/folder") / file_name(info)
    assert (path.parent, path.name) == (PureWindowsPath("D:/folder"), on_windows)
    assert not path.is_reserved()


@pytest.mark.parametrize(
    "error",
    [
        PixyProxyClientError("a\x1bb", reason="INTERNAL", code="INTERNAL", request_id="\x1b"),
        PixyProxyClientError("a\x1bb", code="UNKNOWN"),
        PixyProxyClientError("", violations=[FieldViolation("\x1b", "\x1b")]),
    ],
    ids=["with a reason", "without one", "of a field"],
)
def test_what_a_server_says_is_not_obeyed_by_a_terminal(
    error: PixyProxyClientError, capsys: pytest.CaptureFixture[str]
) -> None:
    explain(error, "\x1b")
    said = capsys.readouterr().err
    assert "\\x1b" in said
    assert "\x1b" not in said
