"""An image generator whose requests are measured or traced."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, ImageGenerator, OnPartial, ignore_partial

Observe = Callable[[GenerationRequest], AbstractContextManager[None]]


class ObservedGenerator:
    """An ``ImageGenerator`` that generates each image within a context, such as a span."""

    def __init__(self, generator: ImageGenerator, observe: Observe) -> None:
        """Wrap a generator, which is closed with this one."""
        self._generator = generator
        self._observe = observe

    def generate(self, request: GenerationRequest, on_partial: OnPartial = ignore_partial) -> GeneratedImage:
        """Generate one image. Raises as the generator itself."""
        with self._observe(request):
            return self._generator.generate(request, on_partial)

    def close(self) -> None:
        """Close the generator."""
        self._generator.close()
