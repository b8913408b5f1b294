"""Limits with which a few hundred images fill many blocks of the search index, and a search takes all its steps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from pixyproxy.data.search.limits import SearchLimits
from pixyproxy.data.search.postings import BlockLayout
from tests.contract import records

LAYOUT = BlockLayout(block_bits=6, run_bits=3)
"""64 ids a block, 8 a run."""
LIMITS = SearchLimits(first_blocks=1, block_growth=2, most_blocks=3, most_terms=2, layout=LAYOUT)
TIGHT_LIMITS = replace(LIMITS, page_work=40, image_work=10)
"""Limits with which nearly every search spends its budget, and every prefix of many letters is too common."""

get_page = partial(records.get_page, limits=LIMITS)
walk = partial(records.walk, limits=LIMITS)
