"""The memory of this process, which Linux counts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"

needs_memory_statistics = pytest.mark.skipif(not _CLEAR_REFS.exists(), reason="needs the memory statistics of Linux")


def memory_for(work: Callable[[], object]) -> int:
    """Call ``work``; return by how many bytes the memory of the process grew meanwhile, at the most."""
    before = _bytes_of("VmRSS")
    _CLEAR_REFS.write_text(_FORGET_PEAK, encoding="ascii")
    work()
    return _bytes_of("VmHWM") - before


def _bytes_of(name: str) -> int:
    [kibibytes] = re.findall(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return int(kibibytes) * 1024
