"""What pages of images must hold on every database: the right images, in order, none twice and none left out."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pixyproxy.core.fields import UserClass, Visibility, new_guid
from pixyproxy.core.models import Caller, Image, ImageFilter
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.images import ImageRepository
from tests.contract.page_model import expected_images
from tests.contract.records import (
    EVERYTHING,
    NOON,
    add_caller,
    add_image,
    add_images,
    get_page,
    minutes,
    walk,
)

PUBLIC = Visibility.PUBLIC
MICROSECOND = timedelta(microseconds=1)

WORDS = (
    *("castle", "Castles", "the", "The", "of", "on", "ai", "AI", "fox", "Füchse", "FÜCHSE", "straße", "STRASSE"),
    *("café", "cafe\u0301", "CAFE", "İstanbul", "ılık", "ILIK", "Æsir", "naïve", "ἀλώπηξ", "ΑΛΏΠΗΞ", "лисица"),
    *("ЁЛКА", "елка", "שׁוּעָל", "שועל", "ثَعْلَب", "ثعلب", "लोमड़ी", "여우", "눈", "𝓯𝓸𝔁", "１２３", "123", "don't"),
    *("雪山日出", "日出", "山", "雪の中のキツネ", "ｷﾂﾈ", "キツネ", "がっこう", "สุนัขจิ้งจอก", "จิ้งจอก", "นัข", "𠮷野家"),
    *("🍎", "🍌", "👍🏿", "👍", "👩‍🚀", "🇩🇪", "100%", "a_b", "it's;", "--"),
)
TAGS = ("🍎", "🍌", "e", "é", "E", "tag", "tag ", "%", "_", "雪", "it's", "\\", "x" * 64)
FILENAMES = ("fox.png", "FOX_1.PNG", "100%.webp", "Straße.png", "ılık.jpg", "İce.png", "雪山.png", "a b.png", "ё.png")
PARTS = ("o", "fox", "FOX", "%", "_", "100%", "ss", "ß", "i", "I", "İ", "ı", "雪", ".PNG", "Ё", "e", " ", "zzz")
USERNAMES = ("ann", "Ann", "änn", "🍎", "🍌")


def random_images(randomness: random.Random, count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": " ".join(randomness.choices(WORDS, k=randomness.randint(1, 8))),
            "filename": randomness.choice(FILENAMES),
            "tags": tuple(dict.fromkeys(randomness.choices(TAGS, k=randomness.randint(0, 4)))),
            "visibility": randomness.choice(tuple(Visibility)),
            # Few times for many images, a microsecond or a minute apart.
            "created_at": minutes(randomness.randint(0, 5)) + randomness.randint(0, 2) * MICROSECOND,
        }
        for _ in range(count)
    ]


def random_filter(randomness: random.Random, images: list[Image]) -> ImageFilter:
    """Make a filter of one to three parts, of which most find something."""

    def query() -> str:
        words = randomness.sample(WORDS, randomness.randint(1, 3))
        if randomness.random() < 0.5:  # The words of an image, in another order.
            words = randomness.choice(images).prompt.split()[: randomness.randint(1, 4)]
            randomness.shuffle(words)
        words[-1] = words[-1][: randomness.randint(1, len(words[-1]))]
        return " ".join(words)

    def time() -> datetime:
        return randomness.choice(images).created_at + randomness.randint(-1, 1) * MICROSECOND

    choices: dict[str, Callable[[], Any]] = {
        "prompt": query,
        "filename": lambda: randomness.choice(PARTS),
        "guid": lambda: randomness.choice([randomness.choice(images).guid.upper(), new_guid()]),
        "tags": lambda: tuple(randomness.choices(TAGS, k=randomness.randint(1, 2))),
        "author": lambda: randomness.choice((*USERNAMES, "nobody")),
        "visibility": lambda: randomness.choice(tuple(Visibility)),
        "created_after": time,
        "created_before": time,
    }
    weights = [6, 3, 1, 3, 2, 2, 2, 2]
    values: dict[str, Any] = {}
    for name in randomness.choices(list(choices), weights, k=randomness.randint(1, 3)):
        values[name] = choices[name]()
    try:
        return ImageFilter(**values)
    except ValueError:  # Half an emoji or a lone dash is nothing to search for.
        return random_filter(randomness, images)


def test_pages_are_those_of_the_model(database: Database) -> None:
    randomness = random.Random(20261120)
    callers: list[Caller | None] = [None, add_caller(database, "root", UserClass.ADMIN)]
    images: list[Image] = []
    for username in USERNAMES:
        author = add_caller(database, username)
        callers.append(author)
        images += add_images(database, author, random_images(randomness, 60))
    found = 0

    for _ in range(120):
        image_filter = random_filter(randomness, images)
        caller = randomness.choice(callers)
        pages = walk(database, image_filter, caller, limit=randomness.choice((7, 19, 50, 200)))
        expected = expected_images(images, image_filter, caller)
        assert [image.guid for image in pages] == [image.guid for image in expected], (image_filter, caller)
        assert pages == expected
        found += bool(expected)

    assert found > 60  # Most of the filters found something, or nothing would be compared.


@pytest.mark.parametrize("limit", [1, 2, 3, 10, 11, 12])
def test_images_of_the_same_time_are_paged_by_id(database: Database, limit: int) -> None:
    ann = add_caller(database)
    images = add_images(database, ann, [{"visibility": Visibility(1 + number % 2)} for number in range(11)])

    for caller in (ann, None):
        expected = expected_images(images, EVERYTHING, caller)
        assert walk(database, EVERYTHING, caller, limit=limit) == expected


@pytest.mark.parametrize("image_filter", [EVERYTHING, ImageFilter(prompt="fox", tags=("a",))], ids=["all", "found"])
def test_images_added_between_pages_neither_repeat_nor_skip_any(database: Database, image_filter: ImageFilter) -> None:
    ann = add_caller(database, "ann")
    bob = add_caller(database, "bob")
    rows: list[dict[str, Any]] = [{"tags": ("a",), "created_at": minutes(number // 3)} for number in range(12)]
    images = add_images(database, ann, rows)
    public = [{**row, "visibility": PUBLIC} for row in rows]
    images += add_images(database, bob, public)
    expected = expected_images(images, image_filter, ann)

    seen: list[Image] = []
    while page := get_page(database, image_filter, ann, limit=5, after=seen[-1] if seen else None):
        seen += page
        # Newer than all, and as old as the last one that was seen, by both branches of what may be seen.
        for author in (ann, bob):
            for created_at in (minutes(60), seen[-1].created_at):
                add_image(database, author, tags=("a",), visibility=PUBLIC, created_at=created_at)

    assert seen == expected


def test_an_image_deleted_between_pages_is_where_the_next_page_goes_on(database: Database) -> None:
    ann = add_caller(database)
    images = add_images(database, ann, [{"created_at": minutes(number // 2)} for number in range(8)])[::-1]
    first = get_page(database, caller=ann, limit=3)

    with database.transaction() as context:
        for image in first:
            ImageRepository(context).delete(image.id)
        context.commit()

    assert first == images[:3]
    assert get_page(database, caller=ann, limit=3, after=first[-1]) == images[3:6]


def test_there_is_nothing_after_the_last_image(database: Database) -> None:
    ann = add_caller(database)
    image = add_image(database, ann)

    assert get_page(database, caller=ann) == [image]
    assert get_page(database, caller=ann, after=image) == []
    assert get_page(database) == []


def test_the_dates_of_a_filter_are_exclusive_to_the_microsecond(database: Database) -> None:
    ann = add_caller(database)
    before, at, after = add_images(
        database, ann, [{"created_at": NOON + number * MICROSECOND} for number in (-1, 0, 1)]
    )

    assert get_page(database, ImageFilter(created_after=NOON), ann) == [after]
    assert get_page(database, ImageFilter(created_before=NOON), ann) == [before]
    between = ImageFilter(created_after=before.created_at, created_before=after.created_at)
    assert get_page(database, between, ann) == [at]
    assert get_page(database, ImageFilter(created_after=NOON, created_before=NOON), ann) == []
    elsewhere = NOON.astimezone(datetime.strptime("+0530", "%z").tzinfo)
    assert get_page(database, ImageFilter(created_after=elsewhere), ann) == [after]


@pytest.mark.parametrize("year", [1, 300, 999, 1000, 1969, 2026])
def test_any_date_may_be_asked_for(database: Database, year: int) -> None:
    """The API's times go from the year 1 to the year 9999."""
    ann = add_caller(database)
    image = add_image(database, ann)
    early = datetime(year, 1, 1, tzinfo=UTC)
    last = datetime.max.replace(tzinfo=UTC)

    assert get_page(database, ImageFilter(created_after=early, created_before=last), ann) == [image]
    assert get_page(database, ImageFilter(created_before=early), ann) == []
    assert get_page(database, ImageFilter(created_after=last), ann) == []


