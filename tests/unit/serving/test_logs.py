"""The log as a process writes it, which is why each test runs one."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest

_BEGIN = """
import logging, os, select, signal, sys, time
from pixyproxy.serving.logs import set_up_logging
set_up_logging("INFO")
log = logging.getLogger("test")
"""
_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|ERROR) - \[\d+\] \[<module>:\d+\] (.*)")


def _run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _BEGIN + program], capture_output=True, text=True, timeout=60, check=False
    )


def _messages(output: str) -> list[str]:
    found = [_LINE.fullmatch(line) for line in output.splitlines()]
    assert all(found), output
    return [line[2] for line in found if line]


def test_nothing_is_lost_at_the_end_of_a_process() -> None:
    done = _run('for number in range(5000): log.info("line %d", number)')
    assert _messages(done.stderr) == [f"line {number}" for number in range(5000)]


def test_an_error_is_written_at_once_with_all_before_it() -> None:
    done = _run('log.info("before"); log.error("broken"); os.kill(os.getpid(), signal.SIGKILL)')
    assert done.returncode == -signal.SIGKILL
    assert _messages(done.stderr) == ["before", "broken"]


def test_a_line_is_written_without_another_one_to_follow() -> None:
    program = _BEGIN + 'log.info("alone"); sys.stdin.read()'
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert _messages(process.stderr.readline()) == ["alone"]
        assert process.poll() is None


def test_a_forked_process_writes_its_own_lines_and_not_those_of_its_parent() -> None:
    done = _run(
        """
log.info("parent before")
child = os.fork()
log.info("child" if child == 0 else "parent after")
if child:
    os.waitpid(child, 0)
"""
    )
    assert sorted(_messages(done.stderr)) == ["child", "parent after", "parent before"]


def test_several_processes_write_whole_lines_to_one_pipe() -> None:
    done = _run(
        """
for _ in range(3):
    if os.fork() == 0:
        break
for number in range(3000):
    log.info("%s", "x" * 100)
"""
    )
    messages = _messages(done.stderr)
    assert set(messages) == {"x" * 100}


@pytest.mark.parametrize("text", ["a\\nb", "a\\u2028b", "a\\x1bb"])
def test_a_text_cannot_begin_a_line_of_its_own(text: str) -> None:
    done = _run(f'log.info("{text}")')
    assert _messages(done.stderr) == [text]
