"""A program that seals the index of the database of a URL in small steps, until it is killed or nothing is left."""

from __future__ import annotations

import sys
from contextlib import closing

from pixyproxy.service.indexer import SealingStep, take_step
from tests.contract.databases import open_database
from tests.contract.small_blocks import LAYOUT

if __name__ == "__main__":
    step = SealingStep(images=7, size=2**20, layout=LAYOUT)
    with closing(open_database(sys.argv[1])) as database:
        while take_step(database, step):
            pass
