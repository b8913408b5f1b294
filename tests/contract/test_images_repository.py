"""What storing, reading, changing and deleting images must do on every database."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from typing import Any, get_args

import pytest

from pixyproxy.core.exceptions import ConstraintViolationError, ImageNotFoundError
from pixyproxy.core.fields import (
    MAX_COMPRESSION,
    MAX_INPUTS,
    MAX_MODEL_NAME_LENGTH,
    MAX_PARTIAL_IMAGES,
    Background,
    InputFidelity,
    Moderation,
    Origin,
    OutputFormat,
    Quality,
    UserClass,
    Visibility,
    new_guid,
)
from pixyproxy.core.models import Caller, GenerationOptions, Image, ImageFilter, Usage
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.users import UserRepository
from tests.contract.records import (
    add_caller,
    add_image,
    detail_of,
    get_image,
    get_page,
    minutes,
)
from tests.contract.texts import COMPOSED, DECOMPOSED, LINES, PROMPTS
from tests.support.stored_images import file_of

PRIVATE, PUBLIC = Visibility.PRIVATE, Visibility.PUBLIC


@pytest.fixture
def ann(database: Database) -> Caller:
    return add_caller(database, "ann")


def count_rows(database: Database, table: str) -> int:
    with database.reading() as context:
        row = context.fetch_one(f"SELECT COUNT(*) AS number FROM {table}", {})
    assert row is not None
    return int(row["number"])


# --- Storing and reading ---------------------------------------------------------------------------------------------


def test_images_are_found_whoever_may_see_them(database: Database, ann: Caller) -> None:
    bob = add_caller(database, "bob")
    images = [add_image(database, author, visibility=PRIVATE) for author in (ann, bob)]
    with database.reading() as context:
        found = ImageRepository(context).find_any([*(image.guid for image in images), images[0].guid, new_guid()])
    assert found == {image.guid: image for image in images}


def test_an_image_comes_back_as_it_was_inserted(database: Database, ann: Caller) -> None:
    detail = detail_of(
        ann,
        prompt="a red fox",
        filename="fox.webp",
        tags=("zebra", "ant", "Zebra"),
        visibility=PUBLIC,
        content_type="image/webp",
        size_bytes=8 * 1024**3,
        sha256="0123456789abcdef" * 4,
        width=3840,
        height=2160,
        model="gpt-image-2.6-sunburst",
        usage=Usage(
            input_tokens=11,
            output_tokens=5_000_000_000,
            total_tokens=5_000_000_011,
            input_text_tokens=11,
            input_image_tokens=0,
            output_text_tokens=2**63 - 1,
        ),
        options=GenerationOptions(model="m", size="auto", output_format="webp", output_compression=0),
        origin=Origin.EDITED,
        created_at=minutes(1),
        updated_at=minutes(2),
    )

    with database.transaction() as context:
        image = ImageRepository(context).insert(detail, ann.user_id)
        context.commit()

    assert image == Image(**dict(detail), id=image.id, author_id=ann.user_id)
    stored = get_image(database, detail.guid, ann)
    assert stored == image
    # What was read was not checked again, so that wrong types would go unnoticed.
    assert Image.model_validate(stored.model_dump(), strict=True) == image


def test_usage_may_be_missing_or_zero(database: Database, ann: Caller) -> None:
    none = add_image(database, ann, usage=None)
    zero = add_image(database, ann, usage=Usage(input_tokens=0, output_tokens=0, total_tokens=0))

    assert get_image(database, none.guid, ann).usage is None
    assert get_image(database, zero.guid, ann).usage == zero.usage


@pytest.mark.parametrize("origin", Origin)
def test_origins_come_back(database: Database, ann: Caller, origin: Origin) -> None:
    image = add_image(database, ann, origin=origin)

    assert get_image(database, image.guid, ann).origin is origin


LONGEST_OPTIONS = {
    "model": ["a", "x" * MAX_MODEL_NAME_LENGTH],
    "size": ["auto", "99999x99999"],
    "quality": get_args(Quality),
    "output_format": get_args(OutputFormat),
    "background": get_args(Background),
    "partial_images": [0, MAX_PARTIAL_IMAGES],
    "moderation": get_args(Moderation),
    "output_compression": [0, MAX_COMPRESSION],
    "input_fidelity": get_args(InputFidelity),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in LONGEST_OPTIONS.items() for value in (*values, None)]
)
def test_options_come_back_with_every_value(database: Database, ann: Caller, name: str, value: Any) -> None:
    options = GenerationOptions.model_validate({name: value})
    image = add_image(database, ann, options=options)

    stored = get_image(database, image.guid, ann)
    assert stored.options == options
    assert Image.model_validate(stored.model_dump(), strict=True) == image


def test_the_longest_options_and_all_sources_come_back(database: Database, ann: Caller) -> None:
    assert GenerationOptions.model_fields.keys() == LONGEST_OPTIONS.keys()
    longest = {name: max(values, key=lambda value: len(str(value))) for name, values in LONGEST_OPTIONS.items()}
    options = GenerationOptions.model_validate(longest | {"output_format": "jpeg", "background": "opaque"})
    sources = tuple(add_image(database, ann).guid for _ in range(MAX_INPUTS))
    image = add_image(database, ann, options=options, source_guids=sources)

    stored = get_image(database, image.guid, ann)
    assert (stored.options, stored.source_guids) == (options, sources)


def test_an_image_without_options_has_none(database: Database, ann: Caller) -> None:
    plain = add_image(database, ann)

    assert get_image(database, plain.guid, ann).options is None
    none_chosen = add_image(database, ann, options=GenerationOptions())
    assert get_image(database, none_chosen.guid, ann).options == GenerationOptions()


def test_options_that_only_a_later_release_has_are_left_out(database: Database, ann: Caller) -> None:
    image = add_image(database, ann, options=GenerationOptions(size="64x64"))
    with database.transaction() as context:
        context.execute(
            "UPDATE images SET options = :options WHERE id = :id",
            {"id": image.id, "options": json.dumps({"size": "64x64", "frame_count": 9, "quality": "finest"})},
        )
        context.commit()

    for stored in (get_image(database, image.guid, ann), *get_page(database, caller=ann)):
        assert stored.options is not None
        assert dict(stored.options) == dict(GenerationOptions(size="64x64")) | {"quality": "finest"}


# --- The images that one was made from -------------------------------------------------------------------------------


def test_sources_are_shown_in_order_to_those_who_may_see_them(database: Database, ann: Caller) -> None:
    bob, root = add_caller(database, "bob"), add_caller(database, "root", UserClass.ADMIN)
    sources = [
        add_image(database, author, visibility=visibility).guid
        for author, visibility in product((ann, bob), (PRIVATE, PUBLIC))
    ]
    own, own_public, of_bob, _ = sources
    image = add_image(database, ann, visibility=PUBLIC, origin=Origin.EDITED, source_guids=sources[::-1])

    for caller, hidden in ((ann, {of_bob}), (bob, {own}), (root, set()), (None, {own, of_bob})):
        expected = tuple(guid for guid in sources[::-1] if guid not in hidden)
        assert get_image(database, image.guid, caller).source_guids == expected
        # A list, a search, and several callers at a time, of whom each sees what it may.
        for image_filter in (ImageFilter(), ImageFilter(guid=image.guid)):
            [listed] = [found for found in get_page(database, image_filter, caller) if found.guid == image.guid]
            assert listed.source_guids == expected
    with database.reading() as context:
        several = ImageRepository(context).get_several([(image.guid, caller) for caller in (None, bob, ann, root)])
    assert [found and len(found.source_guids) for found in several] == [2, 3, 3, 4]

    with database.transaction() as context:
        repository = ImageRepository(context)
        repository.delete(repository.get(own_public, ann).id)
        context.commit()
    assert own_public not in get_image(database, image.guid, root).source_guids


def test_an_image_made_twice_from_one_source_shows_it_twice(database: Database, ann: Caller) -> None:
    source = add_image(database, ann).guid
    image = add_image(database, ann, source_guids=(source, source))

    assert get_image(database, image.guid, ann).source_guids == (source, source)


def test_changing_an_image_keeps_sources_that_its_author_may_not_see(database: Database, ann: Caller) -> None:
    bob, root = add_caller(database, "bob"), add_caller(database, "root", UserClass.ADMIN)
    hidden = add_image(database, bob)
    image = add_image(database, ann, source_guids=(hidden.guid,), options=GenerationOptions(quality="low"))
    with database.transaction() as context:
        repository = ImageRepository(context)
        repository.update(repository.get(image.guid, ann).model_copy(update={"filename": "other.png"}))
        context.commit()

    changed = get_image(database, image.guid, root)
    assert (changed.filename, changed.source_guids, changed.options) == ("other.png", (hidden.guid,), image.options)


def test_times_keep_their_microseconds_and_become_utc(database: Database, ann: Caller) -> None:
    created_at = datetime(2026, 3, 29, 2, 30, 0, 999_999, tzinfo=timezone(timedelta(hours=-7, minutes=-30)))
    image = add_image(database, ann, created_at=created_at, updated_at=created_at + timedelta(microseconds=1))

    stored = get_image(database, image.guid, ann)

    assert stored.created_at == created_at
    assert stored.created_at.tzinfo is UTC
    assert stored.updated_at - stored.created_at == timedelta(microseconds=1)


def test_ids_grow(database: Database, ann: Caller) -> None:
    ids = [add_image(database, ann).id for _ in range(3)]

    assert ids == sorted(set(ids))


@pytest.mark.parametrize("name", PROMPTS)
def test_any_text_comes_back_as_it_was_given(database: Database, ann: Caller, name: str) -> None:
    text, line = PROMPTS[name], LINES.get(name, "a line")
    filename = line.replace("/", "_").replace("\\", "_")
    tags = tuple(dict.fromkeys((line[:64], f"{line[:63]} ", f" {line[:63]}")))

    image = add_image(database, ann, prompt=text, filename=filename, tags=tags)

    stored = get_image(database, image.guid, ann)
    assert stored.prompt.encode() == text.encode()
    assert stored.filename.encode() == filename.encode()
    assert [tag.encode() for tag in stored.tags] == [tag.encode() for tag in tags]


@pytest.mark.parametrize("character", ["🦊", "𠮷", "\U0001d160", "'", "\\", '"', "%", "\U0010ffff"])
def test_the_longest_texts_come_back(database: Database, ann: Caller, character: str) -> None:
    # U+1D160 is three characters of four bytes each in the composed form that keys have.
    prompt = character * 31_990 + " the words"[-10:]
    filename = character.replace("\\", "'") * 255
    tags = tuple(f"{character * 62}{number:02}" for number in range(32))

    image = add_image(database, ann, prompt=prompt, filename=filename, tags=tags)

    stored = get_image(database, image.guid, ann)
    assert (stored.prompt, stored.filename, stored.tags) == (prompt, filename, tags)
    found = get_page(database, ImageFilter(prompt="the words", filename=filename, tags=tags), ann)
    assert [image.guid for image in found] == [image.guid]


def test_a_prompt_of_thousands_of_terms_is_found_by_each_end(database: Database, ann: Caller) -> None:
    prompt = "".join(chr(0x20000 + number) for number in range(4_000))
    image = add_image(database, ann, prompt=prompt)

    assert get_image(database, image.guid, ann).prompt == prompt
    for part in (prompt[:10], prompt[2_000:2_010], prompt[-10:], prompt[-1]):
        assert [image.guid for image in get_page(database, ImageFilter(prompt=part), ann)] == [image.guid]


def test_the_longest_words_are_found(database: Database, ann: Caller) -> None:
    word = "𝒻" * 10 + "𐐨" * 100  # The latter have case and four bytes.
    image = add_image(database, ann, prompt=f"{word} and {word.upper()}x")

    assert [image.guid for image in get_page(database, ImageFilter(prompt=f"and {word.upper()}"), ann)] == [image.guid]


@pytest.mark.parametrize(
    "tags",
    [
        ("🍎", "🍌", "🦊"),
        ("e", "é", "E", "É", "ê"),
        ("tag", "tag ", " tag", "tag  ", "tag\u00a0"),
        ("ss", "ß", "SS", "ẞ"),
        ("i", "I", "ı", "İ"),
        ("か", "カ", "ｶ", "が"),
        ("☺", "☺\ufe0f", "☺\ufe0e"),
        ("👍", "👍🏻", "👍🏿"),
        ("a", "a\u200b", "a\ufeff", "a\u00ad"),
        ("fi", "ﬁ"),
        ("'", "''", "\\'", '"', "`"),
        ("0", "00", "0.0", "0e0", "-0"),
    ],
)
def test_tags_that_look_alike_stand_beside_one_another(database: Database, ann: Caller, tags: tuple[str, ...]) -> None:
    every = add_image(database, ann, tags=tags)
    single = {tag: add_image(database, ann, tags=(tag,)) for tag in tags}

    assert get_image(database, every.guid, ann).tags == tags
    for tag in tags:
        found = {image.guid for image in get_page(database, ImageFilter(tags=(tag,)), ann)}
        assert found == {every.guid, single[tag].guid}


def test_a_tag_is_found_in_its_composed_and_decomposed_form(database: Database, ann: Caller) -> None:
    composed = add_image(database, ann, tags=(COMPOSED,))
    decomposed = add_image(database, ann, tags=(DECOMPOSED,))

    for tag in (COMPOSED, DECOMPOSED):
        found = {image.guid: image.tags for image in get_page(database, ImageFilter(tags=(tag,)), ann)}
        assert found == {composed.guid: (COMPOSED,), decomposed.guid: (DECOMPOSED,)}


def test_a_guid_is_taken_once(database: Database, ann: Caller) -> None:
    first = add_image(database, ann, prompt="the first")

    with pytest.raises(ConstraintViolationError):
        add_image(database, ann, guid=first.guid, prompt="the second")

    assert get_image(database, first.guid, ann).prompt == "the first"
    assert count_rows(database, "image_tail") == 1


def test_the_author_must_exist(database: Database, ann: Caller) -> None:
    with pytest.raises(ConstraintViolationError), database.transaction() as context:
        ImageRepository(context).insert(detail_of(ann), ann.user_id + 1)


def test_an_image_that_is_not_committed_leaves_nothing_behind(database: Database, ann: Caller) -> None:
    with database.transaction() as context:
        image = ImageRepository(context).insert(detail_of(ann, tags=("a", "b")), ann.user_id)
        assert ImageRepository(context).get(image.guid, ann) == image

    assert [count_rows(database, table) for table in ("images", "image_tail")] == [0, 0]


# --- Who may see what ------------------------------------------------------------------------------------------------


def test_who_may_see_an_image(database: Database, ann: Caller) -> None:
    bob = add_caller(database, "bob")
    admin = add_caller(database, "root", UserClass.ADMIN)
    own_private = add_image(database, ann, visibility=PRIVATE)
    own_public = add_image(database, ann, visibility=PUBLIC)
    others_private = add_image(database, bob, visibility=PRIVATE)
    others_public = add_image(database, bob, visibility=PUBLIC)
    admins_private = add_image(database, admin, visibility=PRIVATE)
    every = [own_private, own_public, others_private, others_public, admins_private]
    visible: list[tuple[Caller | None, list[Image]]] = [
        (None, [own_public, others_public]),
        (ann, [own_private, own_public, others_public]),
        (bob, [own_public, others_private, others_public]),
        (admin, every),
    ]

    for caller, expected in visible:
        for image in every:
            if image in expected:
                assert get_image(database, image.guid, caller) == image
            else:
                with pytest.raises(ImageNotFoundError) as refused:
                    get_image(database, image.guid, caller)
                assert refused.value.guid == image.guid

        newest_first = expected[::-1]
        assert get_page(database, caller=caller) == newest_first
        for visibility in Visibility:
            expected_of_it = [image for image in newest_first if image.visibility is visibility]
            assert get_page(database, ImageFilter(visibility=visibility), caller) == expected_of_it


def test_who_may_see_what_in_one_query_for_several_callers(database: Database, ann: Caller) -> None:
    bob = add_caller(database, "bob")
    admin = add_caller(database, "root", UserClass.ADMIN)
    anns, bobs = (add_image(database, author, visibility=PRIVATE) for author in (ann, bob))
    public = add_image(database, bob, visibility=PUBLIC)
    callers = (None, ann, bob, admin)
    missing = new_guid()
    wanted = [(guid, caller) for guid in (anns.guid, bobs.guid, public.guid, missing) for caller in callers]

    with database.reading() as context:
        found = ImageRepository(context).get_several(wanted)
        files = ImageRepository(context).get_files(wanted)

    assert files == [image and file_of(image) for image in found]
    assert found == [
        *(None, anns, None, anns),
        *(None, None, bobs, bobs),
        *(public, public, public, public),
        *(None, None, None, None),
    ]


def test_a_hidden_and_a_missing_image_are_refused_alike(database: Database, ann: Caller) -> None:
    hidden = add_image(database, ann, visibility=PRIVATE)

    messages = []
    for guid in (hidden.guid, new_guid()):
        with pytest.raises(ImageNotFoundError) as refused:
            get_image(database, guid, None)
        messages.append(refused.value.message)

    assert messages[0] == messages[1]


# --- Changing --------------------------------------------------------------------------------------------------------


def update(database: Database, image: Image, **values: Any) -> Image:
    changed = image.model_copy(update=values)
    with database.transaction() as context:
        ImageRepository(context).update(changed)
        context.commit()
    return changed


def test_update_stores_what_may_change_and_nothing_else(database: Database, ann: Caller) -> None:
    other = add_image(database, ann, filename="other.png", tags=("old",))
    image = add_image(database, ann, filename="before.png", tags=("old", "kept"), prompt="a red fox")
    changes = {
        "filename": "🦊 ÄFTER.png",
        "tags": ("new", "kept", "🍎"),
        "visibility": PUBLIC,
        "updated_at": minutes(5),
    }
    fixed = {
        "prompt": "never stored",
        "author": "nobody",
        "sha256": "00" * 32,
        "size_bytes": 1,
        "width": 1,
        "model": "m",
    }

    update(database, image, **changes, **fixed)

    assert get_image(database, image.guid, ann) == image.model_copy(update=changes)
    assert get_image(database, other.guid, ann) == other


def test_pages_find_an_image_by_its_new_values_only(database: Database, ann: Caller) -> None:
    image = add_image(database, ann, filename="before.png", tags=("old", "kept"), prompt="a red fox")
    changed = update(database, image, filename="ÄFTER.png", tags=("new", "kept"), visibility=PUBLIC)

    for found in (
        ImageFilter(tags=("new", "kept")),
        ImageFilter(filename="äfter"),
        ImageFilter(visibility=PUBLIC),
        ImageFilter(prompt="red fox"),
    ):
        assert get_page(database, found, ann) == [changed]
    for missed in (ImageFilter(tags=("old",)), ImageFilter(filename="before"), ImageFilter(visibility=PRIVATE)):
        assert get_page(database, missed, ann) == []


def test_update_may_change_nothing_or_remove_all_tags(database: Database, ann: Caller) -> None:
    image = add_image(database, ann, tags=("a", "b"))

    assert update(database, image) == get_image(database, image.guid, ann)

    changed = update(database, image, tags=())
    assert get_image(database, image.guid, ann) == changed
    assert get_page(database, ImageFilter(tags=("a",)), ann) == []


def test_an_update_that_is_not_committed_changes_nothing(database: Database, ann: Caller) -> None:
    image = add_image(database, ann, tags=("old",))

    with database.transaction() as context:
        ImageRepository(context).update(image.model_copy(update={"filename": "new.png", "tags": ("new",)}))

    assert get_image(database, image.guid, ann) == image
    assert get_page(database, ImageFilter(tags=("old",)), ann) == [image]


# --- Deleting --------------------------------------------------------------------------------------------------------


def test_delete_removes_the_image_and_what_it_is_found_by(database: Database, ann: Caller) -> None:
    kept = add_image(database, ann, prompt="a blue fox", tags=("a", "b"))
    rows_of_kept = [count_rows(database, table) for table in ("images", "image_tail")]
    image = add_image(database, ann, prompt="a red fox", tags=("a", "c"))

    with database.transaction() as context:
        ImageRepository(context).delete(image.id)
        context.commit()

    with pytest.raises(ImageNotFoundError):
        get_image(database, image.guid, ann)
    assert get_page(database, ImageFilter(prompt="fox", tags=("a",)), ann) == [kept]
    assert [count_rows(database, table) for table in ("images", "image_tail")] == rows_of_kept


def test_delete_of_what_is_not_there_is_no_error(database: Database, ann: Caller) -> None:
    image = add_image(database, ann)

    with database.transaction() as context:
        ImageRepository(context).delete(image.id + 1)
        context.commit()

    assert get_image(database, image.guid, ann) == image


def test_a_guid_may_be_used_again_after_delete(database: Database, ann: Caller) -> None:
    first = add_image(database, ann, prompt="the first")
    with database.transaction() as context:
        ImageRepository(context).delete(first.id)
        context.commit()

    second = add_image(database, ann, prompt="the second", guid=first.guid)

    assert second.id > first.id
    assert get_image(database, first.guid, ann) == second


def test_a_delete_that_is_not_committed_removes_nothing(database: Database, ann: Caller) -> None:
    image = add_image(database, ann, tags=("a",))

    with database.transaction() as context:
        ImageRepository(context).delete(image.id)
        with pytest.raises(ImageNotFoundError):
            ImageRepository(context).get(image.guid, ann)

    assert get_page(database, ImageFilter(prompt="fox", tags=("a",)), ann) == [image]


def test_a_user_with_images_cannot_be_deleted_from_under_them(database: Database, ann: Caller) -> None:
    image = add_image(database, ann)

    with pytest.raises(ConstraintViolationError), database.transaction() as context:
        context.execute("DELETE FROM users WHERE id = :id", {"id": ann.user_id})

    assert get_image(database, image.guid, ann) == image


# --- Locking ---------------------------------------------------------------------------------------------------------


def test_locking_what_is_not_there_is_no_error(database: Database) -> None:
    with database.transaction() as context:
        ImageRepository(context).lock(new_guid())
        with pytest.raises(ImageNotFoundError):
            ImageRepository(context).get(new_guid(), None)


def test_author_names_that_look_alike_are_different_authors(database: Database) -> None:
    names = ("e", "é", "E", "🍎", "🍌", "e\u200b")
    images = {}
    for name in names:
        author = add_caller(database, name)
        images[name] = add_image(database, author, visibility=PUBLIC)

    for name in names:
        assert get_page(database, ImageFilter(author=name)) == [images[name]]
    assert get_page(database, ImageFilter(author="e\u0301")) == [images["é"]]
    assert get_page(database, ImageFilter(author="nobody")) == []


def test_an_image_keeps_the_name_of_a_removed_author(database: Database, ann: Caller) -> None:
    image = add_image(database, ann, visibility=PUBLIC)
    with database.transaction() as context:
        UserRepository(context).remove(ann.user_id)
        context.commit()

    assert get_image(database, image.guid, None).author == "ann"
    assert get_page(database, ImageFilter(author="ann")) == [image]
