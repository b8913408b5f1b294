"""The terms of the index: everything that an image is found by, and what a filter asks of it.

A term's first letter says what it is of, so that a word is never taken for a tag:

* ``w`` a search term of the prompt, ``p`` the first letters of one, up to four;
* ``f`` one, two or three characters that stand together in the filename's key;
* ``t`` a tag's key, ``a`` the author's id, ``v`` the visibility.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from operator import add

from pixyproxy.core.models import Caller, ImageFilter, Visibility
from pixyproxy.core.search_terms import SHORT_PREFIX_LENGTH, SearchTerm, index_terms, query_terms, short_prefixes
from pixyproxy.core.text import caseless_key, exact_key

_GRAM_LENGTH = 3
# More of them would hardly leave fewer images, and each is looked up in every block.
_MAX_GRAMS = 12
# Stands in none of the terms.
_SEPARATOR = "\n"


@dataclass(frozen=True)
class Wanted:
    """What an image must be indexed under.

    Attributes:
        terms: one of these is enough.
        prefix: where it is set, a term that begins so is wanted instead.
        text: what the joined terms of such an image hold, where they tell; see ``joined``.
    """

    terms: tuple[str, ...] = ()
    prefix: str | None = None
    text: str | None = None


# --- What an image is found by ---------------------------------------------------------------------------------------


def text_terms(prompt: str, tags: Iterable[str]) -> list[str]:
    """Return the terms of an image's prompt, apart from the short prefixes, and of its tags."""
    return [f"w{term}" for term in sorted(index_terms(prompt))] + [f"t{exact_key(tag)}" for tag in tags]


def all_terms(texts: Iterable[str], filename_key: str, author_id: int, visibility: int) -> set[str]:
    """Return all terms of an image, ``texts`` being its ``text_terms``."""
    texts = tuple(texts)
    terms = {_author_term(author_id), _visibility_term(visibility), *texts}
    terms.update(*map(_prefix_terms, texts))
    grams = [f"f{character}" for character in filename_key]
    for length in range(1, _GRAM_LENGTH + 1):
        terms.update(grams)
        # Each with one character more; the last has none to gain.
        grams = list(map(add, grams, filename_key[length:]))
    return terms


@lru_cache(maxsize=65_536)
def _prefix_terms(text: str) -> tuple[str, ...]:
    return tuple(f"p{prefix}" for prefix in short_prefixes(text[1:])) if text[0] == "w" else ()


def joined(terms: Iterable[str]) -> str:
    """Write terms as one text, in which each stands between two separators."""
    return f"{_SEPARATOR}{_SEPARATOR.join(terms)}{_SEPARATOR}"


def parted(text: str) -> list[str]:
    """Read terms that ``joined`` wrote."""
    return [term for term in text.split(_SEPARATOR) if term]


# --- What a filter asks ----------------------------------------------------------------------------------------------


def wanted_by(image_filter: ImageFilter, author_id: int | None, caller: Caller | None) -> list[Wanted]:
    """Return what images must be indexed under to match a filter and to be seen by ``caller``.

    What is returned leads to all of them, and to few others.
    """
    terms = query_terms(image_filter.prompt or "")
    # Long terms are rare ones; where one is not found, the others need not be looked for.
    wanted = [_wanted_word(term) for term in sorted(terms, key=lambda term: (term.is_prefix, -len(term.text)))]
    wanted += (Wanted((f"t{key}",), text=_whole(f"t{key}")) for key in map(exact_key, image_filter.tags))
    if author_id is not None:
        wanted.append(Wanted((_author_term(author_id),)))
    if image_filter.visibility is not None:
        wanted.append(Wanted((_visibility_term(image_filter.visibility),)))
    if image_filter.filename:
        wanted += (Wanted((f"f{gram}",)) for gram in _telling_grams(caseless_key(image_filter.filename)))
    if caller is None:
        wanted.append(Wanted((_visibility_term(Visibility.PUBLIC),)))
    elif not caller.is_admin:
        wanted.append(Wanted((_author_term(caller.user_id), _visibility_term(Visibility.PUBLIC))))
    return list(dict.fromkeys(wanted))


def _wanted_word(term: SearchTerm) -> Wanted:
    if not term.is_prefix:
        return Wanted((f"w{term.text}",), text=_whole(f"w{term.text}"))
    beginning = f"{_SEPARATOR}w{term.text}"
    if len(term.text) <= SHORT_PREFIX_LENGTH:
        return Wanted((f"p{term.text}",), text=beginning)
    return Wanted(prefix=f"w{term.text}", text=beginning)


def _whole(term: str) -> str:
    return f"{_SEPARATOR}{term}{_SEPARATOR}"


def _author_term(author_id: int) -> str:
    return f"a{author_id}"


def _visibility_term(visibility: int) -> str:
    return f"v{int(visibility)}"


def _telling_grams(part: str) -> list[str]:
    """Return grams that a filename with this part has: all where there are few, and evenly spread ones of many."""
    grams = list(dict.fromkeys(_grams(part, min(_GRAM_LENGTH, len(part)))))
    step = -(-len(grams) // _MAX_GRAMS)
    return grams[::step]


def _grams(text: str, length: int) -> list[str]:
    return [text[start : start + length] for start in range(len(text) - length + 1)]
