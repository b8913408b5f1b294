"""Making users and images to test with, and reading them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import SecretStr

from pixyproxy.core.fields import UserClass, Visibility, new_guid
from pixyproxy.core.models import Caller, Image, ImageDetail, ImageFilter, PagePosition, User, UserCreate
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.repositories.users import UserRepository
from pixyproxy.data.search.limits import DEFAULT_LIMITS, SearchLimits

PASSWORD_HASH = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$aGFzaA"
NOON = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)
EVERYTHING = ImageFilter()


def add_user(database: Database, username: str, class_key: UserClass = UserClass.USER) -> User:
    with database.transaction() as context:
        user = UserRepository(context).insert(
            UserCreate(username=username, password=SecretStr(PASSWORD_HASH), class_key=class_key)
        )
        context.commit()
    return user


def add_caller(database: Database, username: str = "ann", class_key: UserClass = UserClass.USER) -> Caller:
    """Add a user, as the one who makes a call."""
    user = add_user(database, username, class_key)
    return Caller(user_id=user.id, guid=user.guid, username=user.username, class_key=user.class_key)


def detail_of(author: Caller, **values: Any) -> ImageDetail:
    """Make a valid detail, with ``values`` in place of the defaults."""
    defaults: dict[str, Any] = {
        "guid": new_guid(),
        "prompt": "a red fox in the snow",
        "filename": "a-red-fox.png",
        "tags": (),
        "visibility": Visibility.PRIVATE,
        "author": author.username,
        "content_type": "image/png",
        "size_bytes": 1234,
        "sha256": "ab" * 32,
        "width": 1024,
        "height": 768,
        "model": "gpt-image-2.5-flare",
        "created_at": NOON,
        "updated_at": NOON,
    }
    return ImageDetail(**(defaults | values))


def add_image(database: Database, author: Caller, **values: Any) -> Image:
    return add_images(database, author, [values])[0]


def add_images(database: Database, author: Caller, rows: list[dict[str, Any]]) -> list[Image]:
    """Add images in one transaction, with the given values in place of the defaults."""
    with database.transaction() as context:
        repository = ImageRepository(context)
        images = [repository.insert(detail_of(author, **values), author.user_id) for values in rows]
        context.commit()
    return images


def get_image(database: Database, guid: str, caller: Caller | None) -> Image:
    with database.reading() as context:
        return ImageRepository(context).get(guid, caller)


def get_page(
    database: Database,
    image_filter: ImageFilter = EVERYTHING,
    caller: Caller | None = None,
    *,
    limit: int = 200,
    after: Image | None = None,
    limits: SearchLimits = DEFAULT_LIMITS,
) -> list[Image]:
    """Return the page after an image."""
    images, _ = get_page_and_end(database, image_filter, caller, limit=limit, after=_position(after), limits=limits)
    return images


def get_page_and_end(
    database: Database,
    image_filter: ImageFilter,
    caller: Caller | None,
    *,
    limit: int,
    after: PagePosition | None,
    limits: SearchLimits = DEFAULT_LIMITS,
) -> tuple[list[Image], PagePosition | None]:
    """Return the page after a position, and where it ended before its limit, if it did."""
    with database.reading() as context:
        return ImageRepository(context, limits).get_page(image_filter, caller, limit=limit, after=after)


def _position(image: Image | None) -> PagePosition | None:
    return None if image is None else PagePosition(image.created_at, image.id)


def walk(
    database: Database,
    image_filter: ImageFilter,
    caller: Caller | None,
    *,
    limit: int,
    limits: SearchLimits = DEFAULT_LIMITS,
) -> list[Image]:
    """Return all pages, one after the other."""
    images: list[Image] = []
    after: PagePosition | None = None
    while True:
        page, end = get_page_and_end(database, image_filter, caller, limit=limit, after=after, limits=limits)
        assert len(page) <= limit
        images += page
        if end is None and not page:
            return images
        after = end or _position(images[-1])


def minutes(count: float) -> datetime:
    """Return a time so many minutes after noon."""
    return NOON + timedelta(minutes=count)
