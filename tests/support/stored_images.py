"""Images that are put into a server's database and store directly: many of them, large ones, or odd ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pixyproxy.core.fields import new_guid
from pixyproxy.core.models import Image, ImageDetail, ImageFile
from pixyproxy.data.repositories.images import ImageRepository
from pixyproxy.data.stores.local_image_store import LocalImageStore
from tests.support.servers import Login, RunningServer


def make_detail(author: Login, **values: Any) -> ImageDetail:
    """The detail of an image by `author`, with `values` in place of the usual ones."""
    now = datetime.now(UTC)
    usual = {
        "guid": new_guid(),
        "prompt": "put there directly",
        "filename": "direct.png",
        "author": author.username,
        "content_type": "image/png",
        "size_bytes": 1,
        "sha256": "0" * 64,
        "width": 1,
        "height": 1,
        "model": "none",
        "created_at": now,
        "updated_at": values.get("created_at", now),
    }
    return ImageDetail.model_validate(usual | values)


def store_details(server: RunningServer, author: Login, details: Iterable[ImageDetail]) -> None:
    """Commit the details of images, which have no bytes."""
    author_id = server.caller(author).user_id
    with server.database() as database, database.transaction() as context:
        images = ImageRepository(context)
        for detail in details:
            images.insert(detail, author_id)
        context.commit()


def store_image(server: RunningServer, author: Login, data: bytes, **values: Any) -> ImageDetail:
    """Store bytes as an image, whatever they are."""
    sums = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    detail = make_detail(author, **(sums | values))
    LocalImageStore(Path(server.env["PIXYPROXY_IMAGE_STORE"])).write(detail.guid, data)
    store_details(server, author, [detail])
    return detail


def file_of(image: Image) -> ImageFile:
    """What a reader of the image's bytes needs of it."""
    return ImageFile.of_checked({name: getattr(image, name) for name in ImageFile.model_fields})
