"""A program that upgrades the database of a URL once a line comes in, and prints what it ran."""

from __future__ import annotations

import sys
from contextlib import closing

from pixyproxy.data.init import upgrade
from tests.contract.databases import open_database

if __name__ == "__main__":
    with closing(open_database(sys.argv[1])) as database:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        sys.stdout.write(f"{upgrade(database)}\n")
