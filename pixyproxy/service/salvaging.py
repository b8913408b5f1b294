"""Reads answers of the provider that were kept aside because no image could be stored from them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pixyproxy.core.exceptions import RecordNotFoundError
from pixyproxy.core.fields import UserClass, new_guid
from pixyproxy.core.models import Caller, GenerationKey
from pixyproxy.core.validation import validated_guid
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.generation_details import GenerationDetailRepository
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.generation.openai.answer import kept_body, take_apart

_START = 1024  # bytes of a file that show its kind
_KINDS = (
    (rb"\x89PNG\r\n\x1a\n", "a PNG image"),
    (rb"\xff\xd8\xff", "a JPEG image"),
    (rb"RIFF.{4}WEBP", "a WebP image"),
    (rb"GIF8[79]a", "a GIF image"),
    (rb".{4}ftypavi[fs]", "an AVIF image"),
    (rb"BM.{4}\0{4}", "a BMP image"),
    (rb"II\*\0|MM\0\*", "a TIFF image"),
    (rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*|<!DOCTYPE svg[^>]*>\s*)*<svg\b", "an SVG image"),
    (rb"(?i:(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html)\b)", "an HTML page"),
    (rb"\s*[{\[]", "JSON"),
)


@dataclass(frozen=True)
class KeptAnswer:
    """What was kept aside for a generation.

    Attributes:
        data: the bytes of the first image, or the whole answer if it has none in base64.
        is_image: which of the two it is.
        kind: what kind of file it looks like, such as "a GIF image".
    """

    data: bytes
    is_image: bool
    kind: str


def read_kept(database: Database, store: ImageStore, guid: str) -> KeptAnswer:
    """Return what was kept aside for a generation, given its guid or the one that its image would have had.

    Raises:
        InvalidFieldError: it is not a guid.
        RecordNotFoundError: nothing was kept aside under it.
    """
    guid = validated_guid(guid)
    body = store.read_aside(guid)
    if body is None:
        image_guid = _image_of(database, guid)
        body = None if image_guid is None else store.read_aside(image_guid)
    if body is None:
        raise RecordNotFoundError(f"No answer of the provider is kept aside under the guid {guid}.")
    try:
        with kept_body([body], len(body)) as (room, size):
            _, image = take_apart(room, size)
    except (ValueError, RecursionError):
        return KeptAnswer(body, is_image=False, kind=kind_of(body))
    data = image[:]
    return KeptAnswer(data, is_image=True, kind=kind_of(data))


def kind_of(data: bytes) -> str:
    """Return what kind of file bytes look like."""
    start = data[:_START]
    return next((kind for pattern, kind in _KINDS if re.match(pattern, start, re.DOTALL)), "no known kind of file")


def _image_of(database: Database, guid: str) -> str | None:
    """Return the guid that the image of a generation has or would have had; None if there is no such generation."""
    # The command's user has the database, and may see everything in it.
    operator = Caller(user_id=0, guid=new_guid(), username="operator", class_key=UserClass.ADMIN)
    with database.reading() as context:
        found = GenerationDetailRepository(context).find(GenerationKey(guid=guid), operator)
    return None if found is None else found.image_guid
