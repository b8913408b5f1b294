from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixyproxy.data.repositories import batches, postings
from pixyproxy.data.repositories.postings import Posting

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


@repeatable
@given(st.frozensets(st.integers(0, 511)), st.integers(0, 31))
def test_a_batch_is_a_part_of_its_block(offsets: frozenset[int], batch: int) -> None:
    text = batches.texts_of({"wfox": offsets}).get(batches.bucket_of("wfox"), "")

    posting = postings.shifted(batches.posting_of(text, "wfox"), batch << postings.BATCH_BITS)

    assert read(posting) == {(batch << postings.BATCH_BITS) + offset for offset in offsets}
    assert all(postings.batch_of(offset) == batch for offset in read(posting))


@repeatable
@given(
    st.dictionaries(
        st.text("wfoxt雪🦊 \\'%", min_size=1, max_size=6), st.frozensets(st.integers(0, 511), min_size=1), max_size=8
    )
)
def test_texts_of_many_terms_are_read_again(terms: dict[str, frozenset[int]]) -> None:
    texts = batches.texts_of(terms)

    assert {term: offsets for text in texts.values() for term, offsets in batches.all_offsets(text).items()} == terms
    for term in [*terms, "never there"]:
        text = texts.get(batches.bucket_of(term), "")
        assert read(batches.posting_of(text, term)) == terms.get(term, frozenset())
        prefix = term[:2]
        found = {
            each: read(posting) for text in texts.values() for each, posting in batches.postings_by_prefix(text, prefix)
        }
        assert found == {each: offsets for each, offsets in terms.items() if each.startswith(prefix)}


@repeatable
@given(
    st.dictionaries(
        st.integers(0, 31),
        st.dictionaries(
            st.sampled_from(["wfox", "w雪山", "tTag", "fa.b"]),
            st.frozensets(st.integers(0, 511), min_size=1) | st.just(frozenset(range(100, 164))),
        ),
    )
)
def test_batches_become_the_rows_of_their_block(in_batches: dict[int, dict[str, frozenset[int]]]) -> None:
    rows = batches.rows_of(
        (number, text) for number, terms in sorted(in_batches.items()) for text in batches.texts_of(terms).values()
    )

    expected: dict[str, set[int]] = {}
    for number, terms in in_batches.items():
        for term, offsets in terms.items():
            expected.setdefault(term, set()).update((number << postings.BATCH_BITS) + offset for offset in offsets)
    assert {term: read(postings.decoded(data)) for term, data in rows.items()} == expected


def test_terms_without_offsets_leave_no_text() -> None:
    assert batches.texts_of({"wfox": frozenset()}) == {}
    assert batches.all_offsets("") == {}


@pytest.mark.parametrize("term", ["wlight", "wlighthouse", "wlightning"])
def test_terms_with_a_long_beginning_in_common_lie_in_one_bucket(term: str) -> None:
    assert batches.bucket_of(term) == batches.bucket_of("wlight")


def test_buckets_share_the_terms() -> None:
    used = {batches.bucket_of(f"w{letter}{other}") for letter in "abcdefgh" for other in "ijklmnopqrst"}

    assert len(used) > batches.BUCKETS // 3
    assert used <= set(range(batches.BUCKETS))
