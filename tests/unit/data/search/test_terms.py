from __future__ import annotations

import pytest

from pixyproxy.core.fields import UserClass, Visibility, new_guid
from pixyproxy.core.models import Caller, ImageFilter
from pixyproxy.core.text import caseless_key
from pixyproxy.data.search.terms import all_terms, joined, parted, text_terms, wanted_by

ANN = Caller(user_id=7, guid=new_guid(), username="ann", class_key=UserClass.USER)
ADMIN = Caller(user_id=1, guid=new_guid(), username="root", class_key=UserClass.ADMIN)


def terms_of(prompt: str, filename: str, tags: tuple[str, ...] = ()) -> set[str]:
    return all_terms(text_terms(prompt, tags), caseless_key(filename), 7, Visibility.PUBLIC)


def test_an_image_is_under_everything_that_it_is_found_by() -> None:
    assert terms_of("Foxes 雪山 🦊", "Ab", ("Sea",)) == {
        *("wfoxes", "pf", "pfo", "pfox", "pfoxe"),
        *("w雪山", "w山", "p雪", "p山"),
        *("w🦊", "tSea", "fa", "fb", "fab", "a7", "v2"),
    }


def test_terms_are_read_as_they_were_joined() -> None:
    terms = text_terms("a fox, 雪山", ("two words", "'\\\""))

    assert parted(joined(terms)) == terms
    assert parted(joined([])) == []
    assert all(f"\n{term}\n" in joined(terms) for term in terms)


@pytest.mark.parametrize(
    "query", ["f", "fo", "fox", "foxe", "foxes", "foxglo", "red fox", "雪", "雪山", "🦊", "the  red "]
)
@pytest.mark.parametrize("prompt", ["the red foxes", "foxglove", "雪山 red 🦊", "the fo x"])
def test_what_a_query_wants_is_what_matching_prompts_have(prompt: str, query: str) -> None:
    terms = terms_of(prompt, "a.png")
    texts = joined(text_terms(prompt, ()))

    in_index = [
        any(term.startswith(each.prefix) for term in terms) if each.prefix else bool(terms & {*each.terms})
        for each in wanted_by(ImageFilter(prompt=query), None, ADMIN)
    ]
    in_tail = [each.text in texts for each in wanted_by(ImageFilter(prompt=query), None, ADMIN) if each.text]

    assert in_index == in_tail
    assert len(in_index) == len({*query.split()})


@pytest.mark.parametrize("part", ["k", "ki", "KIN", "ing-K", "viking-king.png", "e", "é", "ß", "x" * 255])
@pytest.mark.parametrize("filename", ["Viking-King.png", "ing-ki", "é", "STRASSE", "x" * 255])
def test_filenames_with_a_part_have_all_its_grams(filename: str, part: str) -> None:
    terms = terms_of("fox", filename)
    wanted = wanted_by(ImageFilter(filename=part), None, ADMIN)

    assert 0 < len(wanted) <= 12
    if caseless_key(part) in caseless_key(filename):
        assert all(terms & {*each.terms} for each in wanted)


def test_who_asks_is_part_of_what_is_wanted() -> None:
    anything = ImageFilter(visibility=Visibility.PRIVATE)

    assert [each.terms for each in wanted_by(anything, None, ADMIN)] == [("v1",)]
    assert [each.terms for each in wanted_by(anything, None, ANN)] == [("v1",), ("a7", "v2")]
    assert [each.terms for each in wanted_by(anything, 3, None)] == [("a3",), ("v1",), ("v2",)]
