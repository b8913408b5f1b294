from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pixyproxy.data.search.postings import DEFAULT_LAYOUT, Posting, difference, intersection, offsets, union

repeatable = settings(derandomize=True, deadline=None, max_examples=200)
_SIZE = 1 << DEFAULT_LAYOUT.block_bits
_MOST_IN_A_SET = _SIZE // 64

FEW = st.frozensets(st.integers(0, _SIZE - 1), max_size=20)
# Around the number where a set becomes a bitmap, and many.
MANY = st.builds(
    lambda start, count, step: frozenset(range(start, min(_SIZE, start + count * step), step)),
    st.integers(0, 63),
    st.sampled_from([_MOST_IN_A_SET - 1, _MOST_IN_A_SET, _MOST_IN_A_SET + 1, 3_000]),
    st.integers(1, 7),
)
OFFSETS = FEW | MANY


def stored(values: frozenset[int]) -> Posting:
    return DEFAULT_LAYOUT.decode(DEFAULT_LAYOUT.encode(values))


def read(posting: Posting) -> set[int]:
    return set(offsets(posting))


@repeatable
@given(OFFSETS)
def test_what_is_encoded_is_decoded_again(values: frozenset[int]) -> None:
    data = DEFAULT_LAYOUT.encode(values)

    assert read(DEFAULT_LAYOUT.decode(data)) == values
    assert len(data) == (2 * len(values) if len(values) <= _MOST_IN_A_SET else _SIZE // 8)
    assert DEFAULT_LAYOUT.encode(DEFAULT_LAYOUT.decode(data)) == data


@repeatable
@given(st.lists(OFFSETS, min_size=1, max_size=4))
def test_unions_and_intersections_are_those_of_sets(several: list[frozenset[int]]) -> None:
    every = [stored(values) for values in several]

    assert read(union(every)) == frozenset().union(*several)
    assert read(intersection(every)) == several[0].intersection(*several[1:])


@repeatable
@given(OFFSETS, OFFSETS)
def test_what_is_taken_away_is_gone(before: frozenset[int], removed: frozenset[int]) -> None:
    after = difference(stored(before), removed)

    assert read(after) == before - removed
    assert (DEFAULT_LAYOUT.encode(after) == b"") == (not after)


@repeatable
@given(OFFSETS)
def test_runs_hold_what_the_posting_holds(values: frozenset[int]) -> None:
    posting = stored(values)
    runs = {run: DEFAULT_LAYOUT.offsets_in_run(posting, run) for run in DEFAULT_LAYOUT.runs_of(posting)}

    assert {offset for some in runs.values() for offset in some} == values
    assert all(DEFAULT_LAYOUT.run_of(offset) == run for run, some in runs.items() for offset in some)
    assert all(runs.values())
