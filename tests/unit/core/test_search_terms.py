from __future__ import annotations

import sys
import unicodedata
from typing import Literal

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pixyproxy.core.search_terms import (
    MAX_TERM_LENGTH,
    SHORT_PREFIX_LENGTH,
    SearchTerm,
    _fold,
    _with_marks_in_order,
    index_terms,
    query_terms,
    short_prefixes,
)

CHARACTERS = [
    character
    for character in map(chr, range(sys.maxunicode + 1))
    if unicodedata.category(character) not in ("Cn", "Co", "Cs")
]
FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")
repeatable = settings(derandomize=True, deadline=None, max_examples=300)

# Text as people write it, and with much of what is rare: marks, joiners, symbols, cases that grow.
WORDS = st.one_of(
    st.text("abcXYZäÖßıİœ019_'-", min_size=1, max_size=8),
    st.text("雪山日出々〇のキャｶﾞﾟー", min_size=1, max_size=6),
    st.text("สุนัขจิ้งมะ", min_size=1, max_size=6),
    st.text("🍎🍌👍🏿\u200d\ufe0f🇩🇪❤", min_size=1, max_size=4),
    st.text("लोमड़ीשׁוּثَعْ한글ㅎ", min_size=1, max_size=6),
    st.text(min_size=1, max_size=5).filter(lambda word: not any(character.isspace() for character in word)),
)


def matches(prompt: str, query: str) -> bool:
    """What the databases do."""
    terms = index_terms(prompt)
    return all(
        any(term.startswith(wanted.text) for term in terms) if wanted.is_prefix else wanted.text in terms
        for wanted in query_terms(query)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", set()),
        (" .,;!?-–—_'\"()/\\%&=+<>|~^`$€→↔‼️\n\t", set()),
        ("A red fox, a RED Fox.", {"a", "red", "fox"}),
        ("don't", {"don", "t"}),
        ("a_b-c", {"a", "b", "c"}),
        ("3D 24°C 1,000.5", {"3d", "24", "c", "°", "1", "000", "5"}),
        ("Füchse naïve Ærø Łódź Đà ŒUVRE", {"fuchse", "naive", "aero", "lodz", "da", "oeuvre"}),
        ("straße STRASSE STRAẞE", {"strasse"}),
        ("İstanbul ISTANBUL ıstanbul", {"istanbul"}),
        ("ﬁsh ＦＯＸ 𝓯𝓸𝔁 ①", {"fish", "fox", "1"}),
        ("Ἀλώπηξ ΟΔΟΣ οδος", {"αλωπηξ", "οδοσ"}),
        ("ЁЛКА ёлка Йод", {"елка", "иод"}),
        ("שׁוּעָל", {"שועל"}),
        ("ثَعْلَبٌ أحمر", {"ثعلب", "احمر"}),
        ("लोमड़ी", {unicodedata.normalize("NFC", "लोमड़ी")}),
        ("눈 속의", {"눈", "속의"}),
        ("한", {"한"}),
        ("雪山日出", {"雪山", "山日", "日出", "出"}),
        ("雪", {"雪"}),
        ("雪，山", {"雪", "山"}),
        ("人々", {"人々", "々"}),
        ("キツネ ｷﾂﾈ", {"キツ", "ツネ", "ネ"}),
        ("がか", {"がか", "か"}),
        ("か\u3099か", {"がか", "か"}),
        ("タワー", {"タワ", "ワー", "ー"}),
        ("𠮷野", {"𠮷野", "野"}),
        ("สุนัข", {"สุน", "ุนั", "นัข", "ัข", "ข"}),
        ("AI画像2枚", {"ai", "画像", "像", "2", "枚"}),
        ("🍎🍌", {"🍎", "🍌"}),
        ("👍🏿👍", {"👍"}),
        ("👩‍🚀", {"👩", "🚀"}),
        ("❤️‍🔥", {"❤", "🔥"}),
        ("🇩🇪", {"🇩", "🇪"}),
        ("1️⃣", {"1"}),
        ("apple🍎pie", {"apple", "🍎", "pie"}),
    ],
)
def test_what_a_text_is_found_by(text: str, expected: set[str]) -> None:
    assert index_terms(text) == expected


def exact(*texts: str) -> tuple[SearchTerm, ...]:
    return tuple(SearchTerm(text) for text in texts)


def prefix(text: str) -> SearchTerm:
    return SearchTerm(text, is_prefix=True)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ()),
        (" -,. ", ()),
        ("fox", (prefix("fox"),)),
        ("Red FÓX", (*exact("red"), prefix("fox"))),
        ("red fox, ", (*exact("red"), prefix("fox"))),
        ("red red fox red", (*exact("red", "fox"), prefix("red"))),
        ("fox 🍎", exact("fox", "🍎")),
        ("🍎 fox", (*exact("🍎"), prefix("fox"))),
        ("🍎🍎", exact("🍎")),
        ("雪", (prefix("雪"),)),
        ("雪山", exact("雪山")),
        ("雪山日", exact("雪山", "山日")),
        ("雪 山", (prefix("雪"), prefix("山"))),
        ("fox雪山", exact("fox", "雪山")),
        ("ส", (prefix("ส"),)),
        ("สุ", (prefix("สุ"),)),
        ("สุน", exact("สุน")),
        ("สุนั", exact("สุน", "ุนั")),
        ("สุ fox", (prefix("สุ"), prefix("fox"))),
    ],
)
def test_what_a_query_asks_for(query: str, expected: tuple[SearchTerm, ...]) -> None:
    assert query_terms(query) == expected