@pytest.mark.parametrize(
    ("filename", "part", "is_found"),
    [
        ("Red-Fox.png", "red-fox", True),
        ("Red-Fox.png", "FOX.P", True),
        ("Red-Fox.png", "", True),
        ("Red-Fox.png", "Red-Fox.png", True),
        ("Red-Fox.png", "Red-Fox.png ", False),
        ("Red-Fox.png", "fx", False),
        ("100%.png", "%", True),
        ("100.png", "%", False),
        ("a_b.png", "_", True),
        ("ab.png", "a_b", False),
        ("ab.png", "a%b", False),
        ("a*b?.png", "*b?", True),
        ("ab.png", "a*", False),
        ("it's.png", "'", True),
        ("a.png", "\\", False),
        ("%s %(guid)s :guid.png", "%(GUID)s :guid", True),
        ("ends with a space ", "space ", True),
        ("ends without", "without ", False),
        ("Straße.png", "STRASSE", True),
        ("STRASSE.png", "ß", True),
        ("STRAẞE.png", "straße", True),
        ("İstanbul.png", "istanbul", False),
        ("İstanbul.png", "i̇stanbul", True),
        ("IĞDIR.png", "ığdır", False),
        ("IĞDIR.png", "iğdir", True),
        ("ığdır.png", "ığdır", True),
        ("Ärger.png", "äRG", True),
        ("Ärger.png", "arg", False),
        ("A\u0308rger.png", "\u00e4rg", True),
        ("ОДИССЕЙ.png", "одиссей", True),
        ("ΣΊΣΥΦΟΣ.png", "σίσυφος", True),
        ("雪山日出.png", "山日", True),
        ("雪山日出.png", "日山", False),
        ("สุนัข.png", "นัข", True),
        ("ثعلب.png", "علب", True),
        ("🍎🍌.png", "🍌", True),
        ("🍎.png", "🍌", False),
        ("👩‍🚀.png", "👩", True),
        ("ﬁx.png", "FI", True),
        ("Ǆ.png", "ǆ", True),
    ],
)
def test_filenames_are_found_by_any_part_whatever_the_case(
    database: Database, filename: str, part: str, is_found: bool
) -> None:
    ann = add_caller(database)
    image = add_image(database, ann, filename=filename)

    assert get_page(database, ImageFilter(filename=part), ann) == [image] * is_found


