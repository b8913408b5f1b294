"""How many generations may be under way at a time."""

from __future__ import annotations

import threading

from pixyproxy.core.exceptions import TooBusyError

_RETRY_SECONDS = 5.0


class GenerationSlots:
    """Counts the generations under way, and refuses further ones at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._changed = threading.Condition()

    def take(self) -> None:
        """Take a slot, to be given back.

        Raises:
            TooBusyError: all are taken.
        """
        with self._changed:
            if self._taken == self._limit:
                raise TooBusyError(
                    "As many images as may be are being generated; try again.", retry_after=_RETRY_SECONDS
                )
            self._taken += 1

    @property
    def taken(self) -> int:
        """How many are taken."""
        return self._taken

    def give_back(self) -> None:
        """Give a slot back."""
        with self._changed:
            self._taken -= 1
            self._changed.notify_all()

    def wait_until_free(self) -> None:
        """Wait until no slot is taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0)
