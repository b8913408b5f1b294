"""Takes turns from a process of its own, from when it is told to until it has to wait; prints how many it had."""

from __future__ import annotations

import sys
from contextlib import closing

from pixyproxy.service.provider_turns import ProviderTurns
from tests.contract.databases import open_database

with closing(open_database(sys.argv[1])) as database:
    turns = ProviderTurns(database, int(sys.argv[2]))
    turns.wait_for(0)
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    taken = 0
    while turns.take() == 0:
        taken += 1
    print(taken)  # noqa: T201
