"""Image generators whose requests are measured and traced."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from pixyproxy.core.call import CallScope
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, ImageGenerator

Outcome = GeneratedImage | BaseException
Measure = Callable[[GenerationRequest, float, Outcome], object]


class MeasuredGenerator:
    """An ``ImageGenerator`` that says of each request how many seconds it took, and what came of it."""

    def __init__(self, generator: ImageGenerator, measure: Measure, holds: Callable[[int], object]) -> None:
        """Wrap a generator, which is closed with this one; ``holds`` is told of each change of what is under way."""
        self._generator = generator
        self._measure = measure
        self._holds = holds

    def generate(self, request: GenerationRequest, call: CallScope) -> GeneratedImage:
        """Make one image. Raises as the generator itself."""
        self._holds(1)
        began = time.perf_counter()
        try:
            made = self._generator.generate(request, call)
        except BaseException as error:
            self._measure(request, time.perf_counter() - began, error)
            raise
        finally:
            self._holds(-1)
        self._measure(request, time.perf_counter() - began, made)
        return made

    def close(self) -> None:
        """Close the generator."""
        self._generator.close()


class TracedGenerator:
    """An ``ImageGenerator`` that makes each image within a span."""

    def __init__(
        self, generator: ImageGenerator, span: Callable[[GenerationRequest], AbstractContextManager[None]]
    ) -> None:
        """Wrap a generator, which is closed with this one."""
        self._generator = generator
        self._span = span

    def generate(self, request: GenerationRequest, call: CallScope) -> GeneratedImage:
        """Make one image. Raises as the generator itself."""
        with self._span(request):
            return self._generator.generate(request, call)

    def close(self) -> None:
        """Close the generator."""
        self._generator.close()
