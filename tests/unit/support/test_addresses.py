from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.addresses import free_port

_ROOT = Path(__file__).parents[3]
_TAKE_ONE_OF_TWO = """
import itertools, random, sys
from tests.support.addresses import free_port
ports = itertools.cycle(map(int, sys.argv[1:]))
random.randrange = lambda *_: next(ports)
print(free_port())
"""


def test_no_port_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(itertools.chain.from_iterable(itertools.repeat(port, 2) for port in range(29_000, 30_000)))
    monkeypatch.setattr(random, "randrange", lambda *_: next(numbers))
    ports = [free_port() for _ in range(10)]
    assert len(set(ports)) == 10


def test_no_port_is_given_to_two_processes() -> None:
    one, other = free_port(), 30_000
    command = [sys.executable, "-c", _TAKE_ONE_OF_TWO, str(one), str(other)]
    assert subprocess.check_output(command, cwd=_ROOT, text=True) == f"{other}\n"
