"""What a page may cost whatever is searched for, on every database: rows, counted, of which posting lists weigh more.

The queries are made by an adversary that reads the index: parts of filenames whose grams all occur in many images and
which no filename has, common terms that hardly ever meet, prefixes of many words, and what other callers hide.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pixyproxy.core.fields import Visibility
from pixyproxy.core.models import Caller, Image, ImageFilter, PagePosition
from pixyproxy.data.database import Database, DatabaseContext, Parameters, Row
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.search import query
from pixyproxy.data.search.limits import SearchLimits
from pixyproxy.data.search.terms import text_terms
from tests.contract.page_model import expected_images
from tests.contract.records import add_caller, add_images, detail_of, minutes
from tests.contract.small_blocks import LIMITS
from tests.contract.test_search_index import seal, sealed_terms

_IMAGES = 960
_WORDS = ("castle", "moon", "river", "harbour", "lantern")
_PARTS = ("never", "heron", "erone", "onev", "evero", "verone")
_LIMIT = 10
_BOUNDED = replace(LIMITS, page_work=250, image_work=50, most_images=32)
_UNBOUNDED = replace(LIMITS, page_work=10**9, most_images=10**6)
_POSTING_WORK = 8
_MOST_TERMS = 16  # of a query of the adversary
# The blocks, the work of the searches, with one block's posting lists and two runs beyond it, and the page itself.
_MOST_WORK = _IMAGES // 64 + 1 + 250 + _POSTING_WORK * _MOST_TERMS + 2 * 8 + 2 * _LIMIT


class _CountingContext:
    """A context that counts the work of a search: the rows that it fetches, and the images that it looks up by id."""

    def __init__(self, context: DatabaseContext) -> None:
        self._context = context
        self.work = 0

    def fetch_all(self, sql: str, parameters: Parameters) -> list[Row]:
        rows = self._context.fetch_all(sql, parameters)
        ids = re.search(r"images\.id IN \(([0-9, ]+)\)", sql)
        weight = _POSTING_WORK if "image_postings" in sql else 1
        self.work += weight * max(len(rows), ids[1].count(",") + 1 if ids else 0)
        return rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _pages(
    database: Database, image_filter: ImageFilter, caller: Caller | None, limits: SearchLimits
) -> Iterator[tuple[list[Image], int]]:
    """Yield all pages, each with the work that it took."""
    after: PagePosition | None = None
    while True:
        with database.reading() as context:
            counting = _CountingContext(context)
            images, end = ImageRepository(counting, limits).get_page(  # type: ignore[arg-type]
                image_filter, caller, limit=_LIMIT, after=after
            )
        yield images, counting.work
        if end is None and len(images) < _LIMIT:
            return
        previous, after = after, end or PagePosition(images[-1].created_at, images[-1].id)
        assert previous is None or (after.created_at, after.id) < (previous.created_at, previous.id)


def _fill(database: Database, authors: list[Caller]) -> list[Image]:
    """Add images that have much in common and little together."""
    randomness = random.Random(20261122)
    rows = [
        {
            "prompt": f"{' '.join(randomness.sample(_WORDS, len(_WORDS) - 1))} photo{number:04}",
            "filename": "-".join(randomness.sample(_PARTS, len(_PARTS) - 1)),
            "tags": (f"half {number % 2}", f"third {number % 3}", "all"),
            "visibility": Visibility.PRIVATE if number % 8 else Visibility.PUBLIC,
            "created_at": minutes(number),
        }
        for number in range(_IMAGES)
    ]
    with database.transaction() as context:
        repository = ImageRepository(context)
        images = [
            repository.insert(detail_of(author, **row), author.user_id)
            for row, author in zip(rows, itertools.cycle(authors), strict=False)
        ]
        context.commit()
    return images


def _unmatched_filenames(images: list[Image], terms: dict[int, set[str]]) -> Iterator[str]:
    """Yield texts of common grams, each of which overlaps the one before, that no filename contains."""
    common = [
        gram
        for gram in {term[1:] for each in terms.values() for term in each if term[0] == "f" and len(term) == 4}
        if sum(f"f{gram}" in each for each in terms.values()) > _IMAGES // 2
    ]
    followers = {gram: sorted(other for other in common if other[:2] == gram[1:]) for gram in common}
    walks = sorted(common)
    for _ in range(8):
        walks = [walk + other[2] for walk in walks for other in followers[walk[-3:]]][:2_000]
    missing = [walk for walk in walks if all(walk not in image.filename for image in images)]
    yield from missing[:: max(1, len(missing) // 5)]


def _queries(images: list[Image], terms: dict[int, set[str]]) -> Iterator[ImageFilter]:
    filenames = ["neveronever", *_unmatched_filenames(images, terms)]
    assert len(filenames) > 3
    yield from (ImageFilter(filename=filename) for filename in filenames)
    yield ImageFilter(filename=filenames[0], tags=("all", "half 0"), created_before=minutes(_IMAGES // 2))
    yield ImageFilter(prompt=" ".join(_WORDS) + " ")
    yield ImageFilter(prompt=" ".join(_WORDS[1:]), tags=("all", "half 0", "half 1"))
    yield ImageFilter(prompt=" ".join(_WORDS[1:]), tags=("half 1", "third 0"), filename="never-heron")
    yield ImageFilter(tags=("third 0", "third 1"))
    yield from (ImageFilter(prompt=prompt, tags=("half 0", "half 1")) for prompt in ("photo", "photo0", "c"))
    yield ImageFilter(prompt="castle photo", filename=filenames[1])
    yield ImageFilter(author="bob", visibility=Visibility.PRIVATE, tags=("all",))
    yield ImageFilter(author="bob", tags=("half 0",))  # Ann's alone.


def test_no_page_is_expensive_and_none_is_lost(database: Database) -> None:
    ann, bob = add_caller(database, "ann"), add_caller(database, "bob")
    images = _fill(database, [ann, bob])
    seal(database)
    dearest = 0

    for image_filter, caller in itertools.product(_queries(images, sealed_terms(database)), (None, ann)):
        pages = list(_pages(database, image_filter, caller, _BOUNDED))
        found = [image for page, _ in pages for image in page]
        assert found == expected_images(images, image_filter, caller), (image_filter, caller)
        assert max(work for _, work in pages) <= _MOST_WORK, (image_filter, caller)
        if caller is ann and image_filter.filename:
            dearest = max(dearest, next(_pages(database, image_filter, caller, _UNBOUNDED))[1])

    assert dearest > 4 * _MOST_WORK  # Without a budget, or the adversary would be none.


def test_searches_of_one_page_share_its_budget(database: Database) -> None:
    ann = add_caller(database, "ann")
    _fill(database, [ann])
    seal(database)

    with database.reading() as context:
        counting = _CountingContext(context)
        repository = ImageRepository(counting, _BOUNDED)  # type: ignore[arg-type]
        _, end = repository.get_page(ImageFilter(filename="neveronever"), ann, limit=_LIMIT, after=None)
        first = counting.work
        repository.get_page(ImageFilter(filename="neveronever"), ann, limit=_LIMIT, after=end)

    assert end is not None
    assert counting.work - first < first / 2  # One block, and one run.


def test_no_page_compares_many_long_prompts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = add_caller(database, "ann")
    # Each has words of its own that share a prefix: too many for their posting lists.
    prompts = [" ".join(f"harbour{number * 31 % 97}x{word}" for word in range(number % 50)) for number in range(120)]
    rows = [{"prompt": f"a {prompt}", "created_at": minutes(number)} for number, prompt in enumerate(prompts)]
    images = add_images(database, ann, rows)
    seal(database)
    limits = replace(_BOUNDED, page_text=3_000)
    compared = 0

    def counted(prompt: str, tags: tuple[str, ...]) -> list[str]:
        nonlocal compared
        compared += len(prompt)
        return text_terms(prompt, tags)

    monkeypatch.setattr(query, "text_terms", counted)
    for prompt in ("harbour", "harbour3", "harbour31x"):
        found, dearest, before = [], 0, compared
        for page, _ in _pages(database, ImageFilter(prompt=prompt), ann, limits):
            found += page
            dearest, before = max(dearest, compared - before), compared
        assert found == expected_images(images, ImageFilter(prompt=prompt), ann), prompt
        assert dearest <= 3_000 + max(map(len, prompts)) + len("a "), prompt
    assert compared > 0
