"""A program that seals the index of the database of a URL in small steps, until it is killed or nothing is left."""

from __future__ import annotations

import sys
from contextlib import closing

from pixyproxy.data.search import postings
from pixyproxy.service import indexer
from tests.contract.databases import open_database
from tests.contract.small_blocks import SMALL_BLOCKS

if __name__ == "__main__":
    for name, bits in SMALL_BLOCKS.items():
        setattr(postings, name, bits)
    indexer._IMAGES_A_STEP = 7
    with closing(open_database(sys.argv[1])) as database:
        while indexer.take_step(database):
            pass
