from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.leaving_out import Required, leave_out

_TESTS = """
import pytest
from tests.support.leaving_out import Required, leave_out

@pytest.mark.parametrize("number", range(3))
def test_of_a_server(number):
    leave_out("MySQL", "no server found: set a variable", Required.DATABASES)

def test_of_a_tool():
    leave_out("the Go client", "install go", Required.CLIENTS)

def test_of_a_machine():
    pytest.skip("this machine has no IPv6")
"""


def test_a_test_is_skipped_unless_what_it_needs_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(Required.DATABASES, raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"^left out: MySQL \(nobody is home\)$"):
        leave_out("MySQL", "nobody is\n home", Required.DATABASES)
    monkeypatch.setenv(Required.DATABASES, "1")
    with pytest.raises(pytest.fail.Exception, match=r"\(nobody is home\), but PIXYPROXY_TEST_REQUIRE_DATABASES is set"):
        leave_out("MySQL", "nobody is home", Required.DATABASES)


def test_the_run_says_in_one_line_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "test_these.py").write_text(_TESTS)
    root = Path(__file__).parents[3]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.support.leaving_out",
        f"--rootdir={tmp_path}",
        str(tmp_path),
    ]

    done = subprocess.run(command, cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False)

    assert (
        "\ntests left out: MySQL (no server found: set a variable): 3; the Go client (install go): 1; "
        "this machine has no IPv6: 1\n"
    ) in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
