"""Observes generations, for metrics."""

from __future__ import annotations

from pixyproxy.core.exceptions import ProviderError
from pixyproxy.core.models import Cost
from pixyproxy.generation.interfaces import GeneratedImage


class GenerationObserver:
    """Does nothing. Subclasses must be quick, and safe for use by several threads."""

    def set_slots(self, count: int) -> None:
        """Set the most submitted generations of this process."""

    def generations_changed(self, change: int) -> None:
        """Add ``change`` to the number of submitted generations."""

    def claimed(self, waited: float) -> None:
        """Note that a generation was claimed after ``waited`` seconds in the queue."""

    def queued(self, count: int) -> None:
        """Set the number of queued generations that calls of this process wait for."""

    def retrying(self, error: ProviderError) -> None:
        """Note that a request will be submitted again after an error."""

    def ended(self, model: str, seconds: float, outcome: GeneratedImage | BaseException) -> None:
        """Note the outcome of a generation, ``seconds`` after it was recorded."""

    def outcome_unknown(self) -> None:
        """Note that a generation has ended with an unknown outcome; twice if its worker was taken for dead."""

    def spent(self, model: str, cost: Cost | None) -> None:
        """Note what a stored image has cost, None if that is unknown."""

    def circuit_changed(self, is_open: bool) -> None:
        """Note that the circuit breaker has opened or closed."""
