"""Creation times of the runs of a block, by which a search skips runs that cannot have images of its page."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# The bounds of a run without images: later and earlier than all times.
NO_OLDEST, NO_NEWEST = 2**63 - 1, -(2**63)


def microseconds(time: datetime) -> int:
    """Return a time in microseconds since 1970, as the index stores it."""
    return (time - _EPOCH) // _MICROSECOND


def time_of(microseconds: int) -> datetime:
    """Return the time of ``microseconds`` since 1970."""
    return _EPOCH + microseconds * _MICROSECOND


@dataclass
class RunBounds:
    """The creation times of the oldest and of the newest image of each run, in microseconds since 1970."""

    oldest: list[int]
    newest: list[int]

    @classmethod
    def decode(cls, data: bytes, runs: int) -> RunBounds:
        """Read what ``encode`` returned; no data stands for ``runs`` runs without images."""
        if not data:
            return cls([NO_OLDEST] * runs, [NO_NEWEST] * runs)
        times = struct.unpack(f"<{2 * runs}q", data)
        return cls(list(times[:runs]), list(times[runs:]))

    def encode(self) -> bytes:
        """Return the stored form."""
        return struct.pack(f"<{2 * len(self.oldest)}q", *self.oldest, *self.newest)

    def include(self, run: int, created_at: int) -> None:
        """Widen the bounds of a run to include an image."""
        self.oldest[run] = min(self.oldest[run], created_at)
        self.newest[run] = max(self.newest[run], created_at)
