"""The rules of the architecture that a reader of one file cannot see kept."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pixyproxy import cli
from tests.contract.test_other_driver import has_c_driver

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

    assert readers == {"settings.py", "cli/client_settings.py"}


_SERVER = ("serving", "bootstrap", "settings", "resource", "observability", "service", "generation", "data", "core")
HEAVY = {
    *("mysql", "_mysql_connector", "sqlite3", "openai", "pydantic", "pydantic_settings", "cryptography", "PIL", "rich"),
    *(f"pixyproxy.{layer}" for layer in _SERVER),
}


_CLIENT_COMMANDS = {f"pixyproxy.cli.{module}" for module, _ in cli.COMMANDS.values() if module != "admin"}
IMPORT_OF_CLIENT = f"import pixyproxy.client, {', '.join(_CLIENT_COMMANDS)}"


def modules_loaded_by(statement: str) -> list[str]:
    """The modules that a fresh process loads for a statement, in the order in which they come."""
    script = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True, env=SEARCHED
    )
    return done.stdout.split()


# Without the tests' own sitecustomize, which loads the driver.
SEARCHED = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path and "support/early" not in path)}


def test_the_client_loads_nothing_heavy() -> None:
    assert HEAVY.isdisjoint(modules_loaded_by("import pixyproxy.client"))


def test_the_client_and_its_commands_load_nothing_that_windows_lacks() -> None:
    absent = ("fcntl", "grp", "pwd", "resource", "termios", "tty")

    modules_loaded_by(f"import sys; sys.modules.update(dict.fromkeys({absent}))\n{IMPORT_OF_CLIENT}")


def test_help_loads_no_command() -> None:
    loaded = modules_loaded_by("from pixyproxy import cli\ntry: cli.app(['--help'])\nexcept SystemExit: pass")

    assert not {"grpc", "pixyproxy.client", "pixyproxy.cli.images", "pixyproxy.cli.admin"} & set(loaded)
    assert HEAVY & set(loaded) == {"pixyproxy.core"}  # Its exceptions.


def test_commands_that_ask_a_server_load_nothing_of_one() -> None:
    loaded = set(modules_loaded_by(IMPORT_OF_CLIENT))

    assert HEAVY & loaded == {"pixyproxy.core"}  # Its exceptions.


@pytest.mark.skipif(not has_c_driver(), reason="the MySQL driver has no part in C here")
@pytest.mark.parametrize(
    "statement",
    [
        "import pixyproxy.bootstrap",
        *(
            f"import sys; sys.argv[1:] = {arguments}\ntry: import pixyproxy.cli; pixyproxy.cli.main()\n"
            "except SystemExit: pass"
            for arguments in (["serve", "--help"], ["user", "add", "--help"], ["db", "--help"])
        ),
    ],
)
def test_the_driver_in_c_is_there_before_openssl(statement: str) -> None:
    loaded = modules_loaded_by(statement)

    openssl = [loaded.index(name) for name in ("_hashlib", "_ssl") if name in loaded]
    assert openssl
    assert loaded.index("_mysql_connector") < min(openssl)


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


def test_only_the_generator_that_needs_it_loads_the_provider_s_package() -> None:
    """It takes half of the time and memory of a start."""
    script = """
import pkgutil, importlib, sys, pixyproxy.generation as generation
for module in pkgutil.iter_modules(generation.__path__, "pixyproxy.generation."):
    if module.name != "pixyproxy.generation.openai.client":
        importlib.import_module(module.name)
sys.exit("openai" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
