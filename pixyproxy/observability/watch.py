"""Puts what measures around the parts of an application, as far as that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixyproxy.data.database import Database
from pixyproxy.data.image_store import ImageStore
from pixyproxy.generation.interfaces import ImageGenerator
from pixyproxy.generation.observer import GenerationObserver
from pixyproxy.observability.database import ObservedDatabase
from pixyproxy.observability.generator import MeasuredGenerator
from pixyproxy.observability.store import ObservedImageStore

if TYPE_CHECKING:
    from pixyproxy.observability.metrics import Metrics


class Watch:
    """Gives back each part as it is where nothing was asked for, so that it then costs nothing."""

    def __init__(self, metrics: Metrics | None) -> None:
        """Count in ``metrics``, unless that is None."""
        self._metrics = metrics

    def database(self, database: Database, pool_size: int) -> Database:
        """Watch a database."""
        if self._metrics is None:
            return database
        self._metrics.database.set_limit(pool_size)
        return ObservedDatabase(database, self._metrics.database.record, self._metrics.database.used)

    def store(self, store: ImageStore) -> ImageStore:
        """Watch an image store."""
        if self._metrics is None:
            return store
        return ObservedImageStore(store, self._metrics.store.record, self._metrics.store.moved)

    def provider(self, generator: ImageGenerator) -> ImageGenerator:
        """Watch single requests to a provider."""
        if self._metrics is None:
            return generator
        counts = self._metrics.generation
        return MeasuredGenerator(generator, counts.requested, counts.requests_changed)

    def generator(self, generator: ImageGenerator, slots: int) -> ImageGenerator:
        """Watch generations, waits and repetitions included."""
        if self._metrics is None:
            return generator
        counts = self._metrics.generation
        counts.set_slots(slots)
        return MeasuredGenerator(generator, counts.generated, counts.generations_changed)

    @property
    def between(self) -> GenerationObserver:
        """Who is told what becomes of requests between the two."""
        return GenerationObserver() if self._metrics is None else self._metrics.generation
