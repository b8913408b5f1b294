"""What a start costs."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import os, sys
import pixyproxy.serving.workers

print("openai" in sys.modules, len(os.listdir("/proc/self/task")))
"""


def test_what_workers_are_forked_from_has_not_loaded_the_provider_and_begins_no_thread() -> None:
    # They would all hold it, which only the maker needs; and a thread would not come along.
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "1"]
