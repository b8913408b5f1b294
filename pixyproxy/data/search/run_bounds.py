"""When the images of a block were created: so that a search reads only those that can still belong on its page."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pixyproxy.data.search import postings

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Beyond all times, the wrong way round: the bounds of what has no images.
NO_OLDEST, NO_NEWEST = 2**63 - 1, -(2**63)


def microseconds(time: datetime) -> int:
    """Return a time as the index counts it: microseconds since 1970."""
    return (time - _EPOCH) // _MICROSECOND


@dataclass
class RunBounds:
    """When the oldest and the newest image of each run of a block were created, in microseconds."""

    oldest: list[int]
    newest: list[int]

    @classmethod
    def of_none(cls) -> RunBounds:
        """Return the bounds of a block without images."""
        count = postings.runs_a_block()
        return cls([NO_OLDEST] * count, [NO_NEWEST] * count)

    @classmethod
    def decoded(cls, data: bytes) -> RunBounds:
        """Read what ``encoded`` wrote."""
        times = struct.unpack(f"<{len(data) // 8}q", data)
        middle = len(times) // 2
        return cls(list(times[:middle]), list(times[middle:]))

    def encoded(self) -> bytes:
        """Write them as they are stored."""
        return struct.pack(f"<{2 * len(self.oldest)}q", *self.oldest, *self.newest)

    def include(self, offset: int, created_at: int) -> None:
        """Widen them for an image."""
        run = postings.run_of(offset)
        self.oldest[run] = min(self.oldest[run], created_at)
        self.newest[run] = max(self.newest[run], created_at)
