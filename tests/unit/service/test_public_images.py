"""Pages of images whose texts are long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pixyproxy.core.fields import Visibility
from pixyproxy.core.models import MAX_PAGE_BYTES, Caller, ImageFilter, ImagePage, ImagePageRequest, PagePosition, Usage
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.resource.mapping import from_image_page
from pixyproxy.service import public_images
from pixyproxy.service.page_tokens import PageTokens, new_page_token_key
from pixyproxy.service.public_images import PublicImageService
from pixyproxy.service.renditions.requesting import RenditionRequests
from tests.contract.records import add_images
from tests.unit.resource.fakes import make_image

LONGEST = "🌊" * 32_000
EARLY = datetime(1, 1, 1, tzinfo=UTC)
COUNT = 120


@pytest.fixture
def service(database: Database, store: LocalImageStore) -> PublicImageService:
    renditions = RenditionRequests(database, on_request=lambda: None)
    return PublicImageService(database, store, PageTokens(new_page_token_key()), renditions)


def test_no_image_takes_more_of_a_page_than_is_reckoned() -> None:
    most = 2**63 - 1
    image = make_image(
        prompt=LONGEST,
        filename="🌊" * 255,
        tags=tuple(f"{number:02}" + "🌊" * 62 for number in range(32)),
        author="🌊" * 64,
        visibility=Visibility.PUBLIC,
        content_type="x" * 64,
        size_bytes=most,
        width=2**31 - 1,
        height=2**31 - 1,
        model="x" * 64,
        placeholder=bytes(32),
        usage=Usage(input_tokens=most, output_tokens=most, total_tokens=most),
        created_at=EARLY + timedelta(microseconds=999_999),
        updated_at=EARLY + timedelta(microseconds=999_999),
    )
    token = PageTokens(new_page_token_key()).seal(PagePosition(image.created_at, image.id), ImageFilter(), None)
    page = from_image_page(ImagePage.model_construct(images=(image,), next_page_token=token))

    assert page.ByteSize() <= public_images._bytes_in_page(image) <= MAX_PAGE_BYTES


def test_a_page_without_images_has_a_token_if_its_search_took_too_much_work(
    service: PublicImageService, database: Database, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    [image] = add_images(database, alice, [{"prompt": "a castle", "created_at": EARLY}])
    request = ImagePageRequest(filter=ImageFilter(prompt="castle"))
    get_page = ImageRepository.get_page
    positions: list[PagePosition | None] = []
    cut = PagePosition(EARLY + timedelta(days=1), 2**63 - 1)

    def cut_short_once(repository: ImageRepository, *arguments: Any, after: PagePosition | None, **named: Any) -> Any:
        positions.append(after)
        return get_page(repository, *arguments, after=after, **named) if len(positions) > 1 else ([], cut)

    monkeypatch.setattr(ImageRepository, "get_page", cut_short_once)
    first = service.get_all_images(request, alice)
    assert first.images == ()
    second = service.get_all_images(request.model_copy(update={"page_token": first.next_page_token}), alice)

    assert (second.images, second.next_page_token) == ((image,), None)
    assert positions == [None, cut]


def test_a_page_reads_little_more_than_it_has_room_for(
    service: PublicImageService, database: Database, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"created_at": EARLY + timedelta(days=number // 3)} for number in range(COUNT)]
    added = [image.model_copy(update={"prompt": LONGEST}) for image in add_images(database, alice, rows)]
    with database.transaction() as context:
        # Not in the search index, which a list does not need: that would take most of the time.
        context.execute("UPDATE images SET prompt = :prompt", {"prompt": LONGEST})
        context.commit()
    read: list[int] = []
    get_page = ImageRepository.get_page

    def counted(*arguments: object, **named: object) -> object:
        images, end = get_page(*arguments, **named)  # type: ignore[arg-type]
        read.append(len(images))
        return images, end

    monkeypatch.setattr(ImageRepository, "get_page", counted)
    page = service.get_all_images(ImagePageRequest(page_size=200), alice)

    assert list(page.images) == added[: -1 - len(page.images) : -1]
    assert page.next_page_token is not None
    assert sum(read) <= len(page.images) + 51
