"""Stands before a generator: refuses at once while the provider is down, and keeps to its pace."""

from __future__ import annotations

from pixyproxy.core.call import CallScope
from pixyproxy.generation.circuit_breaker import CircuitBreaker
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, ImageGenerator
from pixyproxy.generation.pacing import Pacer


class GuardedGenerator:
    """An ``ImageGenerator`` before which requests wait their turn, and that refuses them while the provider is down."""

    def __init__(self, generator: ImageGenerator, images_per_minute: int | None) -> None:
        """Guard ``generator``; without a number of images per minute, requests do not wait."""
        self._generator = generator
        self._pacer = None if images_per_minute is None else Pacer(images_per_minute)
        self._breaker = CircuitBreaker(on_open=self._wake)

    def generate(self, request: GenerationRequest, call: CallScope) -> GeneratedImage:
        """Make one image.

        Raises:
            ProviderCircuitOpenError: the provider is down.
            TooBusyError: the request's turn would not come in time.
            ProviderError: as the generator itself.
        """
        self._breaker.require_closed()
        if self._pacer is not None:
            self._pacer.wait_for_turn(request.author_guid, call, self._breaker.require_closed)
        with self._breaker.watching():
            return self._generator.generate(request, call)

    def close(self) -> None:
        """Close the generator."""
        self._generator.close()

    def _wake(self) -> None:
        if self._pacer is not None:
            self._pacer.wake()
