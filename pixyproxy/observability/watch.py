"""Wraps the parts of an application for metrics and traces, if these are enabled."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from pixyproxy.data.database import Database
from pixyproxy.data.stores.image_store import ImageStore
from pixyproxy.generation.interfaces import ImageGenerator
from pixyproxy.generation.observer import GenerationObserver
from pixyproxy.observability.database import ObservedDatabase
from pixyproxy.observability.generator import ObservedGenerator
from pixyproxy.observability.store import observed_store

if TYPE_CHECKING:
    from pixyproxy.observability.metrics import Metrics
    from pixyproxy.observability.telemetry import Telemetry


class Watch:
    """Returns each part unchanged if nothing is enabled, so that there is no overhead then."""

    def __init__(self, metrics: Metrics | None, telemetry: Telemetry | None) -> None:
        """Count in ``metrics`` and trace with ``telemetry``; None disables either."""
        self._metrics = metrics
        self._telemetry = telemetry

    def database(self, database: Database, pool_size: int) -> Database:
        """Wrap a database with up to ``pool_size`` connections."""
        if self._metrics is not None:
            self._metrics.database.set_limit(pool_size)
            database = ObservedDatabase(database, self._metrics.database.record, self._metrics.database.used)
        return database if self._telemetry is None else ObservedDatabase(database, self._telemetry.record_statement)

    def store(self, store: ImageStore) -> ImageStore:
        """Wrap an image store."""
        if self._metrics is not None:
            store = observed_store(store, self._metrics.store.record, self._metrics.store.moved)
        return store if self._telemetry is None else observed_store(store, self._telemetry.record_store)

    def provider(self, generator: ImageGenerator) -> ImageGenerator:
        """Wrap a generator, for each request to its provider."""
        if self._telemetry is not None:
            generator = ObservedGenerator(generator, self._telemetry.provider_request)
        if self._metrics is not None:
            generator = ObservedGenerator(generator, self._metrics.generation.provider_request)
        return generator

    def traced(self, generator: ImageGenerator) -> ImageGenerator:
        """Wrap a generator, for each generation."""
        return generator if self._telemetry is None else ObservedGenerator(generator, self._telemetry.generation)

    def trace_headers(self) -> dict[str, str]:
        """Return the headers that continue the trace of the running call in another process."""
        return {} if self._telemetry is None else self._telemetry.headers()

    def continuing(self, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        """Return a context that continues the trace of another process, from its ``headers``."""
        return nullcontext() if self._telemetry is None else self._telemetry.continuing(headers)

    @property
    def generations(self) -> GenerationObserver:
        """The observer of generations."""
        return GenerationObserver() if self._metrics is None else self._metrics.generation
