"""What becomes of requests between a caller and the provider, for whoever counts it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from pixyproxy.core.exceptions import ProviderError


class GenerationObserver:
    """Is told; this one does nothing with it. Safe to use from many threads at once, and quick."""

    def waiting_for_turn(self) -> AbstractContextManager[None]:
        """Return what is entered while a request waits for its turn to be sent."""
        return nullcontext()

    def retrying(self, error: ProviderError) -> None:
        """Note that a request is sent again after an error."""

    def circuit_changed(self, *, is_open: bool) -> None:
        """Note whether requests are refused because the provider is down."""
