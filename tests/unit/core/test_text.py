from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixyproxy.core.fields import Filename
from pixyproxy.core.models import ImageDetailCreate
from pixyproxy.core.text import caseless_key, exact_key, has_control_characters, slug

ALL_CHARACTERS = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]

repeatable = settings(derandomize=True, deadline=None, max_examples=200)


# --- Control characters ----------------------------------------------------------------------------------------------


def test_control_characters_are_those_of_unicode_and_the_line_breaks() -> None:
    in_line = {character for character in ALL_CHARACTERS if has_control_characters(character)}
    in_prose = {character for character in ALL_CHARACTERS if has_control_characters(character, multiline=True)}

    controls = {character for character in ALL_CHARACTERS if unicodedata.category(character) == "Cc"}
    assert in_line == controls | {"\u2028", "\u2029"}
    assert in_prose == controls - {"\t", "\n", "\r"}


def test_one_control_character_anywhere_is_found() -> None:
    for text in ("\x00a", "a\x00", "a\x00b", "a\nb\x1b"):
        assert has_control_characters(text, multiline=True)
    assert not has_control_characters("a\tb\r\nc", multiline=True)


# --- Keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [("caf\u00e9", "cafe\u0301"), ("\u212b", "\u00c5"), ("\uac00", "\u1100\u1161"), ("q\u0323\u0307", "q\u0307\u0323")],
)
def test_the_same_text_has_one_exact_key(one: str, other: str) -> None:
    assert exact_key(one) == exact_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("e", "é"), ("e", "E"), ("a", "a "), ("ss", "ß"), ("fi", "ﬁ"), ("🍎", "🍌"), ("か", "カ"), ("☺", "☺\ufe0f")],
)
def test_different_texts_have_different_exact_keys(one: str, other: str) -> None:
    assert exact_key(one) != exact_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("FOX", "fox"),
        ("ÄRGER", "a\u0308rger"),
        ("Straße", "STRASSE"),
        ("STRAẞE", "strasse"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("ЁЛКА", "ёлка"),
        ("İ", "i\u0307"),
        ("\u0345", "\u03b9"),
        ("Ა", "ა"),
    ],
)
def test_a_text_in_other_case_has_one_caseless_key(one: str, other: str) -> None:
    assert caseless_key(one) == caseless_key(other)


@pytest.mark.parametrize(("one", "other"), [("e", "é"), ("ı", "i"), ("I", "ı"), ("İ", "i"), ("a", "a "), ("雪", "雨")])
def test_other_letters_have_other_caseless_keys(one: str, other: str) -> None:
    assert caseless_key(one) != caseless_key(other)


@repeatable
@given(st.text())
def test_keys_of_keys_are_the_keys(text: str) -> None:
    assert exact_key(exact_key(text)) == exact_key(text)
    assert caseless_key(caseless_key(text)) == caseless_key(text)
    assert caseless_key(exact_key(text)) == caseless_key(text)


def test_keys_of_the_longest_names_fit_into_their_columns() -> None:
    # VARBINARY(768) holds 64 characters and VARBINARY(3060) holds 255: 12 bytes for each.
    for key in (exact_key, caseless_key):
        assert max(len(key(character).encode()) for character in ALL_CHARACTERS) <= 12


# --- Slugs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red fox, in the SNOW!", "a-red-fox-in-the-snow"),
        ("  a__b--c  ", "a-b-c"),
        ("don't stop", "don-t-stop"),
        ("24°C / 75°F", "24-c-75-f"),
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\new", "c-new"),
        ("line\nbreak\ttab", "line-break-tab"),
        ("Füchse über Ærøskøbing", "füchse-über-ærøskøbing"),
        ("cafe\u0301", "caf\u00e9"),
        ("İstanbul IĞDIR", "i\u0307stanbul-iğdir"),
        ("Лиса в СНЕГУ", "лиса-в-снегу"),
        ("שׁוּעָל בַּשֶּׁלֶג", unicodedata.normalize("NFC", "שׁוּעָל-בַּשֶּׁלֶג")),
        ("ثَعْلَبٌ فِي الثَّلْج", unicodedata.normalize("NFC", "ثَعْلَبٌ-فِي-الثَّلْج")),
        ("می\u200cخواهم بروم", "می\u200cخواهم-بروم"),
        ("हिन्दी भाषा", "हिन्दी-भाषा"),
        ("ශ්\u200dරී ලංකාව", "ශ්\u200dරී-ලංකාව"),
        ("สุนัขจิ้งจอก ในหิมะ", "สุนัขจิ้งจอก-ในหิมะ"),
        ("雪山日出，一只狐狸", "雪山日出-一只狐狸"),
        ("눈 속의 여우", "눈-속의-여우"),
        ("🍎 apple ❤\ufe0flove 👩\u200d🚀", "apple-love"),
        ("🍎🍌", ""),
        (" \u0301 ", ""),
        ("", ""),
    ],
)
def test_a_slug_is_the_words_in_their_own_script(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_a_slug_keeps_whole_words_as_long_as_they_fit() -> None:
    assert slug("one two three", max_length=8) == "one-two"
    assert slug("one two three", max_length=7) == "one-two"
    assert slug("one two three", max_length=6) == "one"
    assert slug("one two three", max_length=13) == "one-two-three"
    assert slug("abcdefgh ij", max_length=5) == "abcde"
    assert slug("雪" * 100) == "雪" * 60


@repeatable
@given(st.text(max_size=300))
def test_a_slug_makes_a_filename(text: str) -> None:
    name = slug(text)

    assert len(name) <= 60
    assert not name.startswith("-")
    assert not name.endswith("-")
    filename: Filename | None = ImageDetailCreate(prompt="a fox", filename=f"{name}.png").filename
    assert filename == f"{name}.png"
