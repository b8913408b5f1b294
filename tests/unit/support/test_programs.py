from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.leaving_out import Required
from tests.support.programs import InstallError, Program, install_once, run_install


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing was installed yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PIXYPROXY_TEST_INSTALL", raising=False)
    monkeypatch.delenv(Required.OBJECT_STORES, raising=False)
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "this run")
    return tmp_path / "pixyproxy"


def program(*script: str, tool: str = "sh") -> Program:
    def install(folder: Path) -> None:
        (folder / "tool").write_text("half")
        run_install(["sh", "-c", *script], cwd=folder)

    return Program("tool", "1 MB", "what needs a tool", Required.OBJECT_STORES, tool, install)


def test_a_program_is_installed_once(cache: Path) -> None:
    made = program("echo whole > tool")
    assert made.is_due

    folder = made.folder()

    assert folder == cache / "programs" / "tool"
    assert (folder / "tool").read_text() == "whole\n"
    assert not made.is_due
    assert program("exit 1").folder() == folder


def test_an_install_that_fails_leaves_its_tests_out(cache: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match=r"left out: what needs a tool \(sh -c .* failed: no … network\)"):
        program("echo no; echo network; exit 1").folder()

    assert not (cache / "programs" / "tool").exists()


def test_an_install_that_fails_is_tried_once_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def install() -> None:
        tries.append(1)
        raise InstallError("no network")

    for _ in range(2):
        with pytest.raises(InstallError, match="no network"):
            install_once("tool", lambda: None, install)
    assert len(tries) == 1

    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "the next run")
    with pytest.raises(InstallError, match="no network"):
        install_once("tool", lambda: None, install)
    assert len(tries) == 2


def test_without_its_tool_it_is_left_out() -> None:
    made = program("true", tool="no-such-tool")

    assert not made.is_due
    with pytest.raises(pytest.skip.Exception, match="neither tool nor no-such-tool is here"):
        made.folder()


def test_what_ci_requires_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(Required.OBJECT_STORES, "1")

    with pytest.raises(pytest.fail.Exception, match="PIXYPROXY_TEST_REQUIRE_OBJECT_STORES is set"):
        program("exit 1").folder()


def test_nothing_is_installed_where_that_is_off(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("PIXYPROXY_TEST_INSTALL", "0")

    with pytest.raises(pytest.skip.Exception, match="PIXYPROXY_TEST_INSTALL is 0"):
        program("true").folder()


def test_make_test_says_what_it_installs_and_how_large(cache: Path) -> None:
    root = Path(__file__).parents[3]

    def said(**variables: str) -> str:
        command = [sys.executable, "-m", "tests.support.installs"]
        # Go's name is all that is looked for.
        (cache.parent / "go").write_text("#!/bin/sh\n")
        (cache.parent / "go").chmod(0o755)
        environment = {"PATH": str(cache.parent), "HOME": str(cache.parent), **variables}
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True).stdout

    assert "\n  versitygw (80 MB)\n" in said()
    assert "PIXYPROXY_TEST_INSTALL=0 leaves out" in said()
    assert said(PIXYPROXY_TEST_INSTALL="0") == ""
