"""The clients in other languages: where each one's project lies, and how it is built, once for all test runs.

A project is built by the commands that docs/clients.md gives, in a copy under ~/.cache/pixyproxy that is named by all
that goes into it; the document's example is built with it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.leaving_out import Required, leave_out
from tests.support.programs import InstallError, cache_folder, install_once, run_install

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent
DOCUMENT = ROOT / "docs/clients.md"
SERVICE_CONFIG = ROOT / "protos/pixyproxy/v1/service_config.json"

_RUN_TIMEOUT = 120.0
_KEPT_SECONDS = 7 * 24 * 3600
_BUILT = "built"
"""The file that is in the folder of a project once that is built."""


@dataclass(frozen=True)
class Project:
    """A client in one language.

    Attributes:
        folder: its folder beside this file.
        language: its name, which is its heading in the document.
        fence: what the document marks code in this language with.
        tools: the commands that it takes to build it.
        service_config: where in the project the service config belongs.
        examples: where in the project the document's examples belong, the one of its language and that of generations.
        program: how the program for tests is run; {folder} stands for the built project's folder.
        run_example: how an example is run; {name} stands for its name, {Name} for the same in title case.
    """

    folder: str
    language: str
    fence: str
    tools: tuple[str, ...]
    service_config: str
    examples: tuple[str, str]
    program: tuple[str, ...]
    run_example: tuple[str, ...]

    def __str__(self) -> str:
        return self.folder

    @property
    def commands(self) -> str:
        """The commands that build it, as the document gives them."""
        return _block(self.language, "sh")

    @property
    def code(self) -> tuple[str, str]:
        """The document's examples."""
        return _block(self.language, self.fence), _block("Generations", self.fence)


_JAVA = (
    "java",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-cp",
    "{folder}/target/classes:{folder}/target/dependency/*",
)
PROJECTS = (
    Project(
        folder="go",
        language="Go",
        fence="go",
        tools=("go",),
        service_config="pixyproxy/service_config.json",
        examples=("example/main.go", "watching/main.go"),
        program=("{folder}/bin/program",),
        run_example=("{folder}/bin/{name}",),
    ),
    Project(
        folder="node",
        language="TypeScript",
        fence="ts",
        tools=("node", "npm"),
        service_config="service_config.json",
        examples=("src/example.ts", "src/watching.ts"),
        program=("node", "{folder}/build/program.js"),
        run_example=("node", "{folder}/build/{name}.js"),
    ),
    Project(
        folder="java",
        language="Java",
        fence="java",
        tools=("java", "mvn"),
        service_config="src/main/resources/service_config.json",
        examples=("src/main/java/com/example/Example.java", "src/main/java/com/example/Watching.java"),
        program=(*_JAVA, "com.example.Program"),
        run_example=(*_JAVA, "com.example.{Name}"),
    ),
)


def require_tools(what: str, *tools: str) -> None:
    """Leave the test out where a command is missing."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        leave_out(what, f"install {' and '.join(missing)}", Required.CLIENTS)


def built(project: Project) -> Path:
    """Return the folder of the built project, after building it where that was not done before.

    Where its tools are missing, too old, or cannot load what they need, the test is left out.
    """
    what = f"the {project.language} client"
    require_tools(what, *project.tools)
    folder = _folder(project)
    try:
        install_once(folder.name, lambda: folder if _is_built(folder) else None, lambda: _make(project, folder))
    except InstallError as error:
        reason = str(error)
    else:
        (folder / _BUILT).touch()
        return folder
    # Outside of the handler, so that the report shows the reason once.
    return leave_out(what, reason, Required.CLIENTS)


def due() -> list[Project]:
    """The projects that the first test which needs them would build."""
    return [
        project for project in PROJECTS if all(map(shutil.which, project.tools)) and not _is_built(_folder(project))
    ]


@functools.cache
def _folder(project: Project) -> Path:
    return cache_folder() / "clients" / f"{project.folder}-{_digest(project)}"


def _is_built(folder: Path) -> bool:
    return (folder / _BUILT).exists()


def _make(project: Project, folder: Path) -> None:
    _remove_old_ones(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    _lay_out(project, folder)
    _build(project, folder)
    (folder / _BUILT).touch()


def run_program(project: Project, *arguments: str, env: Mapping[str, str]) -> Any:
    """Run the project's program for tests, and return what it reports."""
    return json.loads(_run(project, (*project.program, *arguments), ROOT, env))


def run_example(project: Project, cwd: Path, name: str, env: Mapping[str, str]) -> str:
    """Run one of the document's examples in a folder, and return what it says."""
    command = tuple(word.replace("{name}", name).replace("{Name}", name.title()) for word in project.run_example)
    return _run(project, command, cwd, env)


def write_descriptor(path: Path) -> None:
    """Have `make descriptor` write its file there."""
    subprocess.run(
        ["make", "descriptor", f"VENV={sys.prefix}", f"DESCRIPTOR={path}"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _run(project: Project, command: tuple[str, ...], cwd: Path, env: Mapping[str, str]) -> str:
    folder = str(built(project))
    done = subprocess.run(
        [word.replace("{folder}", folder) for word in command],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **env},
        capture_output=True,
        text=True,
        timeout=_RUN_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _block(heading: str, fence: str) -> str:
    """The first block of code of a kind under a heading of the document."""
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", DOCUMENT.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert section is not None
    block = re.search(rf"^```{fence}\n(.*?)^```$", section[1], flags=re.MULTILINE | re.DOTALL)
    assert block is not None
    return block[1]


def _digest(project: Project) -> str:
    parts = hashlib.sha256(f"{project.commands}{project.code}".encode())
    for path in sorted([*_sources(project), *(ROOT / "protos").rglob("*.proto"), SERVICE_CONFIG]):
        parts.update(f"{path.name}\n".encode() + path.read_bytes())
    return parts.hexdigest()[:16]


def _sources(project: Project) -> Iterator[Path]:
    return (path for path in (CLIENTS / project.folder).rglob("*") if path.is_file())


def _lay_out(project: Project, folder: Path) -> None:
    """Put together what the document tells people to."""
    shutil.copytree(CLIENTS / project.folder, folder)
    shutil.copytree(ROOT / "protos", folder / "protos")
    write_descriptor(folder / "pixyproxy.v1.binpb")
    examples = zip(project.examples, project.code, strict=True)
    for name, text in ((project.service_config, SERVICE_CONFIG.read_text()), *examples):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def _build(project: Project, folder: Path) -> None:
    """Run the document's commands."""
    # protoc is there wherever the tests are, inside a package of Python.
    protoc = folder / "bin" / "protoc"
    protoc.parent.mkdir()
    protoc.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m grpc_tools.protoc "$@"\n')
    protoc.chmod(0o755)
    environment = {"PATH": f"{protoc.parent}:{os.environ['PATH']}", "GOBIN": str(protoc.parent)}
    run_install(["bash", "-euo", "pipefail", "-c", project.commands], environment, folder)


def _remove_old_ones(folder: Path) -> None:
    for done in folder.glob(f"*/{_BUILT}"):
        if time.time() - done.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(done.parent, ignore_errors=True)
