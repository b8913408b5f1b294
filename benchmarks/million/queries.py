"""What is searched for, by whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from pixyproxy_pb.v1 import image_service_pb2 as pb

from benchmarks.million import corpus

ANYBODY = ""
OWNER_OF_MANY = corpus.AUTHORS[0]
CALLERS = {ANYBODY: "anonymous", corpus.FEW: "owner of few", OWNER_OF_MANY: "owner of many", corpus.ADMIN: "admin"}
"""The callers by their usernames, and what they are called in the table."""


@dataclass(frozen=True)
class Query:
    """A list request: what it stands for, and its fields."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


def _words(name: str, prompt: str) -> Query:
    return Query(f"{name}: `{prompt}`", {"prompt": prompt})


def _filename(name: str, part: str) -> Query:
    return Query(f"filename, {name}: `{part}`", {"filename": part})


_MIDDLE = corpus.FIRST + timedelta(days=347)
_NEXT_DAY = _MIDDLE + timedelta(days=1)

QUERIES = [
    Query("no filter"),
    _words("a word in 5 %", "castle"),
    _words("a word in 0.1 %", "axolotl"),
    _words("a word in 10 prompts", "quokka"),
    _words("no match", "zyzzyva"),
    _words("two words", "castle moon"),
    _words("a common and a rare word", "the axolotl"),
    _words("two words of 2.5 % that never meet", "amber violet "),
    _words("two words of 2.5 %, one a prefix", "amber viol"),
    _words("three words, one without a match", "castle moon zyzzyva"),
    _words("prefix of 1 letter", "k"),
    _words("prefix of 2 letters", "ka"),
    _words("prefix of 3 letters", "kar"),
    _words("prefix of 4 letters", "trea"),
    _words("prefix of 5 letters", "castl"),
    _words("a word and a prefix of 1 letter", "axolotl k"),
    _words("a word and a prefix of 4 letters", "axolotl trea"),
    _words("a word of 2 letters and another", "ai castle"),
    _words("a stop word", "the"),
    _words("stop words only", "the of a in with"),
    _words("Chinese", "雪山日出"),
    _words("Chinese, one character", "雪"),
    _words("Japanese", "キツネ"),
    _words("Thai", "ในหิมะ"),
    _words("an emoji", "🦊"),
    _words("an emoji and a word", "🦊 castle"),
    Query("24 common words", {"prompt": corpus.COMMON_WORDS}),
    _filename("1 character", "k"),
    _filename("2 characters", "ka"),
    _filename("3 characters", "kar"),
    _filename("a word", "castle"),
    _filename("common parts, hardly ever together", "the-and-of-a-in"),
    _filename("no match", "zzzzqqq"),
    _filename("common parts, in no filename", "withe-"),
    _filename("common parts, in hardly any filename", "e-the-the-t"),
    _filename("common parts, in no filename, the same again and again", "t-st-st-st-s"),
    Query("a prefix of many words, and two tags: `strea`", {"prompt": "strea", "tags": ["tag-000", "tag-001"]}),
    Query("a common tag", {"tags": ["tag-000"]}),
    Query("a rare tag", {"tags": ["tag-299"]}),
    Query("two tags", {"tags": ["tag-000", "tag-007"]}),
    Query("a tag that nobody gave", {"tags": ["no such tag"]}),
    Query("an author of many", {"author": OWNER_OF_MANY}),
    Query("an author of few", {"author": corpus.FEW}),
    Query("a word that is hidden but for few: `secret`", {"prompt": "secret "}),
    Query("a word, a filename and a tag", {"prompt": "moon", "filename": "castle", "tags": ["tag-000"]}),
    Query("a word of an author of few", {"prompt": "the ", "author": corpus.FEW}),
    Query("a prefix of an author of few", {"prompt": "k", "author": corpus.FEW}),
    Query("a word among the public", {"prompt": "castle ", "visibility": pb.VISIBILITY_PUBLIC}),
    Query("the private", {"visibility": pb.VISIBILITY_PRIVATE}),
    Query("a word before a date", {"prompt": "castle ", "created_before": _MIDDLE}),
    Query("a word within a day", {"prompt": "castle ", "created_after": _MIDDLE, "created_before": _NEXT_DAY}),
]
