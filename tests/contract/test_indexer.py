"""What the indexer must do on every database: alone, with others, and killed at any moment."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pixyproxy.core.models import Caller, Image, ImageFilter
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.server_values import ServerValueRepository
from pixyproxy.data.search.index import SearchIndexRepository
from pixyproxy.data.shared_lease import SharedLease
from pixyproxy.service.indexer import SealingStep, seal_all, search_indexer, take_step
from tests.contract.records import add_caller, add_images, minutes
from tests.contract.small_blocks import LAYOUT, get_page
from tests.contract.test_search_index import rows_of, sealed_terms
from tests.support.processes import start_process
from tests.support.servers import environment
from tests.support.waiting import wait_until

FOX = ImageFilter(prompt="fox", filename="red")
PROJECT = Path(__file__).parents[2]
STEP = SealingStep(images=10, size=2**20, layout=LAYOUT)
LARGE_STEP = SealingStep(images=80, size=2**24, layout=LAYOUT)
_TIMEOUT = 120.0


@pytest.fixture
def ann(database: Database) -> Caller:
    return add_caller(database, "ann")


def tail_of(database: Database) -> list[int]:
    return [row["image_id"] for row in rows_of(database, "SELECT image_id FROM image_tail ORDER BY image_id")]


def add(database: Database, ann: Caller, count: int, **values: Any) -> list[Image]:
    return add_images(database, ann, [{"created_at": minutes(number), **values} for number in range(count)])


@pytest.fixture
def images(database: Database, ann: Caller) -> list[Image]:
    """Enough for some full blocks, and some that wait."""
    return add(database, ann, 205)


def check_all_found(database: Database, ann: Caller, images: list[Image]) -> None:
    assert get_page(database, FOX, ann, limit=1_000) == images[::-1]


def test_a_short_tail_is_left_alone(database: Database, ann: Caller) -> None:
    images = add(database, ann, 9)

    assert not take_step(database, STEP)

    assert tail_of(database) == [image.id for image in images]
    check_all_found(database, ann, images)


def test_steps_seal_the_oldest(database: Database, ann: Caller, images: list[Image]) -> None:
    steps = 0
    while take_step(database, STEP):
        steps += 1
        check_all_found(database, ann, images)

    tail = tail_of(database)
    assert len(tail) < 10
    assert tail == [image.id for image in images[len(images) - len(tail) :]]
    assert steps == 20


def test_batches_of_the_first_release_are_sealed_anew(database: Database, ann: Caller, images: list[Image]) -> None:
    seal_all(database, lambda done, count: None, LARGE_STEP)
    block = LAYOUT.block_of(images[0].id)
    with database.transaction() as context:
        context.execute("DELETE FROM image_postings WHERE block = :block", {"block": block})
        context.execute("UPDATE image_blocks SET has_batches = 1 WHERE block = :block", {"block": block})
        context.commit()

    while take_step(database, STEP):
        pass

    check_all_found(database, ann, images)
    assert len(tail_of(database)) < 10


def test_a_tail_of_long_prompts_is_sealed_early(database: Database, ann: Caller) -> None:
    long = " ".join(f"fox{number}" for number in range(200))
    images = add(database, ann, 3, prompt=f"fox {long}")

    assert take_step(database, replace(STEP, size=1_000))

    assert tail_of(database) == [image.id for image in images[1:]]
    check_all_found(database, ann, images)


def test_everything_can_be_sealed_at_once(database: Database, ann: Caller, images: list[Image]) -> None:
    reports: list[tuple[int, int]] = []

    seal_all(database, lambda done, count: reports.append((done, count)), LARGE_STEP)

    assert reports == [(80, 205), (160, 205), (205, 205)]
    assert tail_of(database) == []
    check_all_found(database, ann, images)
    seal_all(database, lambda done, count: pytest.fail("there was nothing left"), LARGE_STEP)


def test_sealing_everything_waits_for_another_who_seals(
    database: Database, ann: Caller, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    other_name = "search_index_lease"
    other = SharedLease(database, other_name, timedelta(minutes=1))
    assert other.take()
    waits = 0

    def seal_meanwhile(_: float) -> None:
        nonlocal waits
        waits += 1
        assert len(tail_of(database)) == len(images)
        if waits == 3:
            while take_step(database, STEP, other):
                pass
            with database.transaction() as context:
                ServerValueRepository(context).set(other_name, "other 2026-01-01T00:00:00+00:00")
                context.commit()

    monkeypatch.setattr("pixyproxy.service.indexer.time.sleep", seal_meanwhile)
    seal_all(database, lambda done, count: None, LARGE_STEP)

    assert (waits, tail_of(database)) == (3, [])
    check_all_found(database, ann, images)


def test_several_indexers_share_the_work(database: Database, ann: Caller, images: list[Image]) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(closing(search_indexer(database, step=STEP))).start()
        wait_until(lambda: len(tail_of(database)) < 10, _TIMEOUT, "the tail to be sealed")
        check_all_found(database, ann, images)

    while take_step(database, STEP):
        pass
    tail = tail_of(database)
    assert sealed_terms(database).keys() == {image.id for image in images} - {*tail}
    assert len({frozenset(terms) for terms in sealed_terms(database).values()}) == 1
    check_all_found(database, ann, images)


def test_an_indexer_goes_on_after_an_error(
    database: Database, ann: Caller, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    get_unsealed = SearchIndexRepository.get_unsealed
    failures: Iterator[None] = iter([None, None])

    def fail_at_first(self: SearchIndexRepository, limit: int) -> Any:
        for _ in failures:
            raise RuntimeError
        return get_unsealed(self, limit)

    monkeypatch.setattr(SearchIndexRepository, "get_unsealed", fail_at_first)
    with closing(search_indexer(database, interval=0.01, step=STEP)) as searching:
        searching.start()
        wait_until(lambda: len(tail_of(database)) < 10, _TIMEOUT, "the tail to be sealed")

    check_all_found(database, ann, images)


def test_an_indexer_that_is_killed_at_any_moment_loses_nothing(
    database: Database, database_url: str, ann: Caller, images: list[Image], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.contract.seal_in_process", database_url]
    for waiting in (180, 120, 60, 6):
        with (tmp_path / "log").open("wb") as log:
            process = start_process(command, env=environment(tmp_path), cwd=PROJECT, stdout=log, stderr=log)
        try:
            # The next step has begun, or is about to.
            wait_until(lambda left=waiting: len(tail_of(database)) <= left, _TIMEOUT, "some to be sealed")  # type: ignore[misc]
        finally:
            process.kill()
            process.wait()
        check_all_found(database, ann, images)

    seal_all(database, lambda done, count: None, LARGE_STEP)
    check_all_found(database, ann, images)
    assert tail_of(database) == []
    assert sealed_terms(database).keys() == {image.id for image in images}
