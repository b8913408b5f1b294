"""What a start costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import os, sys
import pixyproxy.cli
from pixyproxy.bootstrap import load_ahead
from pixyproxy.settings import Settings

load_ahead(Settings.model_validate({settings}))
print("openai" in sys.modules, len(os.listdir("/proc/self/task")))
"""


@pytest.mark.parametrize(("settings", "has_openai"), [({}, False), ({"OPENAI_API_KEY": "x"}, True)])
def test_the_provider_is_loaded_only_where_it_is_used_and_no_thread_begins(
    settings: dict[str, str], has_openai: bool
) -> None:
    # Workers are forked after this, and a thread would not come along.
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT.replace("{settings}", repr(settings))],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(has_openai), "1"]
