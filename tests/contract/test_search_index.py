"""What the search index must hold through sealing, changes and deletions, on every database.

Blocks are small, so that a few hundred images fill many: 64 ids a block, 8 a run, and a posting list of more than one
image is a bitmap.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from pixyproxy.core.fields import MAX_PROMPT_LENGTH, UserClass, Visibility
from pixyproxy.core.models import Caller, Image, ImageFilter, PagePosition
from pixyproxy.core.search_terms import MAX_TERM_LENGTH
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.search.index import SearchIndexRepository
from pixyproxy.data.search.limits import SearchBudget
from pixyproxy.data.search.posting_store import Found, PostingRepository, as_text
from pixyproxy.data.search.postings import offsets
from pixyproxy.data.search.query import ImageSearch
from pixyproxy.data.transactions import in_transaction
from tests.contract.databases import KINDS
from tests.contract.page_model import expected_images
from tests.contract.records import add_caller, add_image, add_images, minutes
from tests.contract.small_blocks import LAYOUT, LIMITS, TIGHT_LIMITS, get_page, walk
from tests.contract.test_images_pages import FILENAMES, TAGS, USERNAMES, random_filter, random_images

PUBLIC = Visibility.PUBLIC


@pytest.fixture
def ann(database: Database) -> Caller:
    return add_caller(database, "ann")


def seal(database: Database, count: int = 1_000_000) -> None:
    """Seal the images with the lowest ids in the tail."""
    with database.reading() as context:
        ids = list(SearchIndexRepository(context).get_unsealed(count))
    if ids:
        seal_ids(database, ids)


def seal_ids(database: Database, ids: list[int]) -> None:
    in_transaction(database, lambda context: SearchIndexRepository(context, LAYOUT).seal(ids))


def rows_of(database: Database, sql: str) -> list[dict[str, Any]]:
    with database.reading() as context:
        return context.fetch_all(sql, {})


def sealed_terms(database: Database) -> dict[int, set[str]]:
    """Return the terms that the blocks have each image under."""
    found = [
        (row["block"], as_text(row["term"]), LAYOUT.decode(row["posting"]))
        for row in rows_of(database, "SELECT block, term, posting FROM image_postings WHERE term > ''")
    ]
    terms: dict[int, set[str]] = {}
    for block, term, posting in found:
        for offset in offsets(posting):
            terms.setdefault(LAYOUT.first_id(block) + offset, set()).add(term)
    return terms


def change(database: Database, image: Image, **values: Any) -> Image:
    changed = image.model_copy(update=values)

    with database.transaction() as context:
        ImageRepository(context).update(changed)
        context.commit()
    return changed


def delete(database: Database, image: Image) -> None:
    with database.transaction() as context:
        ImageRepository(context).delete(image.id)
        context.commit()


def guids(images: list[Image]) -> list[str]:
    return [image.guid for image in images]


@pytest.mark.parametrize(("migrated", "seed"), [*zip(KINDS, (1, 2, 3), strict=True)], indirect=["migrated"])
def test_pages_are_those_of_the_model_whatever_is_sealed(database: Database, seed: int) -> None:
    randomness = random.Random(seed)
    authors = [add_caller(database, username) for username in USERNAMES]
    callers: list[Caller | None] = [None, add_caller(database, "root", UserClass.ADMIN), *authors]
    images: dict[int, Image] = {}
    found = 0
    searched: set[str] = set()

    for number in range(12):
        rows = random_images(randomness, 40)
        for row in rows:
            # Clocks of several servers, of which one is wrong and now and then an image comes late.
            late = randomness.choice((0, 0, 0, -0.2, 0.3, -30))
            row["created_at"] = minutes(number + late) + timedelta(microseconds=randomness.randint(0, 3))
        images |= {image.id: image for image in add_images(database, randomness.choice(authors), rows)}
        for image in randomness.sample(list(images.values()), 6):
            images[image.id] = change(
                database,
                image,
                filename=randomness.choice(FILENAMES),
                tags=tuple(randomness.sample(TAGS, 2)),
                visibility=randomness.choice(tuple(Visibility)),
            )
        for image in randomness.sample(list(images.values()), 3):
            delete(database, images.pop(image.id))
        # All, none or some; now and then images of a block that is sealed already come late.
        seal(database, randomness.choice((0, 15, 50, 100, 1_000)))
        searched |= {
            table for table in ("image_tail", "image_postings") if rows_of(database, f"SELECT 1 FROM {table} LIMIT 1")
        }

        for _ in range(12):
            image_filter = random_filter(randomness, list(images.values()))
            caller = randomness.choice(callers)
            limit, limits = randomness.choice((3, 19, 200)), (LIMITS, TIGHT_LIMITS)[number % 2]
            pages = walk(database, image_filter, caller, limit=limit, limits=limits)
            expected = expected_images(images.values(), image_filter, caller)
            assert guids(pages) == guids(expected), (image_filter, caller)
            assert pages == expected
            found += bool(expected)

    assert found > 70  # Most of the filters found something, or nothing would be compared.
    assert len(rows_of(database, "SELECT block FROM image_blocks")) > 5
    assert searched == {"image_tail", "image_postings"}


def test_blocks_hold_the_terms_of_today_and_no_others(database: Database, ann: Caller) -> None:
    kept = add_image(database, ann, prompt="red foxes", filename="ab.c", tags=("x",))
    changed = add_image(database, ann, prompt="red foxes", filename="ab.c", tags=("x",))
    deleted = add_image(database, ann, prompt="red foxes", filename="ab.c", tags=("x",))
    seal(database)

    changed = change(database, changed, tags=("y",), filename="abd")
    changed = change(database, changed, tags=("z",), visibility=PUBLIC)
    delete(database, deleted)
    seal(database)

    terms = sealed_terms(database)
    words = {"wred", "wfoxes", "pr", "pre", "pred", "pf", "pfo", "pfox", "pfoxe", f"a{ann.user_id}"}
    assert {image_id: terms[image_id] for image_id in terms if image_id <= deleted.id} == {
        kept.id: words | {"tx", "v1", "fa", "fb", "f.", "fc", "fab", "fb.", "f.c", "fab.", "fb.c"},
        changed.id: words | {"tz", "v2", "fa", "fb", "fd", "fab", "fbd", "fabd"},
    }
    assert rows_of(database, "SELECT * FROM image_tail") == []


def test_an_image_changed_and_deleted_before_it_is_sealed_again_leaves_nothing(database: Database, ann: Caller) -> None:
    image = add_image(database, ann, tags=("a",))
    never_sealed = add_image(database, ann)
    seal(database, 1)

    delete(database, change(database, image, tags=("b",)))
    delete(database, change(database, never_sealed, tags=("b",)))
    seal(database)

    assert sealed_terms(database) == {}
    assert rows_of(database, "SELECT * FROM image_tail") == []


def test_a_sealing_that_is_cut_off_changes_nothing(database: Database, ann: Caller) -> None:
    images = add_images(database, ann, [{"created_at": minutes(number)} for number in range(100)])
    before = [rows_of(database, f"SELECT * FROM {table}") for table in ("image_tail", "image_blocks")]

    with database.transaction() as context:  # And never committed.
        SearchIndexRepository(context, LAYOUT).seal([image.id for image in images])

    assert [rows_of(database, f"SELECT * FROM {table}") for table in ("image_tail", "image_blocks")] == before
    assert sealed_terms(database) == {}
    assert get_page(database, ImageFilter(prompt="fox"), ann) == images[::-1]


def test_images_that_were_sealed_meanwhile_are_left_as_they_are(database: Database, ann: Caller) -> None:
    images = add_images(database, ann, [{} for _ in range(10)])
    ids = [image.id for image in images]
    for _ in range(2):
        seal_ids(database, ids)

    assert sealed_terms(database).keys() == set(ids)
    assert get_page(database, ImageFilter(prompt="fox"), ann) == images[::-1]


def test_an_id_that_is_committed_late_is_found_in_a_sealed_block(database: Database, ann: Caller) -> None:
    images = add_images(database, ann, [{} for _ in range(5)])
    # As if the others had not been committed yet: the last is sealed before them.
    seal_ids(database, [images[4].id])
    assert get_page(database, ImageFilter(prompt="fox"), ann) == images[::-1]

    seal(database)

    assert get_page(database, ImageFilter(prompt="fox"), ann) == images[::-1]


@pytest.mark.parametrize("has_merged_some", [False, True])
def test_images_that_the_first_release_has_sealed_into_batches_are_found_again(
    database: Database, ann: Caller, has_merged_some: bool
) -> None:
    images = add_images(database, ann, [{"created_at": minutes(number)} for number in range(100)])
    seal(database, 80)
    changed = change(database, images[3], tags=("new",))
    delete(database, images[5])
    block = LAYOUT.block_of(images[0].id)
    # Its images were in batches alone, of which this release cannot read any.
    with database.transaction() as context:
        gone = "" if has_merged_some is False else "AND term < 'v'"
        context.execute(f"DELETE FROM image_postings WHERE block = :block {gone}", {"block": block})
        context.execute(
            "INSERT INTO image_batches (block, bucket, batch, postings) VALUES (:block, 1, 0, '?')", {"block": block}
        )
        context.execute("UPDATE image_blocks SET has_batches = 1 WHERE block = :block", {"block": block})
        context.commit()
    there = {image.id: image for image in [*images, changed] if image.id != images[5].id}

    with database.reading() as context:
        assert SearchIndexRepository(context).get_batched_block() == block
    in_transaction(database, lambda context: SearchIndexRepository(context, LAYOUT).reopen(block))

    fox, new = ImageFilter(prompt="fox"), ImageFilter(tags=("new",))
    for _ in range(2):
        assert get_page(database, fox, ann, limit=1_000) == expected_images(there.values(), fox, ann)
        assert get_page(database, new, ann) == [changed]
        seal(database)
    with database.reading() as context:
        assert SearchIndexRepository(context).get_batched_block() is None
    assert rows_of(database, "SELECT * FROM image_batches") == []
    assert sealed_terms(database).keys() >= there.keys()


@pytest.mark.parametrize("migrated", ["mariadb"], indirect=True)
def test_images_with_long_prompts_are_moved_back_in_statements_that_the_server_takes(
    database: Database, ann: Caller
) -> None:
    """MariaDB takes 16 MiB by default. No prompt has longer terms: its pairs are all different, of eight bytes each."""
    prompt = "".join(map(chr, range(0x20000, 0x20000 + MAX_PROMPT_LENGTH)))
    # Of two blocks, one is full.
    images = add_images(database, ann, [{} for _ in range(2 * LAYOUT.first_id(1))])
    seal(database)
    with database.transaction() as context:
        context.execute("UPDATE images SET prompt = :prompt", {"prompt": prompt})
        context.commit()

    block = LAYOUT.block_of(images[0].id) + 1
    in_transaction(database, lambda context: SearchIndexRepository(context, LAYOUT).reopen(block))

    (tail,) = rows_of(database, "SELECT COUNT(*) AS images, SUM(LENGTH(terms)) AS size FROM image_tail")
    moved = [image for image in images if LAYOUT.block_of(image.id) == block]
    assert tail["images"] == len(moved)
    assert tail["size"] == len(moved) * (MAX_PROMPT_LENGTH * len("w𠀀𠀁\n".encode()) - 3)


def test_sealing_adding_changing_and_searching_at_once_loses_nothing(database: Database, ann: Caller) -> None:
    everyone = ImageFilter(prompt="fox")
    first = add_images(database, ann, [{"created_at": minutes(number)} for number in range(60)])
    done = threading.Event()

    def seal_always() -> None:
        while not done.is_set():
            seal(database, 7)

    def add_more() -> list[Image]:
        return [add_image(database, ann, created_at=minutes(100 + number), tags=("new",)) for number in range(40)]

    def change_some() -> list[Image]:
        return [
            in_transaction(database, lambda context, image=image: _changed(context, database, image))  # type: ignore[misc]
            for image in first[::3]
        ]

    def search() -> None:
        while not done.is_set():
            page = get_page(database, everyone, ann)
            assert {image.id for image in first} <= {image.id for image in page}

    with ThreadPoolExecutor(6) as threads:
        endless = [threads.submit(seal_always), threads.submit(seal_always), threads.submit(search)]
        writers = [threads.submit(add_more), threads.submit(change_some)]
        try:
            added, changed = (writer.result(timeout=120) for writer in writers)
        finally:
            done.set()
        for thread in endless:
            thread.result(timeout=120)

    images = {image.id: image for image in [*first, *added, *changed]}
    for _ in range(2):
        assert get_page(database, everyone, ann) == expected_images(images.values(), everyone, ann)
        tagged = ImageFilter(tags=("changed",), filename="other")
        assert get_page(database, tagged, ann) == expected_images(images.values(), tagged, ann)
        seal(database)
    assert rows_of(database, "SELECT * FROM image_tail") == []
    assert sealed_terms(database).keys() == images.keys()


def _changed(context: Any, database: Database, image: Image) -> Image:
    repository = ImageRepository(context)
    repository.lock(image.guid)
    changed = repository.get_any(image.guid).model_copy(update={"tags": ("changed",), "filename": "other.png"})
    repository.update(changed)
    return changed


def test_an_image_that_is_deleted_while_its_page_is_read_shortens_no_page(
    database: Database, ann: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = add_images(database, ann, [{"created_at": minutes(number)} for number in range(20)])
    seal(database)
    search = ImageSearch.find

    def then_delete(self: ImageSearch) -> tuple[list[int], PagePosition | None]:
        found, end = search(self)
        if images[-1].id in found:
            delete(database, images[-1])
        return found, end

    monkeypatch.setattr(ImageSearch, "find", then_delete)

    assert get_page(database, ImageFilter(prompt="fox"), ann, limit=10) == images[-2:-12:-1]


def test_a_page_reads_no_more_blocks_than_it_takes(
    database: Database, ann: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = add_images(database, ann, [{"created_at": minutes(number)} for number in range(640)])
    seal(database)
    read: set[int] = set()
    find = PostingRepository.find

    def recording(self: PostingRepository, blocks: Collection[int], *others: Any) -> Found:
        read.update(blocks)
        return find(self, blocks, *others)

    monkeypatch.setattr(PostingRepository, "find", recording)
    fox = ImageFilter(prompt="fox")

    assert get_page(database, fox, ann, limit=5) == images[:-6:-1]
    assert 1 <= len(read) <= 3  # of ten, because the first may have too few
    read.clear()
    assert get_page(database, fox, ann, limit=5, after=images[300]) == images[299:294:-1]
    assert 1 <= len(read) <= 3  # of ten, because the first may have too few
    read.clear()
    assert get_page(database, ImageFilter(prompt="fox", created_before=minutes(2)), ann) == images[1::-1]
    assert 1 <= len(read) <= 3  # of ten, because the first may have too few


@pytest.mark.parametrize(
    "query", ["f", "fo", "fox", "foxg", "foxglove", "雪", "雪山", "山", "หิ", "หิม", "🦊", "x" * MAX_TERM_LENGTH]
)
def test_every_length_of_a_prefix_is_found_in_blocks(database: Database, ann: Caller, query: str) -> None:
    prompt = "foxglove 雪山 หิมะ 🦊 " + "x" * 100
    images = add_images(database, ann, [{"prompt": prompt}, {"prompt": "nothing like it 川 น"}, {"prompt": prompt}])
    seal(database)

    assert get_page(database, ImageFilter(prompt=query), ann) == [images[2], images[0]]


def test_a_filename_of_many_grams_is_looked_up_exactly(database: Database, ann: Caller) -> None:
    text = "".join(chr(0x4E00 + number) for number in range(200))
    whole = add_image(database, ann, filename=text)
    add_image(database, ann, filename=text[:100] + "-" + text[100:])
    seal(database)

    assert get_page(database, ImageFilter(filename=text[10:190]), ann) == [whole]


def test_a_page_goes_on_behind_a_position_in_the_midst_of_equal_times(database: Database, ann: Caller) -> None:
    images = add_images(database, ann, [{} for _ in range(200)])
    seal(database, 150)

    with database.reading() as context:
        for place in (0, 3, 63, 64, 100, 149, 150, 199):
            position = PagePosition(images[place].created_at, images[place].id)
            search = ImageSearch(
                context,
                ImageFilter(prompt="fox"),
                ann,
                limit=500,
                after=position,
                limits=LIMITS,
                budget=SearchBudget.of(LIMITS),
            )
            assert search.find() == ([image.id for image in images[:place]][::-1], None)
