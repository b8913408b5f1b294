"""The supervisor, with workers that do nothing but what a test is about."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pixyproxy.serving import supervisor
from tests.support.waiting import wait_until

_TIMEOUT = 30.0
_SCRIPT = """
import logging, os, select, signal, sys, time
from pixyproxy.core.exceptions import PixyProxyException
from pixyproxy.serving.supervisor import ProcessSpec, Supervisor

logging.basicConfig(stream=sys.stdout, format="%(message)s", level="INFO")

def say(*words):
    print(*words, flush=True)

def serve(lifeline):
    lifeline.report_serving()
    select.select([lifeline.end], [], [])

def work(number, lifeline):
{work}

def spec(number):
    return ProcessSpec(f"Worker {number}", lambda lifeline: work(number, lifeline), on_end=lambda: say("gone", number))

{before}
try:
    say(Supervisor([spec(0), spec(1)], on_ending=lambda: say("ending")).run(lambda: say("all serve")))
except PixyProxyException as error:
    say("failed:", error.message)
"""


@contextmanager
def supervising(tmp_path: Path, work: str, before: str = "") -> Iterator[subprocess.Popen[str]]:
    script = _SCRIPT.replace("{work}", "\n".join(f"    {line}" for line in work.splitlines())).replace(
        "{before}", before
    )
    with (tmp_path / "said").open("w") as output:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=output, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(tmp_path: Path) -> list[str]:
    return (tmp_path / "said").read_text().splitlines()


def run(tmp_path: Path, work: str) -> list[str]:
    with supervising(tmp_path, work) as process:
        assert process.wait(_TIMEOUT) == 0
    return said(tmp_path)


def test_a_worker_that_cannot_begin_ends_all_and_says_why(tmp_path: Path) -> None:
    lines = run(tmp_path, "if number == 1: raise PixyProxyException('no\\nroom')\nserve(lifeline)")
    assert lines == ["gone 1", "failed: no", "room"]


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "Signal 9 ended it."),
        ("os._exit(3)", "It ended with exit status 3."),
        ("pass", "It ended with exit status 0."),
    ],
)
def test_a_worker_that_dies_before_it_serves(tmp_path: Path, work: str, reason: str) -> None:
    assert run(tmp_path, work)[-1] == f"failed: {reason}"


def test_an_error_that_nobody_foresaw_is_logged(tmp_path: Path) -> None:
    lines = run(tmp_path, "if number == 0: 1 / 0\nserve(lifeline)")
    assert "Worker 0 failed." in lines
    assert "ZeroDivisionError: division by zero" in lines
    assert lines[-1] == "failed: It ended with exit status 1."


def test_a_worker_that_cannot_begin_again_is_tried_again(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    # The first time it serves, the second and third it fails, then it serves again.
    work = f"""
times = len(os.listdir({str(marks)!r}))
if number == 0:
    open(os.path.join({str(marks)!r}, str(times)), "w").close()
    if times in (1, 2): raise PixyProxyException("not now")
    say("pid", os.getpid())
serve(lifeline)
"""
    with supervising(tmp_path, work) as process:
        wait_until(lambda: "all serve" in said(tmp_path), _TIMEOUT, "the first start")
        first = int(next(line for line in said(tmp_path) if line.startswith("pid ")).split()[1])
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len([line for line in said(tmp_path) if line.startswith("pid")]) == 2, _TIMEOUT, "a restart")
        process.terminate()
        assert process.wait(_TIMEOUT) == 0
    lines = said(tmp_path)
    assert [line.partition(" has died. ")[2] for line in lines if " has died. " in line] == [
        "Signal 9 ended it.",
        "not now",
        "not now",
    ]
    assert lines.count("all serve") == 1
    assert lines[-1] == "True"


def test_a_worker_that_ends_badly_when_told_to_end(tmp_path: Path) -> None:
    with supervising(tmp_path, "serve(lifeline)\nif number == 1: os._exit(7)") as process:
        wait_until(lambda: "all serve" in said(tmp_path), _TIMEOUT, "the start")
        process.terminate()
        assert process.wait(_TIMEOUT) == 0
    assert said(tmp_path)[-1] == "False"


def test_the_end_may_come_before_all_serve(tmp_path: Path) -> None:
    with supervising(tmp_path, "say('begun', number)\nselect.select([lifeline.end], [], [])") as process:
        wait_until(lambda: len(said(tmp_path)) == 2, _TIMEOUT, "both to begin")
        process.terminate()
        assert process.wait(_TIMEOUT) == 0
    lines = said(tmp_path)
    assert "all serve" not in lines
    assert lines.count("ending") == 1
    assert lines[-1] == "True"


_REFUSED_FORKS = """
fork, asked = os.fork, []

def fork_but_for_the_third_and_fourth_time():
    asked.append(True)
    if len(asked) in (3, 4):
        raise OSError(11, "Resource temporarily unavailable")
    return fork()

os.fork = fork_but_for_the_third_and_fourth_time
"""


def test_a_system_that_gives_no_process_is_asked_again(tmp_path: Path) -> None:
    with supervising(tmp_path, "serve(lifeline)", before=_REFUSED_FORKS) as process:
        wait_until(lambda: "all serve" in said(tmp_path), _TIMEOUT, "the start")
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: said(tmp_path).count("gone 0") == 1 and _has_two(process), _TIMEOUT, "another one")
        process.terminate()
        assert process.wait(_TIMEOUT) == 0
    assert sum("It could not be forked: Resource" in line for line in said(tmp_path)) == 2
    assert said(tmp_path)[-1] == "True"


def _has_two(process: subprocess.Popen[str]) -> bool:
    return len(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()) == 2


def test_pauses_grow_to_an_end() -> None:
    pauses = [supervisor._pause_after(deaths) for deaths in range(12)]
    assert pauses[:5] == [0.0, 0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == 30.0
    assert pauses == sorted(pauses)
