"""The search terms of a text in any script, independent of case and accents.

A text is first folded, so that spellings that people regard as equal become equal. Then it is split into terms:

* words, in scripts that separate words: runs of letters, digits and their marks;
* overlapping pairs of characters in Chinese and Japanese, overlapping triples in Thai, Lao, Khmer and Burmese, which
  do not separate words, so that every part of a run is found. The end of a run also gives shorter terms, so that every
  character begins a term, and a part shorter than a pair or triple is found as a prefix;
* single symbols, emoji among them, without their modifiers (skin tone, presentation, joiners).

The terms of stored prompts depend on these rules: a release that changes them must rebuild the index.

Author: djjay
Date: 2026-11-20
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from itertools import groupby

MAX_TERM_LENGTH = 64
# Hundreds of words can share a prefix of this length, and few share a longer one.
SHORT_PREFIX_LENGTH = 4

# Letters with a stroke and ligatures, which Unicode does not decompose.
_LETTER_FORMS = str.maketrans(
    {"ø": "o", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "ł": "l", "ŧ": "t", "æ": "ae", "œ": "oe"}
)
_PAIR_SCRIPTS = (
    (0x3005, 0x3007),  # 々〆〇
    (0x3041, 0x30FF),  # Hiragana and Katakana
    (0x3105, 0x312F),  # Bopomofo
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x1B000, 0x1B16F),
    (0x20000, 0x3FFFF),
)
_TRIPLE_SCRIPTS = (
    (0x0E00, 0x0EFF),  # Thai and Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
)
_ASCII_WORD = re.compile("[0-9a-z]+")
# The time of normalizing grows with the square of the length of a run of marks: a second for 32,000 marks, a
# millisecond for this length.
_QUICK_LENGTH = 1_000
_VARIATION_SELECTORS = ((0xFE00, 0xFE0F), (0xE0100, 0xE01EF))


@dataclass(frozen=True)
class SearchTerm:
    """A term that a prompt must have, or with ``is_prefix`` a prefix of one."""

    text: str
    is_prefix: bool = False


class _Kind(Enum):
    """The kind of term that a character is part of."""

    WORD = auto()
    PAIRS = auto()
    TRIPLES = auto()
    SYMBOL = auto()
    SEPARATOR = auto()


_GRAM_LENGTH = {_Kind.PAIRS: 2, _Kind.TRIPLES: 3}


def index_terms(text: str) -> frozenset[str]:
    """Return the terms under which ``text`` is indexed."""
    if text.isascii():
        return frozenset(_ascii_words(text))
    terms: set[str] = set()
    for kind, run in _runs(text):
        gram_length = _GRAM_LENGTH.get(kind)
        if gram_length is None:
            terms.add(run)
        else:
            terms.update(run[start : start + gram_length] for start in range(len(run)))
    return frozenset(terms)


def query_terms(query: str) -> tuple[SearchTerm, ...]:
    """Return the terms that a prompt must have to match ``query``, in the query's order and without repeats.

    The last word counts as a prefix, and so does every part that is shorter than its script's pairs or triples.
    """
    runs = list(_runs(query))
    terms: dict[SearchTerm, None] = {}
    for position, (kind, run) in enumerate(runs):
        gram_length = _GRAM_LENGTH.get(kind)
        if gram_length is None:
            is_last_word = kind is _Kind.WORD and position == len(runs) - 1
            terms[SearchTerm(run, is_prefix=is_last_word)] = None
        elif len(run) < gram_length:
            terms[SearchTerm(run, is_prefix=True)] = None
        else:
            grams = (run[start : start + gram_length] for start in range(len(run) - gram_length + 1))
            terms.update((SearchTerm(gram), None) for gram in grams)
    return tuple(terms)


def short_prefixes(term: str) -> Iterator[str]:
    """Yield the prefixes of an indexed term, of at most ``SHORT_PREFIX_LENGTH``, that a query can have."""
    kind = _kind_of(term[0])
    if kind is not _Kind.SYMBOL:
        longest = _GRAM_LENGTH.get(kind, SHORT_PREFIX_LENGTH + 1) - 1
        yield from (term[:length] for length in range(1, min(longest, len(term)) + 1))


def _runs(text: str) -> Iterator[tuple[_Kind, str]]:
    """Split the folded text into runs of one kind: single symbols, and words truncated to the longest term."""
    if text.isascii():
        yield from ((_Kind.WORD, word) for word in _ascii_words(text))
        return
    for kind, characters in groupby(_fold(text), key=_kind_of):
        if kind is _Kind.SYMBOL:
            yield from ((kind, character) for character in characters)
        elif kind is _Kind.WORD:
            yield kind, "".join(characters)[:MAX_TERM_LENGTH]
        elif kind is not _Kind.SEPARATOR:
            yield kind, "".join(characters)


def _ascii_words(text: str) -> list[str]:
    """Return the words of a text that needs no folding, apart from its case, and has no symbols.

    Without this an insert takes 14 % more CPU time (prompts of benchmarks.million, SQLite).
    """
    return [word[:MAX_TERM_LENGTH] for word in _ASCII_WORD.findall(text.lower())]


def _fold(text: str) -> str:
    """Remove case, accents, width and letter forms."""
    if len(text) > _QUICK_LENGTH:
        text = _with_marks_in_order(text)
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    kept = "".join(character for character in decomposed if not _is_left_out(character))
    # Composed again, because a Hangul syllable or a が is one character for its readers.
    return unicodedata.normalize("NFC", kept.translate(_LETTER_FORMS))


def _with_marks_in_order(text: str) -> str:
    """Decompose a text, and sort the marks of each run as normalizing would."""
    decomposed = "".join(unicodedata.normalize("NFKD", character) for character in text)
    runs = groupby(decomposed, key=lambda character: unicodedata.combining(character) > 0)
    return "".join("".join(sorted(run, key=unicodedata.combining) if are_marks else run) for are_marks, run in runs)


# Without this cache and the next one `index_terms` takes twice as long (prompts of benchmarks.million).
@lru_cache(maxsize=65_536)
def _is_left_out(character: str) -> bool:
    """Tell whether a character is only an accent, a vowel point or a variation of the one before it.

    Marks that make another letter (dakuten, nukta, virama, Indic and Thai vowels and tones) have other combining
    classes and stay: from class 200 on a mark is above or below a letter, 10 to 35 are Hebrew and Arabic points.
    """
    combining_class = unicodedata.combining(character)
    return (
        combining_class >= 200
        or 10 <= combining_class <= 35
        or _is_within(ord(character), _VARIATION_SELECTORS)
        or unicodedata.category(character) == "Me"
    )


@lru_cache(maxsize=65_536)
def _kind_of(character: str) -> _Kind:
    category = unicodedata.category(character)
    if category == "So":
        return _Kind.SYMBOL
    if category[0] not in "LNM":
        return _Kind.SEPARATOR
    if _is_within(ord(character), _PAIR_SCRIPTS):
        return _Kind.PAIRS
    if _is_within(ord(character), _TRIPLE_SCRIPTS):
        return _Kind.TRIPLES
    return _Kind.WORD


def _is_within(code_point: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= code_point <= last for first, last in ranges)
