"""Puts what measures around the parts of an application, as far as that was asked for."""

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
from pixyproxy.observability.recording import Record, record_to_all
from pixyproxy.observability.store import ObservedImageStore

if TYPE_CHECKING:
    from pixyproxy.observability.metrics import Metrics
    from pixyproxy.observability.telemetry import Telemetry


class Watch:
    """Gives back each part as it is where nothing was asked for, so that it then costs nothing."""

    def __init__(self, metrics: Metrics | None, telemetry: Telemetry | None) -> None:
        """Count in ``metrics`` and trace with ``telemetry``, as far as there are such."""
        self._metrics = metrics
        self._telemetry = telemetry

    def database(self, database: Database, pool_size: int) -> Database:
        """Watch a database that uses up to so many connections."""
        records: list[Record] = []
        if self._metrics is not None:
            self._metrics.database.set_limit(pool_size)
            records.append(self._metrics.database.record)
        if self._telemetry is not None:
            records.append(self._telemetry.record_statement)
        if not records:
            return database
        held = _nobody_counts if self._metrics is None else self._metrics.database.used
        return ObservedDatabase(database, record_to_all(*records), held)

    def store(self, store: ImageStore) -> ImageStore:
        """Watch an image store."""
        records: list[Record] = []
        if self._metrics is not None:
            records.append(self._metrics.store.record)
        if self._telemetry is not None:
            records.append(self._telemetry.record_store)
        if not records:
            return store
        moved = _nobody_counts if self._metrics is None else self._metrics.store.moved
        return ObservedImageStore(store, record_to_all(*records), moved)

    def provider(self, generator: ImageGenerator) -> ImageGenerator:
        """Watch single requests to a provider."""
        if self._telemetry is not None:
            generator = ObservedGenerator(generator, self._telemetry.provider_request)
        if self._metrics is not None:
            generator = ObservedGenerator(generator, self._metrics.generation.provider_request)
        return generator

    def traced(self, generator: ImageGenerator) -> ImageGenerator:
        """Watch generations."""
        return generator if self._telemetry is None else ObservedGenerator(generator, self._telemetry.generation)

    def set_slots(self, count: int) -> None:
        """Note how many generations this process may have submitted at a time."""
        if self._metrics is not None:
            self._metrics.generation.set_slots(count)

    def trace_headers(self) -> dict[str, str]:
        """Return what makes another process's work a part of the running call's trace."""
        return {} if self._telemetry is None else self._telemetry.headers()

    def continuing(self, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        """Return what is entered to work on a part of the trace that another process's ``headers`` name."""
        return nullcontext() if self._telemetry is None else self._telemetry.continuing(headers)

    @property
    def generations(self) -> GenerationObserver:
        """Who is told what becomes of generations."""
        return GenerationObserver() if self._metrics is None else self._metrics.generation


def _nobody_counts(*_: object) -> None:
    """Stand in for a counter where only traces are asked for."""
