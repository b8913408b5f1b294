from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pixyproxy.data.search import postings
from pixyproxy.data.search.postings import Posting

repeatable = settings(derandomize=True, deadline=None, max_examples=200)
_SIZE = 1 << postings.BLOCK_BITS
_MOST_IN_A_LIST = _SIZE // 64

FEW = st.frozensets(st.integers(0, _SIZE - 1), max_size=20)
# Around the number where a list becomes bits, and many.
MANY = st.builds(
    lambda start, count, step: frozenset(range(start, min(_SIZE, start + count * step), step)),
    st.integers(0, 63),
    st.sampled_from([_MOST_IN_A_LIST - 1, _MOST_IN_A_LIST, _MOST_IN_A_LIST + 1, 3_000]),
    st.integers(1, 7),
)
OFFSETS = FEW | MANY


def stored(offsets: frozenset[int]) -> Posting:
    return postings.decoded(postings.encoded(offsets))


def read(posting: Posting) -> set[int]:
    return set(postings.offsets(posting))


@repeatable
@given(OFFSETS)
def test_what_is_written_is_read_again(offsets: frozenset[int]) -> None:
    data = postings.encoded(offsets)

    assert read(postings.decoded(data)) == offsets
    assert len(data) == (2 * len(offsets) if len(offsets) <= _MOST_IN_A_LIST else _SIZE // 8)
    assert postings.encoded(postings.decoded(data)) == data


@repeatable
@given(st.lists(OFFSETS, min_size=1, max_size=4))
def test_unions_and_intersections_are_those_of_sets(several: list[frozenset[int]]) -> None:
    every = [stored(offsets) for offsets in several]

    assert read(postings.union(every)) == frozenset().union(*several)
    assert read(postings.intersection(every)) == several[0].intersection(*several[1:])


@repeatable
@given(OFFSETS, OFFSETS)
def test_what_is_taken_away_is_gone(before: frozenset[int], removed: frozenset[int]) -> None:
    after = postings.without(stored(before), removed)

    assert read(after) == before - removed
    assert (postings.encoded(after) == b"") == (not after)


@repeatable
@given(OFFSETS)
def test_runs_hold_what_the_posting_holds(offsets: frozenset[int]) -> None:
    posting = stored(offsets)
    runs = {run: postings.offsets_in_run(posting, run) for run in postings.runs_of(posting)}

    assert {offset for some in runs.values() for offset in some} == offsets
    assert all(postings.run_of(offset) == run for run, some in runs.items() for offset in some)
    assert all(runs.values())
