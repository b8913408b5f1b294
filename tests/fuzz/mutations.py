"""Bytes that are nearly, or not at all, what they should be."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from random import Random

_NOT_UTF8 = (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82")
_MOST_BYTES = 100_000

Mutation = Callable[[Random, bytes], bytes]


def mutated(random: Random, data: bytes, mutations: Sequence[Mutation]) -> bytes:
    """Change bytes in one to four of these ways, one after the other."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        data = random.choice(mutations)(random, data)[:_MOST_BYTES]
    return data


def flip_bits(random: Random, data: bytes) -> bytes:
    """Flip single bits."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4) if data else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def set_bytes(random: Random, data: bytes) -> bytes:
    """Put a value at the edge of something in place of a byte."""
    at = random.randrange(len(data) + 1)
    return data[:at] + random.choice((b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff")) + data[at + 1 :]


def truncate(random: Random, data: bytes) -> bytes:
    """Leave the end away."""
    return data[: random.randrange(len(data) + 1)]


def drop_part(random: Random, data: bytes) -> bytes:
    """Leave something in the middle away."""
    first, last = _span(random, data)
    return data[:first] + data[last:]


def repeat_part(random: Random, data: bytes) -> bytes:
    """Have a part several times over."""
    first, last = _span(random, data)
    return data[:last] + data[first:last] * random.choice((1, 1, 2, 100)) + data[last:]


def insert_noise(random: Random, data: bytes) -> bytes:
    """Put random bytes in between."""
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(random.randrange(20)) + data[at:]


def only_noise(random: Random, data: bytes) -> bytes:
    """Have nothing but random bytes."""
    return random.randbytes(random.choice((0, 1, 5, 50, 500)))


def insert_not_utf8(random: Random, data: bytes) -> bytes:
    """Put in what is no text."""
    at = random.randrange(len(data) + 1)
    return data[:at] + random.choice(_NOT_UTF8) + data[at:]


# --- Protocol buffers ------------------------------------------------------------------------------------------------


def add_field(random: Random, data: bytes) -> bytes:
    """Add a field: one that there is or not, of a right or a wrong type, with a right or a wrong content."""
    number = random.choice((0, 1, 2, 3, 4, 5, 6, 15, 16, 2047, 536_870_911))
    content = random.choice(
        (
            _varint(random.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))),
            struct.pack("<d", random.random()),
            struct.pack("<f", random.random()),
            _with_length(random.randbytes(random.randrange(40))),
            _with_length(random.choice(_NOT_UTF8)),
            _varint(random.choice((100, 2**31 - 1, 2**32 - 1, 2**63))),  # A length with nothing behind it.
            b"\xff" * 11,  # No number ends so late.
            b"",
        )
    )
    return data + _varint(number << 3 | random.randrange(8)) + content


def nest(random: Random, data: bytes) -> bytes:
    """Nest groups or messages deeper than anybody reads."""
    depth = random.choice((10, 99, 101, 5000))
    if random.random() < 0.5:
        return data + b"\x7b" * depth + b"\x7c" * random.choice((0, depth))
    nested = b""
    for _ in range(min(depth, 200)):
        nested = b"\x32" + _with_length(nested)
    return data + nested


ANY_MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    flip_bits,
    set_bytes,
    truncate,
    drop_part,
    repeat_part,
    insert_noise,
    only_noise,
    insert_not_utf8,
)
MESSAGE_MUTATIONS: tuple[Mutation, ...] = (*ANY_MUTATIONS, add_field, add_field, nest)


def _span(random: Random, data: bytes) -> tuple[int, int]:
    first, last = sorted((random.randrange(len(data) + 1), random.randrange(len(data) + 1)))
    return first, last


def _with_length(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
