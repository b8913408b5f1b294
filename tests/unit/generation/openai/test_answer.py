"""Taking a provider's answer apart: what comes of it must not depend on how it is written."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixyproxy.generation.openai import answer
from pixyproxy.generation.openai.answer import NoImageError, kept_body, take_apart

PICTURE = bytes(range(256)) * 3000  # several pieces, and no multiple of three


def encoded(picture: bytes = PICTURE) -> str:
    return base64.b64encode(picture).decode()


def parts(body: bytes) -> tuple[Any, bytes]:
    """Take a body apart that comes in chunks."""
    with kept_body(body[start : start + 1000] for start in range(0, len(body), 1000)) as (kept, size):
        said, picture = take_apart(kept, size)
    return said, bytes(picture[:])


@pytest.mark.parametrize("size", [*range(1, 9), 196_607, 196_608, 196_609, 400_000])
def test_the_picture_comes_whole(size: int) -> None:
    picture = os.urandom(size)
    body = json.dumps({"data": [{"b64_json": encoded(picture)}], "usage": {"total_tokens": 3}})

    said, got = parts(body.encode())

    assert got == picture
    assert said["usage"] == {"total_tokens": 3}


@pytest.mark.parametrize(
    "body",
    [
        '{"data" : [ {"b64_json"\n:\t"%s" } ] }',
        '{"note": "é \\" \\\\", "data": [{"revised": null, "b64_json": "%s"}]}',
        '{"data": [{"b64_json": "%s"}, {"b64_json": "QUJD"}]}',
        '{"first": {"b64_json": "QUJD"}, "data": [{"b64_json": "%s"}]}',
        '{"a\\"b64_json": "QUJD", "data": [{"b64_json": "%s"}]}',
        '{"data": [{"b64_json": "QUJD", "b64_json": "%s"}]}',
        '{"data": [{"b64\\u005fjson": "%s"}]}',
    ],
)
def test_only_the_first_image_is_the_picture(body: str) -> None:
    assert parts((body % encoded()).encode())[1] == PICTURE


def test_escapes_within_the_base64_are_understood() -> None:
    picture = b"\xff" * 3000
    assert "/" in encoded(picture)

    assert parts(f'{{"data": [{{"b64_json": "{encoded(picture)}"}}]}}'.replace("/", "\\/").encode())[1] == picture


def test_line_breaks_within_the_base64_are_forgiven() -> None:
    body = json.dumps({"data": [{"b64_json": base64.encodebytes(PICTURE).decode()}]})

    assert parts(body.encode())[1] == PICTURE


def url_safe(picture: bytes, *, padded: bool = True) -> str:
    text = base64.urlsafe_b64encode(picture).decode()
    return text if padded else text.rstrip("=")


@pytest.mark.parametrize(
    ("image", "picture"),
    [
        ({"b64_json": f"data:image/png;base64,{encoded()}"}, PICTURE),
        ({"b64_json": f"data:;base64,{url_safe(PICTURE)}"}, PICTURE),
        ({"b64_json": url_safe(PICTURE)}, PICTURE),
        ({"b64_json": url_safe(PICTURE + b"\xff", padded=False)}, PICTURE + b"\xff"),
        ({"b64_json": encoded(PICTURE + b"\xff").rstrip("=")}, PICTURE + b"\xff"),
        ({"b64_json": encoded(PICTURE + b"\xff\xff").rstrip("=")}, PICTURE + b"\xff\xff"),
        ({"b64_json": None, "url": f"data:image/webp;base64,{encoded()}"}, PICTURE),
        ({"url": f"data:image/png;base64,{encoded()}"}, PICTURE),
    ],
    ids=[
        "data",
        "data, URL-safe",
        "URL-safe",
        "URL-safe, not padded",
        "two not padded",
        "one not padded",
        "data in url",
        "data in url alone",
    ],
)
@pytest.mark.parametrize("slash", ["/", "\\/"], ids=["plain", "escaped slashes"])
def test_base64_may_be_written_in_other_ways(image: dict[str, str | None], picture: bytes, slash: str) -> None:
    assert "/" in encoded()
    body = json.dumps({"data": [image]}).replace("/", slash)

    assert parts(body.encode())[1] == picture


@pytest.mark.parametrize("start", ["", "data:image/png;base64,"])
@pytest.mark.parametrize("more", [b"", b"\xff", b"\xff\xff"])
def test_usual_base64_is_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch, start: str, more: bytes) -> None:
    monkeypatch.setattr(answer, "_decoded_slowly", lambda _: pytest.fail("It was decoded in the slow way."))
    body = json.dumps({"data": [{"b64_json": start + encoded(PICTURE + more)}], "usage": {"total_tokens": 3}})

    assert parts(body.encode())[1] == PICTURE + more


def test_an_answer_without_an_image_is_read_all_the_same() -> None:
    with pytest.raises(NoImageError) as caught:
        parts(b'{"error": {"code": "moderation_blocked"}}')
    assert caught.value.answer == {"error": {"code": "moderation_blocked"}}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\x00" * 10,
        b'{"data": null}',
        b'{"data": [{"b64_json": null}]}',
        b'{"data": [{"b64_json": "QUJD',
        b'{"data": [{"b64_json": "QUJD"}',
        b'{"data": [{"b64_json": "QUJD"}]} {}',
        b'{"data": [{"b64_json": "QUJDR"}]}',
        b'{"data": [{"b64_json": ""}]}',
        b'{"data": [{"b64_json": "data:image/png;base64,"}]}',
        b'{"data": [{"b64_json": "QUJD data:image/png;base64,QUJD"}]}',
        b'{"data": [{"url": "https://example.com/picture.png"}]}',
        b'{"data": [{"b64_json": "(cut out)"}]}',
        b'{"b64_json": "QUJD", "data": []}',
    ],
)
def test_what_holds_no_picture_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  of many kinds
        parts(body)


def test_a_body_that_does_not_end_is_given_up() -> None:
    sent = []

    def chunks() -> Iterator[bytes]:
        while True:
            sent.append(1)
            yield b" " * 1000

    with pytest.raises(ValueError, match="too large"), kept_body(chunks(), max_bytes=10_000):
        pytest.fail("was taken")
    assert len(sent) == 11


@given(st.binary(max_size=2000), st.sampled_from([b"", b'{"data": [{"b64_json": "', b'{"b64_json":"']))
def test_no_body_does_anything_unforeseen(rubbish: bytes, start: bytes) -> None:
    try:
        parts(start + rubbish)
    except ValueError:
        return


def test_nothing_stays_open() -> None:
    body = json.dumps({"data": [{"b64_json": encoded()}]}).encode()
    parts(body)
    before, times = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0, 50

    for _ in range(times):
        parts(body)
        with pytest.raises(ValueError):  # noqa: PT011  of many kinds
            parts(b'{"data": [{"b64_json": "QUJDR"}]}')

    # Not exactly as many as before: those of other tests' connections come and go.
    assert (len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0) < before + times
