"""What the README tells people to type does what it says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from tests.support.database_servers import DatabaseServer, fresh_database
from tests.support.grpcurl import grpcurl_folder
from tests.support.rpc import TIMEOUT
from tests.support.waiting import wait_until
from tests.support.wheel import build_wheel

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
SESSION, PRODUCTION = BLOCKS[:-1], BLOCKS[-1]


@dataclass(frozen=True)
class Served:
    """What `make run` said."""

    address: str
    password: str


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Run `make run`, in the environment that the tests run in, with its data in a folder of its own."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PIXYPROXY_LISTEN": "127.0.0.1:0",
        "PIXYPROXY_DATABASE_URL": f"sqlite:///{tmp_path / 'pixyproxy.db'}",
        "PIXYPROXY_IMAGE_STORE": str(tmp_path / "images"),
    }
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            ["make", "run", f"VENV={sys.prefix}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            said = ""
            for line in process.stdout:
                said += line
                if line.startswith("listening on "):
                    break
            else:
                pytest.fail(f"make run ended: {said} {(tmp_path / 'log').read_text()}")
            address = re.search(r"^listening on (\S+)$", said, flags=re.MULTILINE)
            password = re.search(r"^password: (\S+) ", said, flags=re.MULTILINE)
            assert address is not None
            assert password is not None
            # Lines are gathered for a moment before they are written.
            drawing = "PixyProxy draws images from prompts itself"
            wait_until(lambda: drawing in (tmp_path / "log").read_text(), TIMEOUT, "the warning")
            yield Served(address[1], password[1])
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)


def test_the_session_with_grpcurl(served: Served, tmp_path: Path) -> None:
    script = "\n".join(f"{block}echo '--- {number}'" for number, block in enumerate(SESSION))
    assert "PASSWORD" in script
    assert "127.0.0.1:50051" in script
    script = script.replace("PASSWORD", served.password).replace("127.0.0.1:50051", served.address)

    session = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={"PATH": f"{grpcurl_folder()}:{os.environ['PATH']}", "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert session.returncode == 0, session.stdout + session.stderr
    _, created, found, streamed, imported, updated, edited, deleted, generated, spent, _ = re.split(
        r"^--- \d+\n", session.stdout, flags=re.MULTILINE
    )
    (image,) = images_of(created)
    assert image["prompt"] == "A lighthouse in a storm 🌊"
    assert image["visibility"] == "VISIBILITY_PRIVATE"
    assert images_of(found) == [image, image]
    assert streamed == ""
    content = tmp_path / "lighthouse.png"
    assert content.stat().st_size == int(image["size_bytes"])
    with Image.open(content) as opened:
        opened.load()
        assert (opened.format, *opened.size) == ("PNG", image["width"], image["height"])
    own = json.loads(imported)["image"]
    assert (own["prompt"], own["origin"]) == ("A lighthouse, photographed", "ORIGIN_IMPORTED")
    assert (own["sha256"], own["width"]) == (image["sha256"], image["width"])
    changed, seen_by_anybody = images_of(updated)
    assert changed["tags"] == ["sea", "night"]
    assert seen_by_anybody == changed
    edit = json.loads(edited)["image"]
    assert (edit["origin"], edit["source_guids"]) == ("ORIGIN_EDITED", [image["guid"]])
    assert json.loads(deleted) == {}
    started, *states = (document["generation"] for document in documents(generated))
    # A worker may be faster than the answer.
    assert started["state"] in [f"GENERATION_STATE_{state}" for state in ("QUEUED", "SUBMITTED", "SUCCEEDED")]
    assert {state["guid"] for state in states} == {started["guid"]}
    assert states[-1]["state"] == "GENERATION_STATE_SUCCEEDED"
    assert states[-1]["image"]["prompt"] == "A castle at night"
    rows = json.loads(spent)["rows"]
    assert {row["model"] for row in rows} == {"offline-drawing"}
    # The edited and the deleted one as well, but not the imported one; all on the same day, but for around midnight.
    assert sum(int(row["images"]) for row in rows) == 3


def images_of(text: str) -> list[dict[str, Any]]:
    """Read the images in documents, without their placeholders, which may come between two calls."""
    found = [image for one in documents(text) for image in (one.get("images") or [one["image"]])]
    for image in found:
        image.pop("placeholder", None)
    return found


def documents(text: str) -> list[dict[str, Any]]:
    """Read JSON documents that follow one another."""
    decoder, found = json.JSONDecoder(), list[dict[str, Any]]()
    while text.strip():
        document, end = decoder.raw_decode(text.lstrip())
        found.append(document)
        text = text.lstrip()[end:]
    return found


_PYTHON = """#!/bin/sh
echo "$@" >> "$0.calls"
case "$1 $2" in
  -c*) exit {status};;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/bin/pip" && chmod +x "$3/bin/pip";;