PROMPT = "The old castle of Köln: two Füchse (and one AI) in the snow, it's 24°C"


@pytest.mark.parametrize(
    ("prompt", "query", "is_found"),
    [
        (PROMPT, "castle", True),
        (PROMPT, "CASTLE", True),
        (PROMPT, "cast", True),
        (PROMPT, "astle", False),
        (PROMPT, "castles", False),
        (PROMPT, "cast old", False),  # Only the last word is a prefix.
        (PROMPT, "old cast", True),
        (PROMPT, "cast ", True),
        (PROMPT, "the", True),
        (PROMPT, "of the in and", True),
        (PROMPT, "ai", True),
        (PROMPT, "on", True),  # The beginning of "one".
        (PROMPT, "on the", False),
        (PROMPT, "c", True),
        (PROMPT, "snow castle köln the", True),
        (PROMPT, "snow castle berlin", False),
        (PROMPT, "castle castle castle", True),
        (PROMPT, "koln FUCHSE", True),
        (PROMPT, "ko\u0308ln", True),
        (PROMPT, "(castle)", True),
        (PROMPT, '"castle" -snow +old*', True),
        (PROMPT, "it's", True),
        (PROMPT, "24", True),
        (PROMPT, "24°c", True),
        ("Straße, ŒUVRE, Łódź, ærø", "strasse oeuvre lodz AERO", True),
        ("STRASSE", "straße", True),
        ("İstanbul IĞDIR", "istanbul igdir", True),
        ("istanbul", "İSTANBUL", True),
        ("ılık", "ilik", True),
        ("Đà Nẵng", "da nang", True),
        ("Ἀλώπηξ ΧΙΟΝΙ ΟΔΟΣ", "αλωπηξ χιόνι οδος", True),
        ("ёлка Йод", "ЕЛКА иод", True),
        ("שׁוּעָל בַּשֶּׁלֶג", "שועל בשלג", True),
        ("ثَعْلَبٌ فِي الثَّلْج", "ثعلب الثلج", True),
        ("بर्फ़ बर्फ़ में लोमड़ी", "लोमड़ी", True),
        ("कि", "की", False),  # Other vowels make other words.
        ("눈 속의 여우", "여우 눈", True),
        ("눈 속의 여우", "여", True),
        ("눈 속의 여우", "\u110b\u1167\u110b\u116e", True),
        ("雪山日出", "雪山日出", True),
        ("雪山日出", "山日", True),
        ("雪山日出", "日", True),
        ("雪山日出", "出", True),
        ("雪山日出", "出日", False),
        ("雪山日出", "雪日", False),
        ("雪山日出", "日出 雪山", True),
        ("画像AI生成", "ai画像", True),
        ("𠮷野家の𩸽", "𩸽", True),
        ("𠮷野家の𩸽", "吉野", False),
        ("雪の中のキツネ", "ｷﾂﾈ", True),
        ("雪の中のキツネ", "中の", True),
        ("がっこう", "かっこう", False),
        ("か\u3099っこう", "がっこう", True),
        ("東京タワー", "タワー", True),
        ("สุนัขจิ้งจอกในหิมะ", "จิ้งจอก", True),
        ("สุนัขจิ้งจอกในหิมะ", "หิมะ", True),
        ("สุนัขจิ้งจอกในหิมะ", "มะ", True),
        ("สุนัขจิ้งจอกในหิมะ", "แมว", False),
        ("កញ្ជ្រោងក្នុងព្រិល", "ព្រិល", True),
        ("🍎 and 🍌", "🍌", True),
        ("🍎 and 🍌", "🍌 🍎", True),
        ("🍎", "🍌", False),
        ("an apple🍎", "apple 🍎", True),
        ("👍🏿", "👍", True),
        ("👍", "👍🏿", True),
        ("❤\ufe0f", "❤", True),
        ("👩‍🚀", "🚀", True),
        ("🇩🇪", "🇩🇪", True),
        ("🇩🇪", "🇫🇷", False),
        ("𝓯𝓸𝔁 ＦＯＸ ﬁx", "fox fix", True),
        ("x" * 100, "x" * 100, True),
        ("x" * 100, "x" * 64, True),
        ("%s %(term0)s :limit", "%(term0)s :limit", True),
        ("robert'); DROP TABLE images; --", "'); DROP TABLE images; --", True),
        ("a_b", "a b", True),
        ("foo bar", "foo_bar", True),
        ("fo", "foo", False),
    ],
)
def test_prompts_are_found_by_words(database: Database, prompt: str, query: str, is_found: bool) -> None:
    ann = add_caller(database)
    image = add_image(database, ann, prompt=prompt)
    add_image(database, ann, prompt="unrelated")

    assert get_page(database, ImageFilter(prompt=query), ann) == [image] * is_found


