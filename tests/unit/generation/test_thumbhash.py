"""ThumbHashes, beside those of the reference implementation in JavaScript (thumbhash 0.1.1)."""

from __future__ import annotations

import random

import pytest
from PIL import Image

from pixyproxy.generation.thumbhash import thumbhash


def gradient(seed: int, width: int, height: int, alpha: int | None) -> Image.Image:
    """An image between four random colours in its corners; ``alpha`` in place of theirs, if given."""
    numbers = random.Random(seed)
    corners = [[numbers.randrange(256) for _ in range(4)] for _ in range(4)]
    pixels = bytearray()
    for y in range(height):
        for x in range(width):
            fx, fy = x / max(1, width - 1), y / max(1, height - 1)
            weights = ((1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy)
            for channel in range(4):
                value = (
                    corners[0][channel] * weights[0]
                    + corners[1][channel] * weights[1]
                    + corners[2][channel] * weights[2]
                    + corners[3][channel] * weights[3]
                )
                pixels.append(alpha if alpha is not None and channel == 3 else int(value))
    return Image.frombytes("RGBA", (width, height), bytes(pixels))


@pytest.mark.parametrize(
    ("seed", "width", "height", "alpha", "expected"),
    [
        (0, 100, 67, 255, "223a0a3d847687775f777777888777778f7f670873"),
        (1, 67, 100, 255, "a5270a650470875977887887778887877096f89875"),
        (2, 100, 100, 255, "1ca70937028087877277777878788787877707a78b7efa08"),
        (3, 100, 75, None, "9f64861c822a9d887078877777077b60c3f788988777777807"),
        (4, 30, 100, None, "5eb9811206157071777777768f19f6978f78ef87888888"),
        (5, 100, 3, 255, "5bda09218c8f8888537887777fc547f874"),
        (6, 1, 1, 255, "6368441f6608f708888788708f7088f80888808008f7870f"),
        (7, 1, 100, None, "56b7ae212c770888778878f78489708808f7858a887788"),
        (8, 100, 1, 255, "9b073619908988888888087670770f8777"),
        (9, 40, 40, 0, "00088205000000000000000000000000000000000000000000"),
        (10, 2, 2, None, "a5b3c91d0a5577087888887808808ef80877780747b777880b"),
    ],
)
def test_it_is_that_of_the_reference(seed: int, width: int, height: int, alpha: int | None, expected: str) -> None:
    assert thumbhash(gradient(seed, width, height, alpha)).hex() == expected


def test_an_image_without_alpha() -> None:
    image = gradient(0, 100, 67, 255)
    assert thumbhash(image.convert("RGB")) == thumbhash(image)
