from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.database_keeping import CommandFailedError, KeptCommand
from tests.support.waiting import wait_until

_RUNS_FOR_EVER = [sys.executable, "-c", "import os, signal; print(os.getpid(), flush=True); signal.pause()"]

_PARENT = """
import sys
from pathlib import Path
from tests.support.database_keeping import KeptCommand

kept = KeptCommand(Path(sys.argv[1]))
kept.start(sys.argv[2:])
print(kept.log, flush=True)
sys.stdin.read()
"""


def _runs(pid: int) -> bool:
    try:
        # A process that has ended but that nobody has waited for is there, and has no command line.
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):  # The latter, if it ends while this is read.
        return False


def _pid(log: Path) -> int:
    return int(wait_until(lambda: log.read_text().strip() if log.exists() else None, 60, "the command to run"))


def test_command_and_folder_go_at_the_end(tmp_path: Path) -> None:
    with KeptCommand(tmp_path) as kept:
        kept.start(_RUNS_FOR_EVER)
        pid = _pid(kept.log)
        assert kept.poll() is None
    assert not kept.folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_command_and_folder_go_when_the_process_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path), *_RUNS_FOR_EVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as parent:
        assert parent.stdout is not None
        log = Path(parent.stdout.readline().strip())
        pid = _pid(log)
        parent.kill()
    wait_until(lambda: not _runs(pid), 60, "the command to be killed")
    wait_until(lambda: not log.parent.exists(), 60, "the folder to be removed")


def test_removes_what_was_left_behind_and_only_that(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    (left / "data").touch()
    with KeptCommand(tmp_path) as first, KeptCommand(tmp_path) as second:
        assert not left.exists()
        assert first.folder.exists()
        assert second.folder.exists()


def test_signals_reach_the_command(tmp_path: Path) -> None:
    with KeptCommand(tmp_path) as kept:
        kept.start(_RUNS_FOR_EVER)
        _pid(kept.log)
        kept.signal(signal.SIGTERM)
        assert kept.wait(10) == -signal.SIGTERM
        kept.signal(signal.SIGTERM)  # Nobody is there any more, which is no error.


def test_input_and_environment_reach_the_command(tmp_path: Path) -> None:
    with KeptCommand(tmp_path) as kept:
        kept.run(["sh", "-c", 'cat; echo "$COLOUR"'], 10, {"COLOUR": "green"}, text="grass is ")
        assert kept.log.read_text() == "grass is green\n"


def test_failure_shows_the_end_of_the_output_on_one_line(tmp_path: Path) -> None:
    with KeptCommand(tmp_path) as kept, pytest.raises(CommandFailedError, match=r" failed with status 3: one two$"):
        kept.run(["sh", "-c", "echo one; echo two >&2; exit 3"], 10)


def test_missing_program_is_a_failure(tmp_path: Path) -> None:
    with KeptCommand(tmp_path) as kept, pytest.raises(CommandFailedError, match="no-such-program"):
        kept.run(["no-such-program"], 10)


def test_command_that_takes_too_long_is_a_failure(tmp_path: Path) -> None:
    with KeptCommand(tmp_path) as kept, pytest.raises(CommandFailedError, match=r" took more than 0\.1 s"):
        kept.run(_RUNS_FOR_EVER, 0.1)
