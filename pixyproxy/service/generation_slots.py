"""How many generations may be under way at a time."""

from __future__ import annotations

from pixyproxy.core.exceptions import TooBusyError
from pixyproxy.core.slots import SharedSlots

_RETRY_SECONDS = 5.0


class GenerationSlots:
    """Counts the generations under way, and refuses further ones at once."""

    def __init__(self, limit: int) -> None:
        self._slots = SharedSlots(limit).of(0)

    def take(self) -> None:
        """Take a slot, to be given back.

        Raises:
            TooBusyError: all are taken.
        """
        if not self._slots.take():
            raise TooBusyError("As many images as may be are being generated; try again.", retry_after=_RETRY_SECONDS)

    @property
    def taken(self) -> int:
        """How many are taken."""
        return self._slots.taken

    def give_back(self) -> None:
        """Give a slot back."""
        self._slots.give_back()

    def wait_until_free(self) -> None:
        """Wait until no slot is taken."""
        self._slots.wait_until_none_is_held()
