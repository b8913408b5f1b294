"""Lists of images: pages, page tokens and filters."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pixyproxy_pb.v1 import image_service_pb2 as pb

from pixyproxy.core.fields import Visibility
from pixyproxy.core.models import Usage
from tests.integration.conftest import People
from tests.support.image_client import ImageClient
from tests.support.rpc import Refusal
from tests.support.servers import RunningServer
from tests.support.stored_images import make_detail, store_details

_COUNT = 450
_MAX_PAGE_BYTES = 3 * 1024 * 1024
_FIRST = datetime(2026, 3, 1, 12, tzinfo=UTC)
_MOMENT = timedelta(microseconds=1)


@pytest.fixture(scope="module")
def crowd(server: RunningServer) -> ImageClient:
    """An author with hundreds of images, whose numbers are those of their filenames."""
    login = server.new_login()
    # Three in a row were created at the same moment.
    details = (
        make_detail(
            login,
            prompt=f"number {number} of many",
            filename=f"{number:03}.png",
            tags=["even"] if number % 2 == 0 else [],
            size_bytes=1 + number,
            sha256=f"{number:064x}",
            usage=Usage(input_tokens=1, output_tokens=2, total_tokens=3),
            created_at=_FIRST + timedelta(seconds=number // 3),
        )
        for number in range(_COUNT)
    )
    store_details(server, login, details)
    return ImageClient(server, login)


@pytest.fixture
def mine(crowd: ImageClient) -> dict[str, Any]:
    """The filter for the images of `crowd`."""
    assert crowd.login is not None
    return {"author": crowd.login.username}


def _numbers(images: Iterable[pb.ImageDetail]) -> list[int]:
    return [int(image.filename.removesuffix(".png")) for image in images]


_NEWEST_FIRST = list(range(_COUNT - 1, -1, -1))


# --- Pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [1000, 200, 151, 150, 7])
def test_pages_give_every_image_once_and_newest_first(crowd: ImageClient, mine: dict[str, Any], page_size: int) -> None:
    pages = list(crowd.pages(page_size=page_size, **mine))
    assert _numbers(itertools.chain.from_iterable(pages)) == _NEWEST_FIRST
    full = min(page_size, 200)
    assert [len(page) for page in pages[:-1]] == [full] * (len(pages) - 1)
    assert 0 < len(pages[-1]) <= full, "the last page is not an empty one"


@pytest.mark.parametrize(
    ("page_size", "given"), [(0, 50), (1, 1), (199, 199), (200, 200), (201, 200), (2**31 - 1, 200)]
)
def test_a_page_holds_as_many_as_was_asked_for_within_the_limit(
    crowd: ImageClient, mine: dict[str, Any], page_size: int, given: int
) -> None:
    page = crowd.page(page_size=page_size, **mine)
    assert _numbers(page.images) == _NEWEST_FIRST[:given]
    assert page.next_page_token


@pytest.mark.parametrize("page_size", [-1, -(2**31)])
def test_a_negative_page_size_is_refused(crowd: ImageClient, page_size: int) -> None:
    _check_refused(crowd.refused(pb.ListImagesRequest(page_size=page_size)), "page_size")


def test_images_that_come_in_between_neither_repeat_nor_skip_any(server: RunningServer) -> None:
    author = ImageClient(server, server.new_login())
    assert author.login is not None
    made = [author.create(f"old {number}").guid for number in range(5)]
    pages = author.pages(page_size=2, author=author.login.username)
    seen = [image.guid for image in next(pages)]
    author.create("new")
    author.delete(made[2])
    seen += [image.guid for page in pages for image in page]
    assert seen == [made[4], made[3], made[1], made[0]]


def test_the_page_size_may_change_from_page_to_page(crowd: ImageClient, mine: dict[str, Any]) -> None:
    first = crowd.page(page_size=3, **mine)
    second = crowd.page(page_size=5, page_token=first.next_page_token, **mine)
    assert _numbers([*first.images, *second.images]) == _NEWEST_FIRST[:8]


@pytest.mark.parametrize(
    ("count", "prompt", "year"),
    [(110, "long ".ljust(30_000, "y"), 2021), (40, "long " + "🌊" * 31_990, 2022)],
    ids=["letters", "emoji"],
)
def test_a_page_of_long_prompts_fits_into_a_message(
    any_server: RunningServer, count: int, prompt: str, year: int
) -> None:
    """Stock gRPC clients refuse messages over 4 MiB."""
    login = any_server.new_login()
    details = (
        make_detail(
            login,
            prompt=prompt,
            filename=f"{number:03}.png",
            created_at=datetime(year, 3, 1, number // 7, tzinfo=UTC),
            # The author sees the public ones for another reason than the private ones.
            visibility=Visibility(1 + number % 2),
        )
        for number in range(count)
    )
    store_details(any_server, login, details)
    author = ImageClient(any_server, login)
    that_year = {
        "created_after": _at(datetime(year, 1, 1, tzinfo=UTC)),
        "created_before": _at(datetime(year, 12, 31, tzinfo=UTC)),
    }

    for filters in (that_year, that_year | {"prompt": "long"}):
        request = pb.ListImagesRequest(page_size=200, **filters)
        pages: list[pb.ListImagesResponse] = []
        while not pages or request.page_token:
            pages.append(author.stub.ListImages(request, metadata=author.metadata))
            request.page_token = pages[-1].next_page_token
        assert _numbers(image for page in pages for image in page.images) == list(range(count - 1, -1, -1))
        assert all(page.ByteSize() <= _MAX_PAGE_BYTES for page in pages)
        # Up to 512 bytes are reckoned for what an image has beside its texts.
        counted = pages[0].ByteSize() + 512 * len(pages[0].images)
        assert counted + pages[1].images[0].ByteSize() > _MAX_PAGE_BYTES, "the page ends earlier than it has to"


def test_an_image_lists_with_all_its_fields(crowd: ImageClient, mine: dict[str, Any]) -> None:
    (image,) = crowd.page(prompt="number 448 of many", **mine).images
    assert image == crowd.get(image.guid)
    assert (image.sha256, image.size_bytes, image.usage.total_tokens) == (f"{448:064x}", 449, 3)
    assert image.created_at.ToDatetime(UTC) == _FIRST + timedelta(seconds=149)


# --- Page tokens -----------------------------------------------------------------------------------------------------


def _check_refused(refused: Refusal, field: str) -> None:
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(refused.violations) == [field]


@pytest.fixture(scope="module")
def token(crowd: ImageClient) -> str:
    """A good token of `crowd`, for no filters."""
    return crowd.page(page_size=1).next_page_token


def _flip(token: str, place: int) -> str:
    data = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    data[place] ^= 1
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def test_a_token_shows_nothing_of_what_is_in_it(token: str, crowd: ImageClient) -> None:
    assert crowd.page(page_size=1).next_page_token != token, "each one is sealed anew"
    assert crowd.guids(page_size=1, page_token=token) == crowd.guids(page_size=2)[1:]


@pytest.mark.parametrize("place", [0, 11, 12, 19, 27, 28, 43])
def test_a_token_with_one_flipped_bit_is_refused(crowd: ImageClient, token: str, place: int) -> None:
    _check_refused(crowd.refused(pb.ListImagesRequest(page_token=_flip(token, place))), "page_token")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: token[:-1],
        lambda token: token[:20],
        lambda token: token + "A",
        lambda token: token + token,
        lambda token: token[::-1],
        lambda token: f" {token}",
        lambda token: token + "\n",
        lambda _: base64.urlsafe_b64encode(os.urandom(44)).decode().rstrip("="),
        lambda _: base64.urlsafe_b64encode(bytes(44)).decode().rstrip("="),
        lambda _: "garbage",
        lambda _: "====",
        lambda _: "\N{GRINNING FACE}",
        lambda _: "0",
        lambda _: "A" * 1_000_000,
    ],
    ids=[
        "last character cut",
        "truncated",
        "lengthened",
        "doubled",
        "reversed",
        "space before",
        "line break after",
        "random",
        "zeros",
        "garbage",
        "padding",
        "emoji",
        "short",
        "huge",
    ],
)
def test_what_is_no_token_of_ours_is_refused(crowd: ImageClient, token: str, spoil: Any) -> None:
    _check_refused(crowd.refused(pb.ListImagesRequest(page_token=spoil(token))), "page_token")


@pytest.mark.parametrize(
    "filters",
    [
        {"prompt": "many"},
        {"filename": "1"},
        {"guid": "123e4567-e89b-42d3-a456-426614174000"},
        {"tags": ["even"]},
        {"author": "somebody"},
        {"visibility": pb.VISIBILITY_PRIVATE},
        {"created_after": Timestamp(seconds=1)},
        {"created_before": Timestamp(seconds=1)},
    ],
    ids=lambda filters: next(iter(filters)),
)
def test_a_token_is_refused_for_other_filters(crowd: ImageClient, token: str, filters: dict[str, Any]) -> None:
    _check_refused(crowd.refused(pb.ListImagesRequest(page_token=token, **filters)), "page_token")


def test_a_token_is_refused_for_another_caller(
    crowd: ImageClient, token: str, server: RunningServer, people: People
) -> None:
    for other in (ImageClient(server), ImageClient(server, people.bob), ImageClient(server, people.root)):
        _check_refused(other.refused(pb.ListImagesRequest(page_token=token)), "page_token")
    assert crowd.guids(page_size=1, page_token=token)


# --- Filters ---------------------------------------------------------------------------------------------------------


def _at(moment: datetime, nanoseconds: int = 0) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    timestamp.nanos += nanoseconds
    return timestamp


def test_both_ends_of_a_time_span_are_left_out(crowd: ImageClient, mine: dict[str, Any]) -> None:
    second = timedelta(seconds=1)
    at_11_to_14 = {"created_after": _at(_FIRST + 3 * second), "created_before": _at(_FIRST + 5 * second)}
    assert _numbers(crowd.page(**at_11_to_14, **mine).images) == [14, 13, 12]
    just_outside = {
        "created_after": _at(_FIRST + 3 * second - _MOMENT),
        "created_before": _at(_FIRST + 5 * second + _MOMENT),
    }
    assert _numbers(crowd.page(**just_outside, **mine).images) == list(range(17, 8, -1))


def test_a_fraction_of_a_microsecond_counts(crowd: ImageClient, mine: dict[str, Any]) -> None:
    # What was created at a moment was created before whatever is later than that, by ever so little.
    before = {"created_before": _at(_FIRST, nanoseconds=1)}
    assert _numbers(crowd.page(**before, **mine).images) == [2, 1, 0]
    after = {"created_after": _at(_FIRST, nanoseconds=1), "created_before": _at(_FIRST + timedelta(seconds=2))}
    assert _numbers(crowd.page(**after, **mine).images) == [5, 4, 3]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"created_after": Timestamp(seconds=-62_135_596_800)}, True),  # 0001-01-01T00:00:00Z
        ({"created_before": Timestamp(seconds=-62_135_596_800)}, False),
        ({"created_after": Timestamp(seconds=-30_610_224_001)}, True),  # 0999-12-31T23:59:59Z
        ({"created_before": Timestamp(seconds=-30_610_224_001)}, False),
        ({"created_after": Timestamp()}, True),
        ({"created_before": Timestamp()}, False),
        ({"created_before": Timestamp(seconds=253_402_300_799, nanos=999_999_999)}, True),  # 9999-12-31T23:59:59Z
        ({"created_after": Timestamp(seconds=253_402_300_799, nanos=999_999_999)}, False),
    ],
    ids=str,
)
def test_the_ends_of_time_are_fine(any_server: RunningServer, wanted: dict[str, Any], found: bool) -> None:
    author = ImageClient(any_server, any_server.new_login())
    made = author.create()
    assert author.guids(guid=made.guid, **wanted) == ([made.guid] if found else [])


@pytest.mark.parametrize("field", ["created_after", "created_before"])
@pytest.mark.parametrize(
    "time",
    [
        Timestamp(seconds=-62_135_596_801),
        Timestamp(seconds=253_402_300_800),
        Timestamp(seconds=2**63 - 1),
        Timestamp(seconds=-(2**63)),
        Timestamp(nanos=-1),
        Timestamp(nanos=1_000_000_000),
    ],
    ids=lambda time: f"{time.seconds} s {time.nanos} ns",
)
def test_a_time_that_is_none_is_refused(crowd: ImageClient, field: str, time: Timestamp) -> None:
    wanted: dict[str, Any] = {field: time}
    _check_refused(crowd.refused(pb.ListImagesRequest(**wanted)), field)


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"visibility": 3}, "visibility"),
        ({"visibility": -1}, "visibility"),
        ({"visibility": 2**31 - 1}, "visibility"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": "...!?"}, "prompt"),
        ({"prompt": "\N{COMBINING ACUTE ACCENT}"}, "prompt"),
        ({"prompt": "x" * 1025}, "prompt"),
        ({"prompt": " ".join(f"word{number}" for number in range(25))}, "prompt"),
        ({"prompt": "中" + "文字" * 20 + "日本"}, None),
        ({"prompt": "".join(map(chr, range(0x4E00, 0x4E00 + 26)))}, "prompt"),
        ({"filename": "x" * 256}, "filename"),
        ({"guid": "1"}, "guid"),
        ({"author": "x" * 65}, "author"),
        ({"author": " "}, "author"),
        ({"tags": [f"tag {number}" for number in range(33)]}, "tags"),
        ({"tags": ["fine", ""]}, "tags[1]"),
        ({"tags": ["fine", "fine", "x" * 65]}, "tags[2]"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_filter_that_breaks_a_rule_is_refused(crowd: ImageClient, wanted: dict[str, Any], field: str | None) -> None:
    if field is None:
        assert crowd.guids(**wanted) == []
    else:
        _check_refused(crowd.refused(pb.ListImagesRequest(**wanted)), field)


@pytest.mark.parametrize(
    "wanted",
    [
        {"prompt": " ".join(f"word{number}" for number in range(24))},
        {"tags": [f"tag {number}" for number in range(32)]},
        {
            "prompt": " ".join(f"word{number}" for number in range(24)),
            "tags": [f"tag {number}" for number in range(32)],
            "filename": "name",
            "author": "somebody",
            "visibility": pb.VISIBILITY_PRIVATE,
            "created_after": Timestamp(seconds=1),
            "created_before": Timestamp(seconds=2),
        },
        {"prompt": "nobodywrotethis" * 68},
        {"filename": "%"},
        {"filename": "_"},
        {"filename": "'; DROP TABLE images; --"},
        {"filename": "\\"},
        {"author": "' OR 1=1 --"},
        {"tags": ["' OR '1'='1"]},
        {"prompt": "' OR 1=1 --"},
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_filter_within_the_rules_that_nothing_matches(any_server: RunningServer, wanted: dict[str, Any]) -> None:
    author = ImageClient(any_server, any_server.new_login())
    made = author.create("a view")
    # Other tests give their images such names on purpose.
    page = author.page(**({"author": made.author} | wanted))
    assert (list(page.images), page.next_page_token) == ([], "")
    assert author.get(made.guid) == made


def test_the_last_word_may_be_the_beginning_of_one(crowd: ImageClient, mine: dict[str, Any]) -> None:
    found = crowd.page(prompt="MANY numb", filename="44", **mine).images
    assert _numbers(found) == [*range(449, 439, -1), 344, 244, 144, 44]
    assert crowd.guids(prompt="numb many", **mine) == []


def test_filters_all_have_to_hold(crowd: ImageClient, mine: dict[str, Any]) -> None:
    found = crowd.page(tags=["even"], filename="30", visibility=pb.VISIBILITY_PRIVATE, **mine).images
    assert _numbers(found) == [430, 330, 308, 306, 304, 302, 300, 230, 130, 30]
    assert crowd.guids(tags=["even", "odd"], **mine) == []
    assert crowd.guids(visibility=pb.VISIBILITY_PUBLIC, **mine) == []


def test_an_author_is_asked_for_by_the_whole_name(crowd: ImageClient, mine: dict[str, Any]) -> None:
    assert crowd.guids(author=mine["author"][:-1]) == []
    assert crowd.guids(author=mine["author"].upper()) == []
