from __future__ import annotations

import base64
import json

import pytest

from pixyproxy.core.exceptions import InvalidFieldError, RecordNotFoundError
from pixyproxy.core.fields import new_guid
from pixyproxy.core.models import Caller, ImageCreation, ImageDetailCreate
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.generation_details import GenerationDetailRepository
from pixyproxy.data.repositories.generations import GenerationRepository, RequestContext
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.service.salvaging import KeptAnswer, kind_of, read_kept
from tests.support.image_urls import OTHER_FILES

GIF = OTHER_FILES["gif"]
ENCODED = base64.b64encode(GIF).decode()


def kept(database: Database, store: LocalImageStore, body: bytes) -> KeptAnswer:
    guid = new_guid()
    store.write_aside(guid, body)
    return read_kept(database, store, guid)


@pytest.mark.parametrize(
    "answer",
    [
        {"data": [{"b64_json": ENCODED}]},
        {"data": [{"b64_json": f"data:image/gif;base64,{ENCODED}"}]},
        {"data": [{"url": f"data:image/gif;base64,{ENCODED}"}]},
        {"data": [{"url": "https://images.example.com/x", "b64_json": ENCODED}]},
        {"data": [{"b64_json": ENCODED}, {"b64_json": "QUJD"}]},
        {"type": "image_generation.completed", "b64_json": ENCODED},
    ],
)
def test_the_bytes_of_the_first_image_are_taken_out(
    database: Database, store: LocalImageStore, answer: dict[str, object]
) -> None:
    expected = KeptAnswer(GIF, is_image=True, kind="a GIF image")
    assert kept(database, store, json.dumps(answer).encode()) == expected


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"data": [{"url": "https://images.example.com/x"}]}', "JSON"),
        (b'{"data": [{"b64_json": "!"}]}', "JSON"),
        (b'{"data": [{"b64_json": "iVBOR', "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"<html>hello</html>", "an HTML page"),
        (b"\x00\x01", "no known kind of file"),
    ],
)
def test_any_other_answer_is_left_as_it_came(
    database: Database, store: LocalImageStore, body: bytes, kind: str
) -> None:
    assert kept(database, store, body) == KeptAnswer(body, is_image=False, kind=kind)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image"),
        (OTHER_FILES["many_pixels"], "a PNG image"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG image"),
        (b"RIFF\n\r\0\0WEBPVP8 ", "a WebP image"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "no known kind of file"),
        (b"GIF87a", "a GIF image"),
        (OTHER_FILES["gif"], "a GIF image"),
        (OTHER_FILES["avif"], "an AVIF image"),
        (b"\0\0\0\x1cftypavis", "an AVIF image"),
        (b"\0\0\0\x1cftypisom", "no known kind of file"),
        (b"BM\x36\0\0\0\0\0\0\0\x36", "a BMP image"),
        (b"BM of text", "no known kind of file"),
        (b"II*\0\x08", "a TIFF image"),
        (b"MM\0*\0", "a TIFF image"),
        (OTHER_FILES["svg"], "an SVG image"),
        (b"\xef\xbb\xbf\n<svg>", "an SVG image"),
        (b"<!-- made\nby --> <!DOCTYPE svg PUBLIC '-'><svg>", "an SVG image"),
        (b"<svgs>", "no known kind of file"),
        (OTHER_FILES["html"], "an HTML page"),
        (b"\xef\xbb\xbf <HTML lang=en>", "an HTML page"),
        (b'\n{"error": 1}', "JSON"),
        (b" [1]", "JSON"),
        (b"see {1}", "no known kind of file"),
        (OTHER_FILES["junk"], "no known kind of file"),
        (b"", "no known kind of file"),
    ],
)
def test_the_kind_of_a_file_is_told_from_its_start(data: bytes, kind: str) -> None:
    assert kind_of(data) == kind


def test_an_answer_is_found_by_the_guid_of_its_generation(
    database: Database, store: LocalImageStore, alice: Caller
) -> None:
    creation = ImageCreation(detail=ImageDetailCreate(prompt="an otter"))
    with database.transaction() as context:
        generations = [
            GenerationRepository(context).insert(creation, alice.user_id, "", RequestContext()) for _ in range(2)
        ]
        context.commit()
    with database.reading() as context:
        found = GenerationDetailRepository(context).get_several([generation.id for generation in generations])
    guid, other = (generation.guid for generation in found if generation is not None)
    store.write_aside(generations[0].image_guid, b"[]")

    assert read_kept(database, store, guid).data == b"[]"
    with pytest.raises(RecordNotFoundError, match=other):
        read_kept(database, store, other)


def test_a_guid_with_nothing_kept_is_not_found(database: Database, store: LocalImageStore) -> None:
    guid = new_guid()
    with pytest.raises(RecordNotFoundError, match=guid):
        read_kept(database, store, guid)


@pytest.mark.parametrize("guid", ["", "../../etc/passwd", "x", "0b0e"])
def test_what_is_no_guid_is_refused(database: Database, store: LocalImageStore, guid: str) -> None:
    with pytest.raises(InvalidFieldError):
        read_kept(database, store, guid)


def test_a_guid_may_be_in_upper_case(database: Database, store: LocalImageStore) -> None:
    guid = new_guid()
    store.write_aside(guid, b"[]")
    assert read_kept(database, store, guid.upper()).data == b"[]"
