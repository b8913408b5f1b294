"""ThumbHash: a placeholder of 5 to 30 bytes for an image, by the algorithm of https://evanw.github.io/thumbhash/.

It has the average colour of an image, and the lowest frequencies of its luminance, of two differences of its colours
and of its transparency, each by a discrete cosine transform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

from PIL import Image


def thumbhash(image: Image.Image) -> bytes:
    """Return the ThumbHash of an RGB or RGBA image of at most 100 pixels across and down."""
    width, height = image.size
    rgba = image.convert("RGBA").tobytes()
    alphas = [value / 255 for value in rgba[3::4]]
    opaque = sum(alphas)
    has_alpha = opaque < width * height
    # Colours lie on the average one, so that transparent pixels do not matter.
    red, green, blue = (_on_average(rgba[place::4], alphas, opaque) for place in range(3))
    luminance = [(r + g + b) / 3 for r, g, b in zip(red, green, blue, strict=True)]
    yellow_blue = [(r + g) / 2 - b for r, g, b in zip(red, green, blue, strict=True)]
    red_green = [r - g for r, g in zip(red, green, strict=True)]

    limit, longest = 5 if has_alpha else 7, max(width, height)
    nx, ny = (max(1, _rounded(limit * length / longest)) for length in (width, height))
    l_mean, l_terms, l_scale = _transformed(luminance, width, height, max(3, nx), max(3, ny))
    p_mean, p_terms, p_scale = _transformed(yellow_blue, width, height, 3, 3)
    q_mean, q_terms, q_scale = _transformed(red_green, width, height, 3, 3)
    is_landscape = width > height
    header = (
        _rounded(63 * l_mean)
        | _rounded(31.5 + 31.5 * p_mean) << 6
        | _rounded(31.5 + 31.5 * q_mean) << 12
        | _rounded(31 * l_scale) << 18
        | has_alpha << 23
        | (ny if is_landscape else nx) << 24
        | _rounded(63 * p_scale) << 27
        | _rounded(63 * q_scale) << 33
        | is_landscape << 39
    )
    terms = [*l_terms, *p_terms, *q_terms]
    nibbles = []
    if has_alpha:
        a_mean, a_terms, a_scale = _transformed(alphas, width, height, 5, 5)
        nibbles = [_rounded(15 * a_mean), _rounded(15 * a_scale)]
        terms += a_terms
    nibbles += [_rounded(15 * term) for term in terms]
    nibbles += [0] * (len(nibbles) % 2)
    return header.to_bytes(5, "little") + bytes(
        low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True)
    )


def _on_average(values: bytes, alphas: Sequence[float], opaque: float) -> list[float]:
    """Return a channel's values, from 0 to 1, composited on their average."""
    average = sum(map(mul, values, alphas)) / 255 / opaque if opaque else 0.0
    return [average * (1 - alpha) + alpha * value / 255 for value, alpha in zip(values, alphas, strict=True)]


def _transformed(
    values: Sequence[float], width: int, height: int, nx: int, ny: int
) -> tuple[float, list[float], float]:
    """Return the mean of a channel, its lowest frequencies scaled to between 0 and 1, and their scale."""
    # First along the rows: the transform is separable.
    rows = [
        [sum(map(mul, values[start : start + width], wave)) for start in range(0, width * height, width)]
        for wave in (_wave(width, cx) for cx in range(nx))
    ]
    terms = [
        sum(map(mul, rows[cx], _wave(height, cy))) / (width * height)
        for cy in range(ny)
        for cx in range(nx)
        if cx * ny < nx * (ny - cy)
    ]
    mean, *terms = terms
    scale = max(map(abs, terms))
    return mean, [0.5 + 0.5 / scale * term for term in terms] if scale else terms, scale


def _wave(length: int, frequency: int) -> list[float]:
    return [math.cos(math.pi / length * frequency * (place + 0.5)) for place in range(length)]


def _rounded(value: float) -> int:
    # Halves are rounded up, unlike by round().
    return math.floor(value + 0.5)
