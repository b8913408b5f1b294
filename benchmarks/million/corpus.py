"""A million images as people would make them: seeded, so that every database and every run has the same."""

from __future__ import annotations

import bisect
import itertools
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pixyproxy.core.fields import Visibility
from pixyproxy.core.models import ImageDetail, Usage
from pixyproxy.core.text import slug

SEED = 20261121
VERSION = 1
"""Raised with every change of what is made, so that kept databases are made anew."""

FIRST = datetime(2024, 11, 1, tzinfo=UTC)
_SECONDS_BETWEEN = 60
LAST = FIRST + timedelta(seconds=1_000_000 * _SECONDS_BETWEEN)

_COMMON = (
    "the a of in with and on at by from to for under over near through very light soft old young small big red blue "
    "green golden dark bright white black silver misty stormy quiet ancient modern cinematic photo painting portrait "
    "landscape watercolor illustration render detailed realistic dramatic sunset sunrise night morning forest mountain "
    "river ocean city street house garden tower bridge ship horse cat dog bird fox wolf bear dragon robot knight queen "
    "king child woman man dancer sailor astronaut flower tree leaf stone glass metal wood fire water smoke cloud rain "
    "snow wind moon star sky field desert island village market kitchen library train car bicycle lamp window door "
    "mirror clock book"
)
COMMON_WORDS = " ".join(_COMMON.split()[:24])
_ONSETS = (
    "b br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sc sh sk sl sm sn sp st str t th tr v w z"
)
_VOWELS = "a e i o u ai ea ee ie oa oo ou"
_CODAS = " n r l s t d k m p x nd nt rt st ck ng lm rn"
_VOCABULARY = 60_000
_STYLES = ("png", "webp", "jpeg")

_CHINESE = (
    "雪山 日出 狐狸 城堡 月光 森林 湖边 老人 小桥 流水 古镇 樱花 "
    "飞鸟 星空 大海 孤舟 水墨 风格 夜晚 街道 霓虹 未来 机器人"
)
_JAPANESE = (
    "雪の中の キツネ 東京タワー 夕焼け 桜並木 古い神社 猫と 少女 海辺の カフェ 浮世絵風 ロボット 夜の街 静かな 森"
)
_THAI = "สุนัขจิ้งจอก ในหิมะ วัดเก่า ริมแม่น้ำ ตลาดน้ำ ยามเช้า ดอกบัว ช้างป่า ภูเขา ทะเลหมอก แมวดำ"
_EMOJI = tuple("🍎🍌🦊🌊🔥🚀🌸⭐🐉🏰")

FEW = "few"
"""The author of few images, all private."""
ADMIN = "root"
AUTHORS = ("alice", "bob", FEW, "carol", "dave", *(f"author{number:02}" for number in range(45)))
_FEW_EVERY = 12_500
_TAGS = tuple(f"tag-{number:03}" for number in range(300))


@dataclass(frozen=True)
class Made:
    """An image and the number of its author, by its place in ``AUTHORS``."""

    detail: ImageDetail
    author: int


class _Zipf:
    """Draws from a list in which the n-th is n times as rare as the first."""

    def __init__(self, items: tuple[str, ...]) -> None:
        self._items = items
        self._sums = list(itertools.accumulate(1 / (place + 2.7) for place in range(len(items))))

    def draw(self, randomness: random.Random, count: int) -> list[str]:
        return [self._items[bisect.bisect(self._sums, randomness.random() * self._sums[-1])] for _ in range(count)]


def images(count: int) -> Iterator[Made]:
    """Make images in the order of their ids, which is nearly that of their times."""
    randomness = random.Random(SEED)
    words = _Zipf(tuple(_vocabulary(randomness)))
    tags = _Zipf(_TAGS)
    authors = _Zipf(tuple(str(number) for number in range(len(AUTHORS)) if AUTHORS[number] != FEW))
    for number in range(count):
        prompt = _prompt(randomness, words)
        is_of_few = number % _FEW_EVERY == _FEW_EVERY // 2
        author = AUTHORS.index(FEW) if is_of_few else int(authors.draw(randomness, 1)[0])
        # One word of every twentieth prompt is hidden from all but its authors, with few exceptions.
        is_public = randomness.random() < (0.0005 if "secret" in prompt else 0.2) and not is_of_few
        made_at = FIRST + timedelta(seconds=number * _SECONDS_BETWEEN + randomness.uniform(-90, 90))
        if randomness.random() < 0.0001:
            made_at -= timedelta(hours=2)  # Entered late, after its server was cut off.
        style = randomness.choice(_STYLES)
        yield Made(
            ImageDetail.model_construct(
                guid=str(uuid.UUID(int=randomness.getrandbits(128), version=4)),
                filename=f"{slug(prompt) or 'image'}.{style}",
                prompt=prompt,
                tags=tuple(dict.fromkeys(tags.draw(randomness, randomness.choice((0, 0, 1, 2, 3))))),
                author=AUTHORS[author],
                visibility=Visibility.PUBLIC if is_public else Visibility.PRIVATE,
                content_type=f"image/{style}",
                size_bytes=randomness.randint(500_000, 4_000_000),
                sha256=f"{randomness.getrandbits(256):064x}",
                width=1024,
                height=1024,
                model="gpt-image-2.5-flare",
                usage=Usage.model_construct(input_tokens=20, output_tokens=1_000, total_tokens=1_020),
                created_at=made_at,
                updated_at=made_at,
            ),
            author,
        )


def _prompt(randomness: random.Random, words: _Zipf) -> str:
    parts = words.draw(randomness, randomness.randint(8, 30))
    # Words whose numbers are known: 5 %, two of 2.5 % that never meet, 0.1 %, and one in a hundred thousand.
    chance = randomness.random()
    parts += ["amber"] * (chance < 0.025) + ["violet"] * (0.025 <= chance < 0.05)
    for word, share in (("castle", 0.05), ("axolotl", 0.001), ("quokka", 0.00001), ("secret", 0.05), ("ai", 0.03)):
        parts += [word] * (randomness.random() < share)
    randomness.shuffle(parts)
    chance = randomness.random()
    if chance < 0.06:
        parts = ["".join(randomness.choices(_CHINESE.split(), k=randomness.randint(3, 9)))]
    elif chance < 0.09:
        parts = ["".join(randomness.choices(_JAPANESE.split(), k=randomness.randint(3, 7)))]
    elif chance < 0.11:
        parts = ["".join(randomness.choices(_THAI.split(), k=randomness.randint(2, 5)))]
    if randomness.random() < 0.05:
        parts.append(randomness.choice(_EMOJI))
    return " ".join(parts)


def _vocabulary(randomness: random.Random) -> list[str]:
    """Make words that can be spoken, the common ones first."""
    onsets, vowels, codas = _ONSETS.split(), _VOWELS.split(), _CODAS.split(" ")
    known = dict.fromkeys(_COMMON.split())
    while len(known) < _VOCABULARY:
        syllables = randomness.choice((1, 2, 2, 3, 3, 4))
        known[
            "".join(randomness.choice(onsets) + randomness.choice(vowels) for _ in range(syllables))
            + randomness.choice(codas)
        ] = None
    return [*known]
