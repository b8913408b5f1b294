"""Stands before a generator: refuses at once while the provider is down, and keeps to its pace."""

from __future__ import annotations

from pixyproxy.core.call import CallScope
from pixyproxy.generation.circuit_breaker import CircuitBreaker
from pixyproxy.generation.interfaces import GeneratedImage, GenerationRequest, ImageGenerator
from pixyproxy.generation.observer import GenerationObserver
from pixyproxy.generation.pacing import Pacer, Turns
from pixyproxy.generation.retry import RetryingGenerator

_NOBODY = GenerationObserver()


class _PacedGenerator:
    """Lets each submission wait its turn, unless the provider goes down meanwhile."""

    def __init__(
        self, generator: ImageGenerator, pacer: Pacer, breaker: CircuitBreaker, observer: GenerationObserver
    ) -> None:
        self._generator = generator
        self._pacer = pacer
        self._breaker = breaker
        self._observer = observer

    def generate(self, request: GenerationRequest, call: CallScope) -> GeneratedImage:
        with self._observer.waiting_for_turn():
            self._pacer.wait_for_turn(request.author_guid, call, self._breaker.require_hope)
        return self._generator.generate(request, call)

    def close(self) -> None:
        self._generator.close()


class GuardedGenerator:
    """An ``ImageGenerator`` that retries where that is safe, keeps a pace, and refuses while the provider is down.

    A request counts once for the circuit breaker, with all its attempts: a prompt that makes the provider stumble must
    not by itself close the way for everybody.
    """

    def __init__(self, generator: ImageGenerator, turns: Turns | None, observer: GenerationObserver = _NOBODY) -> None:
        """Guard ``generator``; without turns, submissions do not wait for any."""
        pacer = None if turns is None else Pacer(turns)
        self._breaker = CircuitBreaker(
            on_open=pacer.wake if pacer else _nobody_waits,
            on_change=lambda is_open: observer.circuit_changed(is_open=is_open),
        )
        self._generator = RetryingGenerator(
            generator if pacer is None else _PacedGenerator(generator, pacer, self._breaker, observer),
            on_retry=observer.retrying,
        )

    def generate(self, request: GenerationRequest, call: CallScope) -> GeneratedImage:
        """Make one image.

        Raises:
            ProviderCircuitOpenError: the provider is down.
            TooBusyError: the request's turn would not come in time.
            ProviderError: as the generator itself.
        """
        with self._breaker.watching():
            return self._generator.generate(request, call)

    def close(self) -> None:
        """Close the generator."""
        self._generator.close()


def _nobody_waits() -> None:
    """Stand in for waking the queue where there is none."""
