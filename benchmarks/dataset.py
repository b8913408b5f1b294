"""The images that are asked for."""

from __future__ import annotations

import hashlib
import random
import secrets
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from pixyproxy_pb.v1 import image_service_pb2 as pb
from pydantic import SecretStr

from pixyproxy.bootstrap import build_users, open_database
from pixyproxy.core.fields import Visibility
from pixyproxy.core.models import Image, ImageDetail, Usage, UserCreate
from pixyproxy.data import init
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.stores.local_image_store import LocalImageStore
from pixyproxy.generation.price_list import DEFAULT_PRICE_LIST, read_price_list
from pixyproxy.resource.mapping import from_image
from pixyproxy.service.accounting import account_some, fold_some
from pixyproxy.service.indexer import seal_all
from tests.support.servers import Login, settings_in

IMAGES = 2_000
CONTENT_BYTES = 4 * 1024 * 1024
CONTENT_SIZES = (CONTENT_BYTES, 64 * 1024, 1024 * 1024, 20 * 1024 * 1024)
"""The sizes of the images that have bytes: the first ones."""

_PROMPT = "A lighthouse on a cliff above a stormy sea at dusk, oil on canvas, number {}, with gulls and a distant ship"
_PLACEHOLDER = bytes(range(24))
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def details(author: str) -> Iterator[ImageDetail]:
    """Make the details of all images, the same ones each time."""
    numbers = random.Random(1)
    for number in range(IMAGES):
        created_at = _BEGAN + timedelta(seconds=number)
        size = CONTENT_SIZES[number] if number < len(CONTENT_SIZES) else CONTENT_BYTES
        yield ImageDetail(
            guid=str(uuid.UUID(int=numbers.getrandbits(128), version=4)),
            prompt=_PROMPT.format(number),
            filename=f"a-lighthouse-on-a-cliff-{number}.png",
            tags=("sea", "lighthouse", f"series {number % 100}"),
            visibility=Visibility.PRIVATE if number % 2 else Visibility.PUBLIC,
            author=author,
            content_type="image/png",
            size_bytes=size,
            sha256=_sha256_of(size) if number < len(CONTENT_SIZES) else f"{number:064x}",
            width=1024,
            height=1024,
            model="gpt-image-2.5-flare",
            usage=Usage(input_tokens=20, output_tokens=1056, total_tokens=1076),
            created_at=created_at,
            updated_at=created_at,
        )


def constant_detail() -> pb.ImageDetail:
    """One of them as it is sent."""
    detail = next(details("painter"))
    return from_image(Image.model_construct(**dict(detail), id=1, author_id=1))


def prepare(settings: dict[str, str]) -> Login:
    """Fill an empty database and store; return the user who made all images."""
    login = Login("painter", secrets.token_urlsafe(12))
    with open_database(settings_in(settings)) as database:
        init.upgrade(database)
        users = build_users(settings_in(settings), database)
        author_id = users.create_user(UserCreate(username=login.username, password=SecretStr(login.password))).id
        with database.transaction() as context:
            images = ImageRepository(context)
            for detail in details(login.username):
                images.insert(detail, author_id)
                images.set_placeholder(detail.guid, _PLACEHOLDER)
            context.commit()
        _finish_background_work(database)
    store = LocalImageStore(Path(settings["PIXYPROXY_IMAGE_STORE"]))
    for guid, size in zip(guids(), CONTENT_SIZES, strict=False):
        store.write(guid, content(size))
    return login


def _finish_background_work(database: Database) -> None:
    """Do at once what servers would do during the measurements."""
    prices = read_price_list(DEFAULT_PRICE_LIST)
    while account_some(database, prices) or fold_some(database):
        pass
    seal_all(database, lambda _done, _count: None)


def content(size: int = CONTENT_BYTES) -> bytes:
    """Return the bytes of an image: not zeros, all of which the system keeps in a single page."""
    return random.Random(2).randbytes(size)


@cache
def _sha256_of(size: int) -> str:
    return hashlib.sha256(content(size)).hexdigest()


def guids() -> list[str]:
    """Return the guids of all images; the first ones have bytes."""
    return [detail.guid for detail in details("painter")]
