"""What `pip install pixyproxy` brings: the client library and the command line, and nothing of the server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.leaving_out import Required, leave_out
from tests.support.servers import RunningServer
from tests.support.wheel import build_wheel

_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
_NEEDED = {"pixyproxy", "googleapis-common-protos", "protobuf", "rich", "typer"}
_NEEDED |= {"grpcio", "grpcio-health-checking", "grpcio-status"}
# What rich and typer need.
_BROUGHT = {"annotated-doc", "annotated-types", "click", "markdown-it-py", "mdurl", "pydantic", "pydantic-core"}
_BROUGHT |= {"pygments", "shellingham", "typing-extensions", "typing-inspection"}


class Installed:
    """An environment that has nothing but the package, and a folder to work in."""

    def __init__(self, bin_: Path, folder: Path) -> None:
        self._bin = bin_
        self._folder = folder

    def run(self, program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._bin / program, *arguments],
            cwd=self._folder,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": str(self._folder), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A fresh environment with the package, which the processes of a run share."""
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        folder = folder.parent
    light = folder / "light"
    with FileLock(folder / "light.lock"):
        if not light.exists():
            light.mkdir()
            try:
                _install(build_wheel(light), light / "environment")
            except subprocess.CalledProcessError as error:
                shutil.rmtree(light)
                if not _registry_answers(folder):
                    leave_out("the package by itself", "no package registry answers", Required.CLIENTS)
                pytest.fail(error.stderr.decode())
    return light / "environment"


def _install(wheel: Path, environment: Path) -> None:
    venv.create(environment, symlinks=True)
    install = [*_PIP, "--python", str(environment), "install", "--quiet", "--no-compile", str(wheel)]
    subprocess.run(install, capture_output=True, check=True)


def _registry_answers(folder: Path) -> bool:
    asked = [*_PIP, "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", str(folder), "mdurl"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


@pytest.fixture
def installed(environment: Path, tmp_path: Path) -> Installed:
    return Installed(environment / "bin", tmp_path)


def test_nothing_of_the_server_comes(installed: Installed) -> None:
    script = "import importlib.metadata as m; print(*{d.metadata['Name'].lower() for d in m.distributions()})"
    listed = installed.run("python", "-c", script)

    packages = set(listed.stdout.replace("_", "-").split())
    assert _NEEDED <= packages <= _NEEDED | _BROUGHT


def test_commands_ask_a_server(installed: Installed, server: RunningServer) -> None:
    author = server.new_login()
    environment = {
        "PIXYPROXY_SERVER": server.address,
        "PIXYPROXY_USER": author.username,
        "PIXYPROXY_PASSWORD": author.password,
    }
    assert "Generates images" in installed.run("pixyproxy", "--help").stdout

    created = installed.run("pixyproxy", "create", "A castle", "--size", "64x64", "--json", **environment)
    assert created.returncode == 0, created.stderr
    guid = json.loads(created.stdout)["guid"]
    fetched = installed.run("pixyproxy", "fetch", guid, "--output", "castle.png", **environment)
    assert fetched.stdout.endswith("bytes, verified.\n"), fetched.stderr
    listed = installed.run("pixyproxy", "list", "--author", author.username, **environment)
    assert guid in listed.stdout


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_the_library_asks_a_server(installed: Installed, server: RunningServer, kind: str) -> None:
    script = {
        "blocking": "with PixyProxyClient(sys.argv[1]) as client: print(client.is_serving())",
        "asyncio": "async def ask():\n"
        " async with AsyncPixyProxyClient(sys.argv[1]) as client: print(await client.is_serving())\n"
        "asyncio.run(ask())",
    }[kind]
    asked = installed.run(
        "python", "-c", f"import asyncio, sys\nfrom pixyproxy.client import *\n{script}", server.address
    )

    assert (asked.stdout, asked.stderr) == ("True\n", "")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("serve", "serve"),
        ("serve --help", "serve"),
        ("db init", "db"),
        ("user list", "user"),
        ("images copy --from a --to b", "images"),
        ("generations salvage a --output b", "generations salvage"),
    ],
)
def test_commands_of_the_server_say_what_to_install(installed: Installed, command: str, name: str) -> None:
    refused = installed.run("pixyproxy", *command.split())

    assert (refused.returncode, refused.stdout, refused.stderr) == (
        1,
        "",
        f"pixyproxy: {name} needs the server, which runs on Linux and macOS: pip install 'pixyproxy[server]'\n",
    )


def test_pictures_are_not_shown_without_pillow(installed: Installed, server: RunningServer) -> None:
    author = server.new_login()
    script = "pixyproxy create 'A castle' --size 64x64 --show"
    shown = installed.run(
        "python",
        "-c",
        f"import pty, sys; sys.exit(pty.spawn(['sh', '-c', {script!r}]))",
        PATH=f"{installed._bin}{os.pathsep}{os.defpath}",
        TERM="xterm",
        PIXYPROXY_SERVER=server.address,
        PIXYPROXY_USER=author.username,
        PIXYPROXY_PASSWORD=author.password,
    )

    assert shown.returncode == 0, shown.stdout
    said = " ".join(shown.stdout.split())
    assert "pixyproxy: --show needs Pillow: pip install pillow" in said