esac
"""


def _make_environment(folder: Path, *, status: int = 0) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run `make` for an environment, with a Python that does nothing but write down how it was called."""
    python = folder / "python"
    python.write_text(_PYTHON.format(status=status))
    python.chmod(0o755)
    done = subprocess.run(
        ["make", f"VENV={folder / 'venv'}", f"PYTHON={python}", f"{folder / 'venv'}/.made-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return done, (folder / "python.calls").read_text()


def test_an_environment_that_was_left_without_pip_is_completed(tmp_path: Path) -> None:
    # Debian leaves such a one if its package python3-venv is missing.
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/python").touch(mode=0o755)
    done, calls = _make_environment(tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"-m venv {tmp_path / 'venv'}\n" in calls
    (tmp_path / "venv/.made-run").unlink()
    (tmp_path / "python.calls").unlink()
    done, calls = _make_environment(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "-m venv" not in calls


def test_a_python_that_is_too_old_is_refused(tmp_path: Path) -> None:
    done, calls = _make_environment(tmp_path, status=1)
    assert done.returncode != 0
    assert "PixyProxy needs Python 3.11 or newer." in done.stderr
    assert "-m" not in calls


def test_production(mysql_server: DatabaseServer, tmp_path: Path) -> None:
    """Build the package as `pip install` does, and run the README's commands from it alone, on MySQL."""
    wheel = build_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    with fresh_database(mysql_server) as url:
        parts = urlsplit(url)
        script = without_install(PRODUCTION)
        for text, meant in {
            "mysql://pixyproxy@db.internal/pixyproxy": url.replace(f":{parts.password}@", "@"),
            "PIXYPROXY_DATABASE_PASSWORD=…": f"PIXYPROXY_DATABASE_PASSWORD={unquote(parts.password or '')}",
            "OPENAI_API_KEY=…": "OPENAI_API_KEY=sk-none",
            "/srv/pixyproxy/images": str(tmp_path / "images"),
            "--class user": "--class user --password-stdin <<< 'correct horse'",
            "pixyproxy serve": f'exec "{sys.executable}" -m pixyproxy serve',
        }.items():
            assert text in script
            script = script.replace(text, meant)
        program = f'pixyproxy() {{ "{sys.executable}" -m pixyproxy "$@"; }}\n'
        said, log = run_until_it_serves(program + script, tmp_path)

    assert re.fullmatch(
        r"The tables are at version \d+ now\.\nAdded user alice\.\nlistening on 127\.0\.0\.1:\d+\n", said
    ), said + log
    assert "C extension" not in log


def run_until_it_serves(script: str, folder: Path) -> tuple[str, str]:
    """Run a script that ends in serving, stop it once it serves, and return what it said and what it logged."""
    environment = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(folder / "installed"),
        "PIXYPROXY_LISTEN": "127.0.0.1:0",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
    }
    command = ["bash", "-euo", "pipefail", "-c", script]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("listening on "):
                process.terminate()
        status = process.wait(60)
    logged = (folder / "log").read_text()
    assert status == 0, said + logged
    return said, logged


def without_install(block: str) -> str:
    """Leave out the line that makes an environment, whose work `build_wheel` does."""
    first, _, rest = block.partition("\n")
    assert "pip install '.[server]'" in first
    return rest