def test_words_are_cut_to_the_longest_term() -> None:
    word = "ab" * 50

    assert index_terms(word) == {word[:MAX_TERM_LENGTH]}
    assert query_terms(word) == (prefix(word[:MAX_TERM_LENGTH]),)
    assert matches(word, word)
    # Folding may lengthen a word, and the cut comes after it.
    assert {len(term) for term in index_terms("ß" * 64)} == {MAX_TERM_LENGTH}


def test_no_term_is_longer_than_its_column() -> None:
    # VARBINARY(256): 64 characters of four bytes.
    text = "".join(CHARACTERS)

    terms = index_terms(text)

    assert len(terms) > 100_000
    assert max(len(term) for term in terms) <= MAX_TERM_LENGTH
    assert max(len(term.encode()) for term in terms) <= 256


def test_every_letter_is_found_in_upper_and_lower_case() -> None:
    cased = [character for character in CHARACTERS if character.upper() != character.lower()]

    assert len(cased) > 2000
    for character in cased:
        assert index_terms(character.upper()) == index_terms(character.lower()) == index_terms(character)


def test_every_letter_digit_and_symbol_is_a_term() -> None:
    for character in CHARACTERS:
        # Some letters of the Arabic presentation forms are marks over a space.
        if unicodedata.category(character) in ("Lu", "Ll", "Lo", "Nd", "So") and not 0xFC5E <= ord(character) <= 0xFE7E:
            assert index_terms(character), character


@repeatable
@given(st.text())
@example("\u0345\u03b1\u0345")
@example("İ\u0323ﬃ")
@example("\u1e9e\u0307\uac01\u11a8")
def test_folding_what_is_folded_changes_nothing(text: str) -> None:
    assert _fold(_fold(text)) == _fold(text)


@repeatable
@given(st.text())
def test_all_forms_of_a_text_are_found_alike(text: str) -> None:
    for form in FORMS:
        assert index_terms(unicodedata.normalize(form, text)) == index_terms(text)
        assert query_terms(unicodedata.normalize(form, text)) == query_terms(text)


@repeatable
@given(st.lists(WORDS, min_size=1, max_size=8), st.data())
def test_a_text_is_found_by_every_part_of_it(words: list[str], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))

    assert matches(" ".join(words), " ".join(words[first : last + 1]))


@repeatable
@given(st.lists(WORDS, min_size=1, max_size=6), st.data())
def test_the_order_of_words_does_not_matter(words: list[str], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(words))

    assert matches(" ".join(words), " ".join(shuffled))


@repeatable
@given(st.lists(st.text("abcdeäö", min_size=1, max_size=8), min_size=1, max_size=5), st.data())
def test_a_text_is_found_by_the_beginning_of_the_last_word(words: list[str], data: st.DataObject) -> None:
    last = words[-1][: data.draw(st.integers(1, len(words[-1])))]

    assert matches(" ".join(words), " ".join([*words[:-1], last]))


@repeatable
@given(st.text("雪山日出のキツネ𠮷々ー", min_size=1, max_size=12), st.data())
def test_scripts_without_spaces_are_found_by_any_part(run: str, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(run) - 1))
    last = data.draw(st.integers(first + 1, len(run)))

    assert matches(f"a {run} z", run[first:last])


@repeatable
@given(st.text("สุนัขจิ้งอกใหมะ", min_size=1, max_size=12), st.data())
def test_thai_is_found_by_any_part(run: str, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(run) - 1))
    last = data.draw(st.integers(first + 1, len(run)))

    assert matches(f"a {run} z", run[first:last])


@repeatable
@given(st.text("雪山日出สุนัข", min_size=1, max_size=8), st.text("雪山日出สุนัข", min_size=1, max_size=3))
def test_nothing_is_found_whose_characters_are_not_there(run: str, part: str) -> None:
    assume(not set(part) <= set(run))

    assert not matches(run, part)


# --- Parts of terms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "prefixes"),
    [
        ("foxes", ["f", "fo", "fox", "foxe"]),
        ("fox", ["f", "fo", "fox"]),
        ("雪山", ["雪"]),
        ("雪", ["雪"]),
        ("หิม", ["ห", "หิ"]),
        ("🦊", []),
    ],
)
def test_the_short_prefixes_of_a_term_are_those_that_queries_ask_for(term: str, prefixes: list[str]) -> None:
    assert list(short_prefixes(term)) == prefixes


@repeatable
@given(st.text(max_size=30), st.text(max_size=8))
def test_a_short_prefix_that_is_asked_for_is_there(prompt: str, query: str) -> None:
    terms = index_terms(prompt)
    prefixes = {prefix for term in terms for prefix in short_prefixes(term)}

    for wanted in query_terms(query):
        if wanted.is_prefix and len(wanted.text) <= SHORT_PREFIX_LENGTH:
            assert (wanted.text in prefixes) == any(term.startswith(wanted.text) for term in terms)


# --- Long texts ------------------------------------------------------------------------------------------------------

MARKS = [character for character in CHARACTERS if unicodedata.combining(character)]


@repeatable
@given(st.text(st.sampled_from([*MARKS, "a", "ﬁ", "가", "\u0345", "ǟ"]), max_size=40))
def test_marks_are_put_into_the_order_of_normalising(text: str) -> None:
    assert _with_marks_in_order(text) == unicodedata.normalize("NFKD", text)


@repeatable
@given(WORDS)
def test_a_word_of_a_long_text_is_the_word_of_a_short_one(word: str) -> None:
    filler = "other " * 200

    assert index_terms(filler + word) == index_terms(word) | {"other"}


@repeatable
@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_text_in_ascii_has_the_terms_that_it_has_beside_other_text(text: str) -> None:
    assert index_terms(text) | {"ω"} == index_terms(f"{text} ω")
    assert {term.text for term in query_terms(text)} | {"ω"} == {term.text for term in query_terms(f"{text} ω")}
