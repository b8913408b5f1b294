"""Rules for text from people: which characters are refused, and which texts are equal.

Author: djjay
Date: 2026-11-20
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import dropwhile, groupby

# C0, DEL and C1 controls and the two Unicode line breaks, which a text of one line must not have; and lone surrogates,
# which stand for invalid bytes of the command line and which no database stores.
_CONTROLS_IN_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# A prompt may have several lines and tabs.
_CONTROLS_IN_PROSE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
# Parts of words in Persian, Sinhala and other scripts.
_JOINERS = "\u200c\u200d"
_EXTENSIONS = {"image/png": "png", "image/webp": "webp", "image/jpeg": "jpg"}


def has_control_characters(text: str, *, multiline: bool = False) -> bool:
    """Tell whether ``text`` has control characters; with ``multiline``, tab and line breaks are allowed."""
    return (_CONTROLS_IN_PROSE if multiline else _CONTROLS_IN_LINE).search(text) is not None


def exact_key(text: str) -> str:
    """Return the composed form (NFC) of a text, with its case.

    An é typed as one character and an é typed as e and an accent are then equal.
    """
    return unicodedata.normalize("NFC", text)


def caseless_key(text: str) -> str:
    """Return a form that is equal for a text and its upper- and lower-case forms, with its accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def slug(text: str, *, max_length: int = 60) -> str:
    """Return the words of ``text`` in its own script, in lower case and joined by hyphens, or "" if it has none.

    Words that do not fit into ``max_length`` characters are left out; a longer first word is truncated.
    """
    words = list(_words_of(unicodedata.normalize("NFC", text[: max_length * 4]).lower()))
    chosen = words[0][:max_length] if words else ""
    for word in words[1:]:
        if len(chosen) + 1 + len(word) > max_length:
            break
        chosen = f"{chosen}-{word}"
    return chosen


def default_filename(description: str, content_type: str) -> str:
    """Return the filename of an image that was given none; ``content_type`` is that of a PNG, a WebP or a JPEG."""
    return f"{slug(description) or 'image'}.{_EXTENSIONS[content_type]}"


def _words_of(text: str) -> Iterator[str]:
    for is_in_word, characters in groupby(text, key=_is_in_word):
        if is_in_word:
            # A mark without a letter is no word, such as the variation selector of an emoji.
            word = "".join(dropwhile(lambda character: not character.isalnum(), characters)).rstrip(_JOINERS)
            if word:
                yield word


def _is_in_word(character: str) -> bool:
    """Tell whether a character is part of a word; marks are, such as the vowels of many scripts and the dot of İ."""
    return character.isalnum() or character in _JOINERS or unicodedata.category(character)[0] == "M"
