"""What becomes of generations, for whoever counts it."""

from __future__ import annotations

from pixyproxy.core.exceptions import ProviderError
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest


class GenerationObserver:
    """Is told; this one does nothing with it. Safe to use from many threads at once, and quick."""

    def generations_changed(self, change: int) -> None:
        """Note by how many the submitted generations have changed."""

    def claimed(self, waited: float) -> None:
        """Note that a generation was claimed that had been queued for so many seconds."""

    def queued(self, count: int) -> None:
        """Note how many calls of this process wait for a generation that is still queued."""

    def retrying(self, error: ProviderError) -> None:
        """Note that a request is submitted again after an error."""

    def ended(self, request: GenerationRequest, seconds: float, outcome: GeneratedImage | BaseException) -> None:
        """Note what came of a generation, so many seconds after it was recorded."""

    def circuit_changed(self, is_open: bool) -> None:
        """Note whether nothing is submitted because the provider is down."""
