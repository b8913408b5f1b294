"""Sizes at which a few hundred images fill many blocks of the search index."""

SMALL_BLOCKS = {"BLOCK_BITS": 6, "RUN_BITS": 3}
"""64 ids a block, 8 a run: by the names of the constants in `postings`."""
