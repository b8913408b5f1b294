"""Rules for text that people give: what is refused, and when two texts count as the same.

Author: djjay
Date: 2026-11-20
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import dropwhile, groupby

# C0, DEL and C1 controls, and the two Unicode line breaks, none of which a one-line text can hold; and lone surrogates,
# which stand for bytes of the command line that are no text, and which no database stores.
_CONTROLS_IN_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# A prompt may have several lines and tabs.
_CONTROLS_IN_PROSE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
# They stand inside of words of Persian, Sinhala and other scripts.
_JOINERS = "\u200c\u200d"


def has_control_characters(text: str, *, multiline: bool = False) -> bool:
    """Tell whether ``text`` holds control characters; with ``multiline``, tab and line breaks are no such."""
    return (_CONTROLS_IN_PROSE if multiline else _CONTROLS_IN_LINE).search(text) is not None


def exact_key(text: str) -> str:
    """Return what two spellings of the same text have in common: its composed form (NFC), case kept.

    An é typed as one character and an é typed as e and an accent are the same name to people.
    """
    return unicodedata.normalize("NFC", text)


def caseless_key(text: str) -> str:
    """Return what a text and its upper- or lower-case forms have in common, accents kept."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def slug(text: str, *, max_length: int = 60) -> str:
    """Return the words of ``text`` in its own script, lower-case and joined by hyphens, or "" where it has none.

    Whole words are kept as long as they fit into ``max_length`` characters; a first word that is longer is cut.
    """
    words = list(_words_of(unicodedata.normalize("NFC", text[: max_length * 4]).lower()))
    chosen = words[0][:max_length] if words else ""
    for word in words[1:]:
        if len(chosen) + 1 + len(word) > max_length:
            break
        chosen = f"{chosen}-{word}"
    return chosen


def _words_of(text: str) -> Iterator[str]:
    for is_in_word, characters in groupby(text, key=_is_in_word):
        if is_in_word:
            # Marks that follow no letter, such as what makes a symbol an emoji, are no words.
            word = "".join(dropwhile(lambda character: not character.isalnum(), characters)).rstrip(_JOINERS)
            if word:
                yield word


def _is_in_word(character: str) -> bool:
    """Whether a word goes on: marks belong to it, among them the vowels of many scripts and the dot of a small İ."""
    return character.isalnum() or character in _JOINERS or unicodedata.category(character)[0] == "M"
