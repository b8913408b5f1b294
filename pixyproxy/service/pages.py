"""Pages of limited size, read by several queries of limited size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from pixyproxy.core.models import DEFAULT_PAGE_SIZE, MAX_PAGE_BYTES, PagePosition

Item = TypeVar("Item")

# A page of the default size takes one query. So does a page of 200 with the longest prompts, which then reads 6 MiB of
# prompts instead of 25.
_ITEMS_A_QUERY = DEFAULT_PAGE_SIZE + 1


def read_page(
    read: Callable[[int, PagePosition | None], tuple[Sequence[Item], PagePosition | None]],
    *,
    page_size: int,
    after: PagePosition | None,
    position_of: Callable[[Item], PagePosition],
    bytes_of: Callable[[Item], int],
) -> tuple[list[Item], PagePosition | None]:
    """Read a page.

    Args:
        read: returns at most so many items after a position, in their order; and None, or the position at which the
            page must end because it would be too expensive to look further.
        page_size: the most items on the page.
        after: the position after which it begins, or None.
        position_of: returns the position of an item.
        bytes_of: returns an upper bound of the size of an item in the serialized page, in bytes.

    Returns:
        The items, and the position after which the next page begins, or None if there are no more items.
    """
    page: list[Item] = []
    size = 0
    while True:
        # One more than requested shows whether there is another page.
        limit = min(_ITEMS_A_QUERY, page_size + 1 - len(page))
        found, end = read(limit, after)
        for item in found:
            size += bytes_of(item)
            if len(page) == page_size or (page and size > MAX_PAGE_BYTES):
                return page, position_of(page[-1])
            page.append(item)
        if end is not None or len(found) < limit:
            return page, end
        after = position_of(found[-1])
