"""What a page of images must hold, in plain Python: the model that every database is compared with."""

from __future__ import annotations

from collections.abc import Iterable

from pixyproxy.core.fields import Visibility
from pixyproxy.core.models import Caller, Image, ImageFilter
from pixyproxy.core.search_terms import index_terms, query_terms
from pixyproxy.core.text import caseless_key, exact_key


def expected_images(images: Iterable[Image], image_filter: ImageFilter, caller: Caller | None) -> list[Image]:
    """Return all images that match and that ``caller`` may see, in the order of pages."""
    found = [image for image in images if _is_visible(image, caller) and _matches(image, image_filter)]
    return sorted(found, key=lambda image: (image.created_at, image.id), reverse=True)


def _is_visible(image: Image, caller: Caller | None) -> bool:
    if image.visibility is Visibility.PUBLIC:
        return True
    return caller is not None and (caller.is_admin or caller.user_id == image.author_id)


def _matches(image: Image, wanted: ImageFilter) -> bool:
    tag_keys = {exact_key(tag) for tag in image.tags}
    return all(
        (
            _has_words(image.prompt, wanted.prompt or ""),
            caseless_key(wanted.filename or "") in caseless_key(image.filename),
            wanted.guid in (None, image.guid),
            all(exact_key(tag) in tag_keys for tag in wanted.tags),
            wanted.author is None or exact_key(wanted.author) == exact_key(image.author),
            wanted.visibility in (None, image.visibility),
            wanted.created_after is None or image.created_at > wanted.created_after,
            wanted.created_before is None or image.created_at < wanted.created_before,
        )
    )


def _has_words(prompt: str, query: str) -> bool:
    terms = index_terms(prompt)
    return all(
        any(term.startswith(wanted.text) for term in terms) if wanted.is_prefix else wanted.text in terms
        for wanted in query_terms(query)
    )