def test_all_filters_must_hold_at_once(database: Database) -> None:
    ann, bob = add_caller(database, "ann"), add_caller(database, "bob")
    matching: dict[str, Any] = {
        "prompt": "a red fox in the snow",
        "filename": "winter fox.png",
        "tags": ("a", "b", "c"),
        "visibility": PUBLIC,
        "created_at": NOON,
    }
    image = add_image(database, ann, **matching)
    for other in (
        {"prompt": "a red axe in the snow"},
        {"filename": "summer fox.png"},
        {"tags": ("a", "c")},
        {"visibility": Visibility.PRIVATE},
        {"created_at": minutes(10)},
        {"created_at": minutes(-10)},
    ):
        add_image(database, ann, **(matching | other))
    add_image(database, bob, **matching)

    image_filter = ImageFilter(
        prompt="snow fo",
        filename="WINTER",
        tags=("b", "a"),
        author="ann",
        visibility=PUBLIC,
        created_after=minutes(-5),
        created_before=minutes(5),
    )

    assert get_page(database, image_filter, ann) == [image]
    assert get_page(database, image_filter.model_copy(update={"guid": image.guid}), None) == [image]
    assert get_page(database, image_filter.model_copy(update={"guid": new_guid()}), ann) == []


def test_as_many_words_and_tags_as_may_be_are_found_at_once(database: Database) -> None:
    # Every one of them joins a table, of which MySQL takes 61 and SQLite 64, and whose order planners try out.
    ann = add_caller(database)
    words = [f"word{number:02}" for number in range(24)]
    tags = tuple(f"tag{number:02}" for number in range(32))
    matching: dict[str, Any] = {"prompt": " ".join(words), "tags": tags}
    rows = [matching | {"visibility": Visibility(1 + number % 2)} for number in range(20)]
    rows += [matching | {"prompt": " ".join(words[:number] + words[number + 1 :])} for number in range(24)]
    rows += [matching | {"tags": tags[:number] + tags[number + 1 :]} for number in range(32)]
    images = add_images(database, ann, rows)

    image_filter = ImageFilter(prompt=" ".join(reversed(words)), tags=tags[::-1], filename="fox", author="ann")

    assert get_page(database, image_filter, ann) == images[19::-1]
    assert get_page(database, image_filter, None) == images[19:0:-2]
