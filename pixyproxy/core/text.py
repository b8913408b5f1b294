"""Rules for text that people give: what is refused, and when two texts count as the same.

Author: djjay
Date: 2026-11-20
"""

from __future__ import annotations

import re
import unicodedata

# C0, DEL and C1 controls, and the two Unicode line breaks, none of which a one-line text can hold.
_CONTROLS_IN_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# A prompt may have several lines and tabs.
_CONTROLS_IN_PROSE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_NOT_SLUG = re.compile(r"[^\w]+|_+")


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
    # The dot above İ, which lower-casing splits off, and other loose marks would be taken for the end of a word.
    words = [word for word in _NOT_SLUG.split(unicodedata.normalize("NFC", text[: max_length * 4]).lower()) if word]
    chosen = words[0][:max_length] if words else ""
    for word in words[1:]:
        if len(chosen) + 1 + len(word) > max_length:
            break
        chosen = f"{chosen}-{word}"
    return chosen
