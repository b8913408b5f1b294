"""The terms of the search index: those of an image, and those that a filter requires.

The first letter of a term is its type:

* ``w`` a search term of the prompt, ``p`` a prefix of one, of up to four letters;
* ``f`` one, two or three successive characters of the filename's key;
* ``t`` the key of a tag, ``a`` the id of the author, ``v`` the visibility.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from pixyproxy.core.fields import Visibility
from pixyproxy.core.models import Caller, ImageFilter
from pixyproxy.core.search_terms import SHORT_PREFIX_LENGTH, SearchTerm, index_terms, query_terms, short_prefixes
from pixyproxy.core.text import caseless_key, exact_key

_GRAM_LENGTH = 3
# More of them would hardly exclude more images, and each is looked up in every block.
_MAX_GRAMS = 12
# No term has one.
_SEPARATOR = "\n"


@dataclass(frozen=True)
class Wanted:
    """A requirement for the terms of an image.

    Attributes:
        terms: the image must have one of these.
        prefix: where it is set, the image must have a term with this prefix instead.
        text: a part of the joined terms of every such image, if there is one; see ``joined``.
    """

    terms: tuple[str, ...] = ()
    prefix: str | None = None
    text: str | None = None


# --- Terms of an image -----------------------------------------------------------------------------------------------


def text_terms(prompt: str, tags: Iterable[str]) -> list[str]:
    """Return the terms of a prompt, apart from the short prefixes, and of tags."""
    return [f"w{term}" for term in sorted(index_terms(prompt))] + [f"t{exact_key(tag)}" for tag in tags]


def all_terms(texts: Iterable[str], filename_key: str, author_id: int, visibility: int) -> set[str]:
    """Return all terms of an image, given its ``text_terms``."""
    texts = tuple(texts)
    terms = {_author_term(author_id), _visibility_term(visibility), *texts}
    terms.update(*map(_prefix_terms, texts))
    for length in range(1, _GRAM_LENGTH + 1):
        terms.update(f"f{gram}" for gram in _grams(filename_key, length))
    return terms


# Without this cache sealing takes 8 % more CPU time (prompts of benchmarks.million, SQLite).
@lru_cache(maxsize=65_536)
def _prefix_terms(text: str) -> tuple[str, ...]:
    return tuple(f"p{prefix}" for prefix in short_prefixes(text[1:])) if text[0] == "w" else ()


def joined(terms: Iterable[str]) -> str:
    """Return terms as one text, in which each is between two separators."""
    return f"{_SEPARATOR}{_SEPARATOR.join(terms)}{_SEPARATOR}"


def parted(text: str) -> list[str]:
    """Return the terms of a text from ``joined``."""
    return [term for term in text.split(_SEPARATOR) if term]


# --- Terms of a filter -----------------------------------------------------------------------------------------------


def wanted_by(image_filter: ImageFilter, author_id: int | None, caller: Caller | None) -> list[Wanted]:
    """Return what is required of images that match a filter and that ``caller`` may see.

    All such images meet the requirements, and few others do.
    """
    terms = query_terms(image_filter.prompt or "")
    # Long terms come first because they are rare, and the others are not looked up in a block without them.
    wanted = [_wanted_word(term) for term in sorted(terms, key=lambda term: (term.is_prefix, -len(term.text)))]
    wanted += (Wanted((f"t{key}",), text=_whole(f"t{key}")) for key in map(exact_key, image_filter.tags))
    if author_id is not None:
        wanted.append(Wanted((_author_term(author_id),)))
    if image_filter.visibility is not None:
        wanted.append(Wanted((_visibility_term(image_filter.visibility),)))
    if image_filter.filename:
        wanted += (Wanted((f"f{gram}",)) for gram in _selected_grams(caseless_key(image_filter.filename)))
    if caller is None:
        wanted.append(Wanted((_visibility_term(Visibility.PUBLIC),)))
    elif not caller.is_admin:
        wanted.append(Wanted((_author_term(caller.user_id), _visibility_term(Visibility.PUBLIC))))
    return list(dict.fromkeys(wanted))


def broadened(wanted: Wanted) -> Wanted:
    """Return a requirement with a single term in place of a prefix. More images may meet it."""
    if wanted.prefix is None:
        return wanted
    return Wanted((f"p{wanted.prefix[1 : 1 + SHORT_PREFIX_LENGTH]}",), text=wanted.text)


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


def _selected_grams(part: str) -> list[str]:
    """Return grams of every filename that contains a part: all if there are few, otherwise evenly spaced ones."""
    grams = list(dict.fromkeys(_grams(part, min(_GRAM_LENGTH, len(part)))))
    step = -(-len(grams) // _MAX_GRAMS)
    return grams[::step]


def _grams(text: str, length: int) -> list[str]:
    return [text[start : start + length] for start in range(len(text) - length + 1)]
