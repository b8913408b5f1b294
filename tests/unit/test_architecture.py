"""The rules of the architecture that a reader of one file cannot see kept."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pixyproxy"


def test_imports_point_the_right_way() -> None:
    checked = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "0 broken" in checked.stdout


def test_only_the_settings_read_the_environment() -> None:
    readers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    # It says there where prometheus_client keeps its files, which cannot be told in another way.
    readers.discard("observability/exposition.py")

    assert readers == set()  # pydantic-settings reads it for pixyproxy/settings.py


def test_only_one_place_aborts_calls() -> None:
    aborting = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("abort", "abort_with_status", "set_code")
    }

    assert aborting == {"resource/interceptors/exceptions.py"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda path: path.name)
def test_core_files_open_with_description_author_and_date(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))

    assert docstring is not None
    description, author, date = docstring.rsplit("\n", 2)
    assert description.strip()
    assert author == "Author: djjay"
    assert date.startswith("Date: 20")


def test_nothing_connects_or_opens_at_import() -> None:
    """Import everything in a process that may open no socket and no file for writing."""
    script = """
import sys
def refuse(event, args):
    if event in ("socket.connect", "socket.bind", "sqlite3.connect"):
        raise SystemExit(f"{event} at import")
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        raise SystemExit(f"{args[0]} opened for writing at import")
sys.dont_write_bytecode = True
sys.addaudithook(refuse)
import pkgutil, importlib, pixyproxy
for module in pkgutil.walk_packages(pixyproxy.__path__, "pixyproxy."):
    if module.name != "pixyproxy.__main__":
        importlib.import_module(module.name)
"""
    imported = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert imported.returncode == 0, imported.stderr
